"""The report of a study from what the analysis of its images has recorded.

``study_report_of`` is what the command line and the node share; ``Reports`` keeps a study's generations in
the spool: ``<study>/reports/<n>.dcm``, and ``<n>.json`` last, which says that it is whole. Beside them lies
what a destination wants instead or in addition: ``<n>-comprehensive.dcm``, ``<n>-page-<m>.dcm``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from pacs_node.config.model import Destination
from pacs_node.dicom.derivation import Derivation
from pacs_node.dicom.derived import SUPPORTED
from pacs_node.dicom.files import encode, read_header
from pacs_node.dicom.report import SourceResult, TaskOutcome, report_uid, study_report
from pacs_node.dicom.report_content import Reference
from pacs_node.dicom.report_page import report_pages
from pacs_node.errors import Refused
from pacs_node.files import atomic_write, make_folder
from pacs_node.pipeline.node import Node
from pacs_node.receive.spool import REPORTS, RESULTS
from pacs_node.tasks import Task

#: What an object's results folder holds besides the tasks': what was decided, and what was found on opening
#: it.
ROUTE_FILE, SOURCE_FILE = "route.json", "source.json"


@dataclass(frozen=True)
class _Code:
    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class _Finding:
    name: str
    code: _Code | None
    score: float
    threshold: float
    decision: str


@dataclass(frozen=True)
class Analysed:
    """One image of a study: its header, the outcomes of its tasks as ``Analyst.attempt`` gives them, and when
    it came.

    ``refusal`` says why it was not analysed; ``out_of_scope``, that this was to be expected of such an image.
    """

    header: Dataset
    outcomes: Sequence[dict[str, Any]] = ()
    refusal: str = ""
    out_of_scope: bool = False
    warnings: Sequence[str] = field(default=())
    received: datetime | None = None

    @property
    def belongs_in_a_report(self) -> bool:
        """Whether the report mentions it: not what is no radiograph at all, and nothing that was never asked
        for.
        """
        return bool(self.outcomes) or (bool(self.refusal) and self.header.SOPClassUID in SUPPORTED)

    def result(self) -> SourceResult:
        """As the report wants it, with what is to be said of how the models ran."""
        outcomes = [_task_outcome(outcome, self.header, self.received) for outcome in self.outcomes]
        told = [
            f"{outcome['task']}: {warning}"
            for outcome in self.outcomes
            for warning in outcome.get("parameters", {}).get("warnings", [])
        ]
        return SourceResult(self.header, outcomes, self.refusal, [*self.warnings, *told])


def results_to_report(images: Sequence[Analysed]) -> list[SourceResult]:
    """What a report on these images of one study says; empty if there is nothing to report.

    A study of nothing but, say, lateral images or hands gets no report: nobody expected one.
    """
    if not any(image.outcomes or (image.refusal and not image.out_of_scope) for image in images):
        return []
    return [image.result() for image in images if image.belongs_in_a_report]


def study_report_of(
    images: Sequence[Analysed],
    predecessor: Dataset | None = None,
    sop_class_uid: str = Comprehensive3DSRStorage,
) -> Dataset | None:
    """The report on these images of one study, or ``None`` if nothing is to be said. Raises OutputError."""
    results = results_to_report(images)
    if not results:
        return None
    created = max((image.received for image in images if image.received is not None), default=None)
    return study_report(results, predecessor, created=created, sop_class_uid=sop_class_uid)


class Reports:
    """The reports of the studies in a node's spool."""

    def __init__(self, node: Node) -> None:
        self._spool = node.spool

    def make(self, study: str, destinations: Mapping[str, Destination]) -> dict[str, Any]:
        """Make the study's report if its results differ from those of the last one; say which it is now
        (JSON).

        ``file`` (in the spool, without its suffix), ``sop_instance_uid``, ``predecessor`` (a UID or None),
        ``destinations``, and ``files``: what each destination gets, by its settings in ``destinations``; or
        ``{"nothing": reason}``. For the same results it is the same report, so whoever is interrupted may ask
        again. Raises OSError, OutputError.
        """
        recorded = [
            (self._image(key), read_json(self._results(key) / ROUTE_FILE)) for key in self._routed(study)
        ]
        images = [image for image, _ in recorded if image is not None]
        results = results_to_report(images)
        if not results:
            return {"nothing": "no image of this study was analysed"}
        folder = self._spool.root / study / REPORTS
        make_folder(folder)
        number = max((int(path.stem) for path in folder.glob("*.json")), default=0)
        made = read_json(folder / f"{number}.json") if number else {}
        if made.get("sop_instance_uid") != report_uid(results):
            number += 1
            report = self._write(images, folder, number, str(number), Comprehensive3DSRStorage)
            wanted = [
                name
                for image, route in recorded
                if image is not None and image.belongs_in_a_report
                for name in route["destinations"]
            ]
            earlier = report.get("PredecessorDocumentsSequence")
            made = {
                "file": f"{study}/{REPORTS}/{number}",
                "sop_instance_uid": str(report.SOPInstanceUID),
                "predecessor": made.get("sop_instance_uid") if earlier else None,
                "destinations": sorted(set(wanted)),
            }
            atomic_write(folder / f"{number}.json", json.dumps(made, indent=1).encode())
        files = {
            name: self._files(images, folder, number, destinations.get(name)) for name in made["destinations"]
        }
        return {**made, "files": files}

    def _files(
        self, images: Sequence[Analysed], folder: Path, number: int, settings: Destination | None
    ) -> list[str]:
        """What of generation ``number`` a destination gets, made if it is not there yet."""
        names = []
        sr = settings.sr if settings else "comprehensive3d"
        # Of the report that goes to this destination, so that the page refers to one that is there.
        shown = f"{number}-comprehensive" if sr == "comprehensive" else str(number)
        if sr == "comprehensive" and not (folder / f"{shown}.dcm").exists():
            self._write(images, folder, number, shown, ComprehensiveSRStorage)
        if sr != "none":
            names.append(shown)
        if settings and settings.report_page:
            pages = report_pages(read_header(folder / f"{shown}.dcm"), results_to_report(images))
            for index, page in enumerate(pages, 1):
                names.append(f"{shown}-page-{index}")
                if not (folder / f"{names[-1]}.dcm").exists():
                    atomic_write(folder / f"{names[-1]}.dcm", encode(page))
        return [f"{folder.parent.name}/{folder.name}/{name}" for name in names]

    def _write(
        self, images: Sequence[Analysed], folder: Path, number: int, name: str, sop_class_uid: str
    ) -> Dataset:
        """Make generation ``number`` as ``sop_class_uid``, naming its predecessor of that kind if there is
        one.
        """
        earlier = [folder / f"{number - 1}{name.removeprefix(str(number))}.dcm", folder / f"{number - 1}.dcm"]
        predecessor = next((read_header(path) for path in earlier if path.exists()), None)
        report = study_report_of(images, predecessor, sop_class_uid)
        assert report is not None  # noqa: S101  there are results
        atomic_write(folder / f"{name}.dcm", encode(report))
        return report

    def _results(self, key: str) -> Path:
        return self._spool.folder(key) / RESULTS

    def _routed(self, study: str) -> list[str]:
        return [key for key in self._spool.objects(study) if (self._results(key) / ROUTE_FILE).exists()]

    def _image(self, key: str) -> Analysed | None:
        """What is recorded of one object; ``None`` if its header cannot be read."""
        try:
            header = read_header(self._spool.received(key))
        except Refused:
            return None
        route = read_json(self._results(key) / ROUTE_FILE)
        source: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            source = read_json(self._results(key) / SOURCE_FILE)
        outcomes = []
        for task in Task:
            with suppress(FileNotFoundError):
                outcomes.append(read_json(self._results(key) / f"{task}.json"))
        refused = source.get("refused") or route["refused"]
        return Analysed(
            header,
            outcomes,
            refused["reason"] if refused else "",
            route["refused"] is not None,
            source.get("warnings", []),
            datetime.fromisoformat(self._spool.metadata(key)["received_at"]),
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that this node has written. Raises FileNotFoundError."""
    record: dict[str, Any] = json.loads(path.read_bytes())
    return record


def _task_outcome(outcome: dict[str, Any], header: Dataset, received: datetime | None) -> TaskOutcome:
    task = Task(outcome["task"])
    model = outcome.get("model")
    derivation = None
    if model is not None:
        parameters = outcome.get("parameters", {})
        plain = {
            key: value for key, value in parameters.items() if isinstance(value, str | int | float | bool)
        }
        derivation = Derivation(
            task, model["name"], model["version"], model["digest"], plain, outcome["qualification"], received
        )
    output = None
    if "sop_instance_uid" in outcome:
        output = Reference(
            study_instance_uid=str(header.StudyInstanceUID),
            series_instance_uid=outcome["series_instance_uid"],
            sop_class_uid=outcome["sop_class_uid"],
            sop_instance_uid=outcome["sop_instance_uid"],
        )
    findings = [
        _Finding(**{**finding, "code": _Code(**finding["code"]) if finding["code"] else None})
        for finding in outcome.get("findings", [])
    ]
    return TaskOutcome(task, outcome["status"], derivation, findings, output, outcome.get("error", ""))
