"""Each destination gets the report in the form that it can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage

from tests.pipeline.conftest import chest
from tests.pipeline.harness import Bench

FORMS: dict[str, dict[str, Any]] = {
    "PLAIN": {},
    "PAGES": {"report_page": True},
    "OLD": {"sr": "comprehensive", "report_page": True},
    "BLIND": {"sr": "none", "report_page": True},
}
REPORTS = {Comprehensive3DSRStorage, ComprehensiveSRStorage}


@pytest.mark.slow
def test_each_destination_gets_its_form_of_the_report(tmp_path: Path) -> None:
    destinations = {
        name: {"type": "folder", "path": str(tmp_path / name), **form} for name, form in FORMS.items()
    }
    rules = [{"name": "all", "tasks": ["anomaly"], "destinations": list(FORMS)}]
    bench = Bench(tmp_path / "node", {"destinations": destinations, "rules": rules})

    def delivered(name: str) -> list[Dataset]:
        found = [dcmread(path) for path in (tmp_path / name).rglob("*.dcm")]
        found = [ds for ds in found if ds.SOPClassUID in REPORTS or ds.Modality == "OT"]
        return sorted(found, key=lambda ds: (ds.Modality, int(ds.InstanceNumber)))

    bench.receive(chest(1))
    bench.work_off()
    (plain,) = delivered("PLAIN")
    assert plain.SOPClassUID == Comprehensive3DSRStorage
    page, report = delivered("PAGES")
    assert report == plain
    assert page.SOPClassUID == SecondaryCaptureImageStorage
    assert page.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == plain.SOPInstanceUID
    old_page, old = delivered("OLD")
    assert old.SOPClassUID == ComprehensiveSRStorage
    assert old_page.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert delivered("BLIND") == [page]

    # A late image: each kind of report names its predecessor of that kind.
    bench.receive(chest(2))
    bench.work_off()
    _, second = delivered("PLAIN")
    assert _predecessor(second) == plain.SOPInstanceUID
    _, old_second = [ds for ds in delivered("OLD") if ds.Modality == "SR"]
    assert old_second.SOPClassUID == ComprehensiveSRStorage
    assert _predecessor(old_second) == old.SOPInstanceUID
    assert len(delivered("BLIND")) == 2

    # A destination that is told to take pages afterwards gets those of the next report.
    destinations["PLAIN"]["report_page"] = True
    bench.configure(destinations=destinations, rules=rules)
    bench.receive(chest(3))
    bench.work_off()
    assert [ds.Modality for ds in delivered("PLAIN")] == ["OT", "SR", "SR", "SR"]


def _predecessor(report: Dataset) -> str:
    (study,) = report.PredecessorDocumentsSequence
    return str(study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
