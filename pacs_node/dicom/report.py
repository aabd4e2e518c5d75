"""The report of a study: a TID 1500 Measurement Report (PS3.16) as Comprehensive 3D SR or Comprehensive SR.

    Imaging Measurement Report (126000)
      language, device observer, procedure reported
      Image Library: the images read, the images made
      Imaging Measurements: one Measurement Group (TID 1501) for each finding evaluated on an image
      Qualitative Evaluations: what was done with each image and what not and why; the conclusion

Every evaluated finding is stated, the normal ones too; what failed or was not attempted has a group without a
value and with the reason as its qualifier, so that it can never be read as negative. All text of the report
is ASCII, so that it goes with the Specific Character Set in which the patient's name came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydicom.dataset import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage

from pacs_node.dicom import carried, codes, identity, report_content, uids
from pacs_node.dicom.derivation import NOT_FOR_DIAGNOSIS, Derivation, Finding, ascii_text
from pacs_node.dicom.report_content import Reference
from pacs_node.dicom.report_text import report_text
from pacs_node.dicom.selfcheck import check
from pacs_node.errors import OutputError
from pacs_node.tasks import Task

__all__ = [
    "Evaluation",
    "Reference",
    "SourceResult",
    "Status",
    "TaskOutcome",
    "in_order",
    "report_text",
    "report_uid",
    "study_report",
]

Status = Literal["done", "failed", "not_attempted"]


@dataclass(frozen=True)
class Evaluation:
    """A finding as plain values, for results that were read back from their record."""

    name: str
    score: float
    threshold: float
    decision: str
    code: codes.CodedName | None = None


@dataclass(frozen=True)
class TaskOutcome:
    """What became of one task on one image.

    ``derivation`` is None if the task never came to a model; ``findings`` are what it evaluated, the normal
    ones too; ``output`` is the object that it made; ``reason`` says why it failed or was not attempted.
    """

    task: Task
    status: Status
    derivation: Derivation | None = None
    findings: Sequence[Finding] = ()
    output: Reference | None = None
    reason: str = ""


@dataclass(frozen=True)
class SourceResult:
    """One image of the study and what became of it.

    ``header`` is its data set, with or without pixels; ``refusal`` says why it was not analysed at all.
    """

    header: Dataset
    outcomes: Sequence[TaskOutcome] = ()
    refusal: str = ""
    warnings: Sequence[str] = field(default=())

    @property
    def reference(self) -> Reference:
        """The image as an object to refer to."""
        return Reference.of(self.header)


def report_uid(sources: Sequence[SourceResult], sop_class_uid: str = Comprehensive3DSRStorage) -> str:
    """SOP Instance UID of the report on these results: the same results have the same report."""
    content: list[Any] = []
    for source in in_order(sources):
        outcomes = [
            [
                o.task,
                o.status,
                ascii_text(o.reason),
                [o.derivation.model_digest, o.derivation.revision] if o.derivation else None,
                [[f.name, float(f.score), float(f.threshold), f.decision] for f in o.findings],
                o.output.sop_instance_uid if o.output else None,
            ]
            for o in source.outcomes
        ]
        content.append([str(source.header.SOPInstanceUID), source.refusal, list(source.warnings), outcomes])
    study = str(sources[0].header.StudyInstanceUID)
    return uids.make("report", study, str(sop_class_uid), json.dumps(content, sort_keys=True))


def study_report(
    sources: Sequence[SourceResult],
    predecessor: Dataset | None = None,
    *,
    created: datetime | None = None,
    sop_class_uid: str = Comprehensive3DSRStorage,
) -> Dataset:
    """The report on all images of one study.

    ``predecessor`` is the report that this one replaces (its header is enough). ``created`` is the time of
    the work; without it the report carries the latest content date and time of its sources, or the present if
    they have none. ``sop_class_uid``: Comprehensive 3D SR, or Comprehensive SR for destinations that take
    only that. Raises OutputError if there is no image, the images are of several studies, or the result fails
    its own check.
    """
    if not sources:
        raise OutputError("a report needs at least one image")
    if len({str(s.header.StudyInstanceUID) for s in sources}) > 1:
        raise OutputError("a report is on one study, but its images are of several")
    sources = in_order(sources)
    first = sources[0].header
    derivations = [o.derivation for s in sources for o in s.outcomes if o.derivation is not None]
    ds = Dataset()
    carried.carry_identity(ds, first)
    for keyword in ("RequestAttributesSequence", "RequestingService"):  # no place in an SR
        if keyword in ds:
            del ds[keyword]
    ds.SOPClassUID = UID(sop_class_uid)
    ds.SOPInstanceUID = report_uid(sources, sop_class_uid)
    ds.SeriesInstanceUID = uids.make("report series", str(first.StudyInstanceUID), str(sop_class_uid))
    ds.Modality = "SR"
    ds.SeriesNumber = carried.series_number(first, None)
    ds.SeriesDescription = f"AI report - {NOT_FOR_DIAGNOSIS}"
    ds.InstanceNumber = 1 if predecessor is None else carried.number(predecessor, "InstanceNumber", 0) + 1
    identity.set_general_equipment(ds, *derivations)
    ds.ContributingEquipmentSequence = identity.contributing_equipment(first, *derivations)
    ds.ContentQualification = _qualification(derivations)
    _set_document(ds, sources, predecessor, created)
    for element in report_content.root(sources, uids.device(*(d.model_digest for d in derivations))):
        ds.add(element)
    ds.CurrentRequestedProcedureEvidenceSequence = _evidence(
        [r for s in sources for r in (s.reference, *(o.output for o in s.outcomes if o.output is not None))]
    )
    codes.identify_scheme(ds, list(first.get("CodingSchemeIdentificationSequence") or []))
    check(ds)
    return ds


def in_order(sources: Sequence[SourceResult]) -> list[SourceResult]:
    """By Series Number, Instance Number and UID, whatever order the images came in."""

    def key(source: SourceResult) -> tuple[int, int, str]:
        header = source.header
        order = (carried.number(header, k, 0) for k in ("SeriesNumber", "InstanceNumber"))
        return (*order, str(header.SOPInstanceUID))  # type: ignore[return-value]

    return sorted(sources, key=key)


def _qualification(derivations: Sequence[Derivation]) -> str:
    product = derivations and all(d.qualification == "PRODUCT" for d in derivations)
    return "PRODUCT" if product else "RESEARCH"


def _set_document(
    ds: Dataset, sources: Sequence[SourceResult], predecessor: Dataset | None, created: datetime | None
) -> None:
    """SR Document Series and SR Document General modules (PS3.3 C.17.1, C.17.2)."""
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"
    unfinished = [o for s in sources for o in s.outcomes if o.status != "done"]
    ds.CompletionFlag = "PARTIAL" if unfinished else "COMPLETE"
    if unfinished:
        ds.CompletionFlagDescription = f"{len(unfinished)} task(s) failed or were not attempted"
    dates = []
    for source in sources:
        dated = Dataset()
        carried.set_content_date(dated, source.header, created)
        dates.append((dated.get("ContentDate", ""), dated.get("ContentTime", "")))
    ds.ContentDate, ds.ContentTime = max(dates)
    if created is not None:
        ds.InstanceCreationDate, ds.InstanceCreationTime = ds.ContentDate, ds.ContentTime
    if not ds.ContentDate:  # type 1, and no source says when it was made
        now = datetime.now(UTC)
        ds.ContentDate, ds.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    if predecessor is not None:
        ds.PredecessorDocumentsSequence = _evidence([Reference.of(predecessor)])
    accession = sources[0].header.get("AccessionNumber")
    if accession:
        ds.ReferencedRequestSequence = [_request(sources[0].header)]


def _request(header: Dataset) -> Dataset:
    """The order that the study fulfils (PS3.3 table C.17-3)."""
    attributes = (header.get("RequestAttributesSequence") or [Dataset()])[0]
    request = Dataset()
    request.StudyInstanceUID = header.StudyInstanceUID
    request.ReferencedStudySequence = []
    request.AccessionNumber = header.AccessionNumber
    request.PlacerOrderNumberImagingServiceRequest = None
    request.FillerOrderNumberImagingServiceRequest = None
    request.RequestedProcedureID = attributes.get("RequestedProcedureID") or None
    request.RequestedProcedureDescription = attributes.get("RequestedProcedureDescription") or None
    request.RequestedProcedureCodeSequence = []
    return request


def _evidence(references: Sequence[Reference]) -> list[Dataset]:
    """Hierarchical references by study and series (PS3.3 table C.17-3b)."""
    studies: dict[str, dict[str, dict[str, Reference]]] = {}
    for r in references:
        series = studies.setdefault(r.study_instance_uid, {}).setdefault(r.series_instance_uid, {})
        series[r.sop_instance_uid] = r
    items = []
    for study_uid, all_series in studies.items():
        study = Dataset()
        study.StudyInstanceUID = study_uid
        study.ReferencedSeriesSequence = []
        for series_uid, objects in all_series.items():
            series_item = Dataset()
            series_item.SeriesInstanceUID = series_uid
            series_item.ReferencedSOPSequence = [r.item() for r in objects.values()]
            study.ReferencedSeriesSequence.append(series_item)
        items.append(study)
    return items
