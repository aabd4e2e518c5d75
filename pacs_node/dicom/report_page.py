"""A study's report drawn as pages of text: Secondary Captures (PS3.3 A.8.1) for systems that show no SR.

No name, identifier or date of birth is drawn: the viewer shows the patient from the header, in whatever
script, while a font that lacks a character would show another name. What is drawn is ASCII.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pacs_node.dicom import carried, codes, identity, uids
from pacs_node.dicom.derivation import NOT_FOR_DIAGNOSIS, TITLES, ascii_text
from pacs_node.dicom.derived import set_pixels
from pacs_node.dicom.report import SourceResult, TaskOutcome, in_order
from pacs_node.dicom.selfcheck import check

COLUMNS, ROWS = 1240, 1600
"""Size of a page; text is at least 24 pixels high, legible at half that size too."""

_MARGIN, _LEADING = 60, 1.4
_HEADING, _BODY, _SMALL = 38, 28, 24
_WHITE, _BRIGHT, _GREY = 255, 225, 170


@dataclass(frozen=True)
class _Line:
    text: str
    size: int = _BODY
    level: int = _BRIGHT
    indent: int = 0

    @property
    def height(self) -> int:
        return round(self.size * _LEADING)


def report_pages(report: Dataset, sources: Sequence[SourceResult]) -> list[Dataset]:
    """The pages of ``report``, which ``study_report`` has made of ``sources``.

    The same report has the same pages, under the same UIDs. Raises OutputError if one fails its own check.
    """
    sources = in_order(sources)
    derivations = [o.derivation for s in sources for o in s.outcomes if o.derivation is not None]
    pages = _paginate([*_head(report), *_body(sources), *_foot(report)])
    made = []
    for index, lines in enumerate(pages, 1):
        ds = Dataset()
        first = sources[0].header
        carried.carry_identity(ds, first)
        carried.carry(ds, first, ["BodyPartExamined"])
        ds.SOPClassUID = SecondaryCaptureImageStorage
        ds.SOPInstanceUID = uids.make("report page", str(report.SOPInstanceUID), str(index))
        ds.SeriesInstanceUID = uids.make("report page series", str(report.SeriesInstanceUID))
        ds.Modality = "OT"
        ds.SeriesNumber = carried.series_number(first, None) - 1  # before the report itself
        ds.SeriesDescription = f"AI report page - {NOT_FOR_DIAGNOSIS}"
        ds.InstanceNumber = (int(report.InstanceNumber) - 1) * 100 + index
        ds.ImageType = ["DERIVED", "SECONDARY", "", "REPORT_PAGE"]
        ds.ConversionType = "WSD"
        for keyword in ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"):
            if keyword in report:
                ds[keyword] = report[keyword]
        identity.set_general_equipment(ds, *derivations)
        ds.ContributingEquipmentSequence = identity.contributing_equipment(first, *derivations)
        ds.ContentQualification = report.ContentQualification
        ds.DerivationDescription = f"Text of an AI report; {NOT_FOR_DIAGNOSIS}"
        ds.DerivationCodeSequence = [codes.item(codes.REPORT_PAGE)]
        ds.SourceImageSequence = [_source(source) for source in sources]
        ds.ReferencedInstanceSequence = [_report_reference(report)]
        ds.PatientOrientation = None
        carried.set_laterality(ds)
        ds.BurnedInAnnotation = "YES"
        ds.LossyImageCompression = "00"
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.WindowCenter, ds.WindowWidth = "128", "256"
        picture = _draw(lines, index, len(pages), str(report.ContentQualification))
        ds.Rows, ds.Columns = picture.shape
        set_pixels(ds, picture)
        codes.identify_scheme(ds, list(first.get("CodingSchemeIdentificationSequence") or []))
        check(ds)
        made.append(ds)
    return made


def _source(source: SourceResult) -> Dataset:
    item = source.reference.item()
    item.PurposeOfReferenceCodeSequence = [codes.item(codes.SOURCE_IMAGE)]
    item.SpatialLocationsPreserved = "NO"
    return item


def _report_reference(report: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = report.SOPClassUID
    item.ReferencedSOPInstanceUID = report.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [codes.item(codes.SOURCE_REPORT)]
    return item


# -- what it says ----------------------------------------------------------------------------------------


def _head(report: Dataset) -> Iterator[_Line]:
    yield _Line("Chest radiograph: report of an automatic analysis", _BODY, _WHITE)
    made = str(report.ContentDate)
    time = str(report.ContentTime)
    made = f"{made[:4]}-{made[4:6]}-{made[6:8]} {time[:2]}:{time[2:4]}"
    state = "complete" if report.CompletionFlag == "COMPLETE" else "PARTIAL: see below"
    yield _Line(f"Made {made}, {state}; not verified by a physician", _SMALL, _GREY)
    if report.get("PredecessorDocumentsSequence"):
        yield _Line("Replaces an earlier report on this study", _SMALL, _WHITE)
    yield _Line("")


def _body(sources: Sequence[SourceResult]) -> Iterator[_Line]:
    for index, source in enumerate(sources, 1):
        header = source.header
        numbers = [carried.number(header, k, 0) for k in ("SeriesNumber", "InstanceNumber")]
        view = str(header.get("ViewPosition") or "")
        view = f", {view}" if view in ("PA", "AP") else ""
        yield _Line(f"Image {index}: series {numbers[0]}, image {numbers[1]}{view}", _BODY, _WHITE)
        if source.refusal:
            yield _Line(f"NOT ANALYSED: {source.refusal}", indent=1)
        for outcome in source.outcomes:
            yield from _outcome(outcome)
        for warning in source.warnings:
            yield _Line(f"Note: {warning}", _SMALL, _GREY, 1)
        yield _Line("")


def _outcome(outcome: TaskOutcome) -> Iterator[_Line]:
    title = TITLES[outcome.task]
    if outcome.status != "done":
        words = "FAILED" if outcome.status == "failed" else "NOT ATTEMPTED"
        reason = f" ({outcome.reason})" if outcome.reason else ""
        yield _Line(f"{title}: {words}{reason}; this says nothing about the patient", indent=1)
    elif outcome.output is not None and not outcome.findings:
        yield _Line(f"{title}: done, see its series", indent=1)
    else:
        yield _Line(f"{title}:", indent=1)
    for finding in outcome.findings:
        scores = f"score {finding.score:.3f}, threshold {finding.threshold:.3f}"
        yield _Line(f"{finding.name}: {finding.decision.upper()}  ({scores})", _BODY, _WHITE, 2)
    if outcome.derivation is not None:
        made_by = outcome.derivation
        model = f"model {made_by.model_name} {made_by.model_version}, {made_by.model_digest[:23]}"
        yield _Line(model, _SMALL, _GREY, 2)


def _foot(report: Dataset) -> Iterator[_Line]:
    yield _Line("Conclusion", _BODY, _WHITE)
    (closing,) = (
        item.TextValue
        for container in report.ContentSequence
        for item in container.get("ContentSequence") or []
        if item.get("ValueType") == "TEXT"
        and item.ConceptNameCodeSequence[0].CodeValue == codes.CONCLUSION.value
    )
    yield _Line(str(closing), indent=1)
    yield _Line("")
    yield _Line(f"{identity.SOFTWARE}, report {report.SOPInstanceUID}", _SMALL, _GREY)


# -- how it looks ----------------------------------------------------------------------------------------


def _paginate(lines: Sequence[_Line]) -> list[list[_Line]]:
    """Wrapped to the page's width, and as many to a page as fit under its header."""
    room = ROWS - 2 * _MARGIN - 3 * _HEADING
    pages: list[list[_Line]] = [[]]
    for line in (part for whole in lines for part in _wrap(whole)):
        if sum(other.height for other in pages[-1]) + line.height > room:
            pages.append([])
        pages[-1].append(line)
    return pages


def _wrap(line: _Line) -> Iterator[_Line]:
    font = ImageFont.load_default(line.size)
    width = COLUMNS - 2 * _MARGIN - line.indent * _MARGIN
    text = ""
    # A word that is wider than the page (no space in a kilometre of message) is cut.
    words = [w[i : i + 60] for w in ascii_text(line.text).split(" ") for i in range(0, max(1, len(w)), 60)]
    for word in words:
        longer = f"{text} {word}" if text else word
        if text and font.getlength(longer) > width:
            yield _Line(text, line.size, line.level, line.indent)
            longer = word
        text = longer
    yield _Line(text, line.size, line.level, line.indent)


def _draw(lines: Sequence[_Line], index: int, count: int, qualification: str) -> NDArray[np.uint8]:
    """uint8 (ROWS, COLUMNS), white on black."""
    canvas = Image.new("L", (COLUMNS, ROWS), 0)
    pen = ImageDraw.Draw(canvas)
    header = f"AI - {'research - ' if qualification == 'RESEARCH' else ''}{NOT_FOR_DIAGNOSIS}"
    heading = ImageFont.load_default(_HEADING)
    pen.text((_MARGIN, _MARGIN), header, font=heading, fill=_WHITE)
    if count > 1:
        pen.text(
            (COLUMNS - _MARGIN, _MARGIN), f"page {index} of {count}", font=heading, fill=_WHITE, anchor="ra"
        )
    top = _MARGIN + 2 * _HEADING
    pen.line((_MARGIN, top, COLUMNS - _MARGIN, top), fill=_GREY, width=2)
    top += _HEADING
    for line in lines:
        font = ImageFont.load_default(line.size)
        pen.text((_MARGIN + line.indent * _MARGIN, top), line.text, font=font, fill=line.level)
        top += line.height
    return np.asarray(canvas)
