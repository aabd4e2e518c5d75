"""The content tree of the report, from highdicom's templates (TID 1002, 1204, 1501, 4019) and content items.

The Image Library (TID 1600) is built here, because highdicom's asks for Patient Orientation and Imager Pixel
Spacing, which computed radiographs often lack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    CoordinatesForMeasurement,
    DeviceObserverIdentifyingAttributes,
    GraphicTypeValues,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pacs_node.dicom import carried, codes, identity, uids
from pacs_node.dicom.derivation import NOT_FOR_DIAGNOSIS, Derivation, Finding, ascii_text
from pacs_node.dicom.pixels import conditions
from pacs_node.tasks import Task

if TYPE_CHECKING:
    from pacs_node.dicom.report import SourceResult, TaskOutcome

_CONTAINS = RelationshipTypeValues.CONTAINS
_MODIFIES = RelationshipTypeValues.HAS_CONCEPT_MOD
_ACQUIRED = RelationshipTypeValues.HAS_ACQ_CONTEXT
_PROPERTY = RelationshipTypeValues.HAS_PROPERTIES
_INFERRED = RelationshipTypeValues.INFERRED_FROM

_ENGLISH = Code("en-US", "RFC5646", "English (United States)")
_DEVICE = Code("121007", "DCM", "Device")

_DECISIONS = {
    "abnormal": (codes.NORMALITY, codes.ABNORMAL),
    "normal": (codes.NORMALITY, codes.NORMAL),
    "present": (codes.PRESENCE, codes.PRESENT),
    "absent": (codes.PRESENCE, codes.ABSENT),
}
_UNDECIDED = (codes.NORMALITY, codes.UNDETERMINED)
_QUALIFIERS = {"failed": codes.FAILURE, "not_attempted": codes.NOT_ATTEMPTED}

# What Modality's code is: CID 29 uses the defined terms of Modality (0008,0060) themselves.
_MODALITIES = {
    "CR": Code("CR", "DCM", "Computed Radiography"),
    "DX": Code("DX", "DCM", "Digital Radiography"),
    "OT": Code("OT", "DCM", "Other Modality"),
}


@dataclass(frozen=True)
class Reference:
    """An object by its UIDs."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str

    @classmethod
    def of(cls, ds: Dataset) -> Reference:
        """The reference to ``ds``."""
        keywords = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
        return cls(*(str(ds[keyword].value) for keyword in keywords))

    def item(self) -> Dataset:
        """An item of Referenced SOP Sequence."""
        ds = Dataset()
        ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = self.sop_class_uid, self.sop_instance_uid
        return ds


def root(sources: Sequence[SourceResult], device_uid: str) -> Iterator[DataElement]:
    """The elements of the SR Document Content module (PS3.3 C.17.3), TID 1500."""
    container = ContainerContentItem(name=_concept(codes.MEASUREMENT_REPORT), template_id="1500")
    content = ContentSequence()
    content.extend(LanguageOfContentItemAndDescendants(_ENGLISH))
    content.extend(_observer(device_uid))
    content.append(_code(codes.PROCEDURE_REPORTED, _procedure(sources), _MODIFIES))
    content.append(_library(sources))
    groups = [g for s in sources for o in s.outcomes if o.task is Task.ANOMALY for g in _groups(s, o)]
    if groups:
        measurements = _container(codes.IMAGING_MEASUREMENTS)
        for group in groups:
            measurements.ContentSequence.extend(group)
        content.append(measurements)
    content.append(_evaluations(sources))
    container.ContentSequence = content
    yield from container


def conclusion(sources: Sequence[SourceResult]) -> str:
    """The closing text: that this is research software, what was found, what was not looked at."""
    parts = [f"Result of research software, {NOT_FOR_DIAGNOSIS}; not verified by a physician."]
    for number, source in enumerate(sources, 1):
        name = f"Image {number}"
        if source.refusal:
            parts.append(f"{name} was not analysed: {source.refusal}.")
        for outcome in source.outcomes:
            task = codes.DERIVATION[outcome.task].meaning
            if outcome.status == "failed":
                parts.append(f"{name}: {task} failed; this says nothing about the patient.")
            elif outcome.status == "not_attempted" and not source.refusal:
                parts.append(f"{name}: {task} was not attempted; this says nothing about the patient.")
            parts += [
                f"{name}: {f.name}: {f.decision} (score {f.score:.3f}, threshold {f.threshold:.3f})."
                for f in outcome.findings
            ]
    return ascii_text(" ".join(parts))


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme_designator, ascii_text(code.meaning)[:64])


def _code(name: Code, value: Code, relation: Any) -> CodeContentItem:
    return CodeContentItem(name=_concept(name), value=_concept(value), relationship_type=relation)


def _text(name: Code, value: str, relation: Any) -> TextContentItem:
    return TextContentItem(name=_concept(name), value=ascii_text(value), relationship_type=relation)


def _number(name: Code, value: float, unit: Code, relation: Any) -> NumContentItem:
    return NumContentItem(name=_concept(name), value=value, unit=_concept(unit), relationship_type=relation)


def _container(name: Code) -> ContainerContentItem:
    item = ContainerContentItem(name=_concept(name), relationship_type=_CONTAINS)
    item.ContentSequence = ContentSequence()
    return item


def _image(name: Code, reference: Reference, relation: Any) -> ImageContentItem:
    return ImageContentItem(
        name=_concept(name),
        referenced_sop_class_uid=reference.sop_class_uid,
        referenced_sop_instance_uid=reference.sop_instance_uid,
        relationship_type=relation,
    )


def _observer(device_uid: str) -> ObserverContext:
    return ObserverContext(
        observer_type=_DEVICE,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device_uid,
            name=identity.MODEL_NAME,
            manufacturer_name=identity.MANUFACTURER,
            model_name=identity.SOFTWARE,
        ),
    )


def _procedure(sources: Sequence[SourceResult]) -> Code:
    """The imaging that was done, in a public scheme if the study says it in one."""
    for source in sources:
        for item in source.header.get("ProcedureCodeSequence") or []:
            value, scheme, meaning = (
                str(item.get(k) or "") for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
            )
            if value and meaning.isascii() and scheme in ("SCT", "LN", "RADLEX", "RPID"):
                return Code(value, scheme, meaning)
    return codes.CHEST_RADIOGRAPHY


def _library(sources: Sequence[SourceResult]) -> ContainerContentItem:
    """TID 1600 with one group for the images read and one for the images made."""
    library = _container(codes.IMAGE_LIBRARY)
    read = _container(codes.IMAGE_LIBRARY_GROUP)
    for source in sources:
        entry = _image(codes.SOURCE, source.reference, _CONTAINS)
        entry.ContentSequence = ContentSequence(_descriptors(source.header))
        read.ContentSequence.append(entry)
    library.ContentSequence.append(read)
    made = _container(codes.IMAGE_LIBRARY_GROUP)
    for output in (o.output for s in sources for o in s.outcomes if o.output is not None):
        made.ContentSequence.append(_image(codes.RESULT_IMAGE, output, _CONTAINS))
    if len(made.ContentSequence):
        library.ContentSequence.append(made)
    return library


def _descriptors(header: Dataset) -> Iterator[Any]:
    """TID 1602 and 1603, as far as the header says them."""
    modality = _MODALITIES.get(str(header.get("Modality") or ""))
    if modality is not None:
        yield _code(codes.MODALITY, modality, _ACQUIRED)
    view = conditions(header).view
    if view is not None:
        position = codes.POSTERO_ANTERIOR if view == "PA" else codes.ANTERO_POSTERIOR
        yield _code(codes.IMAGE_VIEW, position, _ACQUIRED)
    orientation = header.get("PatientOrientation") or []
    if len(orientation) == 2 and all(str(v).isascii() and v for v in orientation):
        yield _text(codes.ORIENTATION_ROW, str(orientation[0]), _ACQUIRED)
        yield _text(codes.ORIENTATION_COLUMN, str(orientation[1]), _ACQUIRED)
    spacing = carried.spacing(header, "ImagerPixelSpacing") or carried.spacing(header, "PixelSpacing")
    if spacing is not None:
        yield _number(codes.HORIZONTAL_SPACING, spacing[1], codes.MILLIMETRE, _ACQUIRED)
        yield _number(codes.VERTICAL_SPACING, spacing[0], codes.MILLIMETRE, _ACQUIRED)
    if header.get("Rows") and header.get("Columns"):
        yield _number(codes.ROWS, int(header.Rows), codes.PIXELS, _ACQUIRED)
        yield _number(codes.COLUMNS, int(header.Columns), codes.PIXELS, _ACQUIRED)


def _algorithm(derivation: Derivation, threshold: float | None = None) -> AlgorithmIdentification:
    """TID 4019."""
    settings = [f"{k} = {v}" for k, v in derivation.parameters.items() if v is not None and k != "threshold"]
    if threshold is not None:
        settings.append(f"threshold = {threshold:.6g}")
    settings.append(f"digest = {derivation.model_digest}")
    return AlgorithmIdentification(
        name=ascii_text(derivation.model_name),
        version=ascii_text(derivation.model_version),
        parameters=[ascii_text(s) for s in settings],
        family=_concept(codes.ARTIFICIAL_INTELLIGENCE),
        manufacturer=identity.MANUFACTURER,
    )


def _groups(source: SourceResult, outcome: TaskOutcome) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    """One TID 1501 group for each finding; for an outcome without findings one that says why."""
    if outcome.status == "done":
        for finding in outcome.findings:
            yield _group(source, outcome, finding)
    else:
        yield _group(source, outcome, None)


def _group(
    source: SourceResult, outcome: TaskOutcome, finding: Finding | None
) -> MeasurementsAndQualitativeEvaluations:
    name = finding.name if finding is not None else "abnormality"
    digest = outcome.derivation.model_digest if outcome.derivation else ""
    valued = finding is not None and math.isfinite(finding.score)
    measurement = Measurement(
        name=_concept(codes.score(name)),
        value=float(finding.score) if finding is not None and valued else 0.0,
        unit=_concept(codes.NO_UNITS),
        qualifier=None if valued else _concept(_QUALIFIERS.get(outcome.status, codes.FAILURE)),
        referenced_coordinates=_whole_image(source),
    )
    if not valued:
        measurement[0].MeasuredValueSequence = []
    concept, value = _UNDECIDED
    if finding is not None and valued:
        concept, value = _DECISIONS.get(finding.decision, _UNDECIDED)
    algorithm = None
    if outcome.derivation is not None:
        threshold = None if finding is None else float(finding.threshold)
        algorithm = _algorithm(outcome.derivation, threshold)
    source_uid = source.reference.sop_instance_uid
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            identifier=ascii_text(f"{name} on {source_uid}"),
            uid=uids.tracking(source_uid, outcome.task, digest, name),
        ),
        finding_type=_concept(codes.finding(finding.code if finding is not None else None)),
        algorithm_id=algorithm,
        measurements=[measurement],
        qualitative_evaluations=[QualitativeEvaluation(_concept(concept), _concept(value))],
        source_images=[SourceImageForMeasurementGroup(source.reference.sop_class_uid, source_uid)],
    )


def _whole_image(source: SourceResult) -> list[CoordinatesForMeasurement] | None:
    """The outline of the image, from its top left corner: viewers want a place for each score."""
    rows, columns = int(source.header.get("Rows") or 0), int(source.header.get("Columns") or 0)
    if not rows or not columns:
        return None
    corners = [[0, 0], [columns, 0], [columns, rows], [0, rows], [0, 0]]
    image = SourceImageForRegion(source.reference.sop_class_uid, source.reference.sop_instance_uid)
    return [
        CoordinatesForMeasurement(
            graphic_type=GraphicTypeValues.POLYLINE,
            graphic_data=np.asarray(corners, dtype=np.float64),
            source_image=image,
        )
    ]


def _evaluations(sources: Sequence[SourceResult]) -> ContainerContentItem:
    """What was done with each image, the remarks on it, and the conclusion."""
    container = _container(codes.QUALITATIVE_EVALUATIONS)
    for source in sources:
        if source.refusal:
            refused = _code(codes.ANALYSIS, codes.NOT_ATTEMPTED, _CONTAINS)
            refused.ContentSequence = ContentSequence(
                [
                    _text(codes.COMMENT, source.refusal, _PROPERTY),
                    _image(codes.SOURCE_IMAGE, source.reference, _INFERRED),
                ]
            )
            container.ContentSequence.append(refused)
        for outcome in source.outcomes:
            container.ContentSequence.append(_status(source, outcome))
        for warning in source.warnings:
            remark = _text(codes.COMMENT, warning, _CONTAINS)
            remark.ContentSequence = ContentSequence(
                [_image(codes.SOURCE_IMAGE, source.reference, _INFERRED)]
            )
            container.ContentSequence.append(remark)
    container.ContentSequence.append(_text(codes.CONCLUSION, conclusion(sources), _CONTAINS))
    return container


def _status(source: SourceResult, outcome: TaskOutcome) -> CodeContentItem:
    state = _QUALIFIERS.get(outcome.status, codes.DONE)
    item = _code(codes.DERIVATION[outcome.task], state, _CONTAINS)
    content = ContentSequence()
    if outcome.derivation is not None and outcome.task is not Task.ANOMALY:  # whose groups name it already
        content.extend(_algorithm(outcome.derivation))
    if outcome.reason:
        content.append(_text(codes.COMMENT, outcome.reason, _PROPERTY))
    content.append(_image(codes.SOURCE_IMAGE, source.reference, _INFERRED))
    if outcome.output is not None:
        kind = codes.VISUAL_EXPLANATION if outcome.task is Task.ANOMALY else codes.RESULT_IMAGE
        content.append(_image(kind, outcome.output, _PROPERTY))
    item.ContentSequence = content
    return item
