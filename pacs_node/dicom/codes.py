"""The coded concepts that the outputs use, each a named constant.

Standard concepts are from PS3.16; where a context group fits it is named. What the standard has no concept
for is coded in the private scheme ``99PACSNODE``, which every output that uses it identifies in its Coding
Scheme Identification Sequence (PS3.3 C.12.1.1.7, as PS3.16 section 8 asks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code

from pacs_node.dicom import uids
from pacs_node.tasks import Task

SCHEME = "99PACSNODE"
"""Designator of the private coding scheme; PS3.16 8.2 reserves the prefix 99 for such."""

# Equipment and derivation

ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
"""Purpose of reference of the source's modality in Contributing Equipment (CID 7005)."""

PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
"""Purpose of reference of this node in Contributing Equipment (CID 7005)."""

SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
"""Purpose of reference in Source Image Sequence (CID 7202)."""

BONE_SUPPRESSION = Code("BONE_SUPPRESSION", SCHEME, "Bone suppression by AI")
"""CID 7203 has no such derivation; 113062 (pixel by pixel subtraction) is only for a true subtraction."""

RESTORATION = Code("RESTORATION", SCHEME, "Image restoration by AI")
"""Raising the quality of a degraded radiograph; not in CID 7203."""

ANOMALY = Code("ANOMALY", SCHEME, "Anomaly detection by AI")
"""Scoring a radiograph against what is known of normal ones."""

ANOMALY_HEATMAP = Code("ANOMALY_HEATMAP", SCHEME, "Anomaly heatmap by AI")
"""A colour map of where the anomaly score comes from, burned over the radiograph."""

REPORT_PAGE = Code("REPORT_PAGE", SCHEME, "Page of a report")
"""A report drawn as an image, for systems that cannot show a Structured Report."""

SOURCE_REPORT = Code("REPORT", SCHEME, "Report that is shown")
"""Purpose of reference of the report that a page was drawn from."""

# Anatomy and procedure

CHEST = Code("816094009", "SCT", "Chest")
"""Anatomic Region of a chest radiograph whose header says so only in Body Part Examined."""

CHEST_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
"""Procedure Reported where the source has no usable Procedure Code Sequence."""

# Views (CID 4010)

POSTERO_ANTERIOR = Code("272479007", "SCT", "postero-anterior")
"""View Code of a PA radiograph."""

ANTERO_POSTERIOR = Code("399348003", "SCT", "antero-posterior")
"""View Code of an AP radiograph."""

# Report

MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
"""Root of TID 1500; viewers show a report with another title as a plain text tree."""

IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
"""TID 1600."""

IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
"""TID 1600, one group for the images read and one for the images made."""

SOURCE = Code("260753009", "SCT", "Source")
"""Purpose of reference of an Image Library entry that was read."""

IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
"""TID 1500 row 6: holds the measurement groups."""

PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
"""Names the imaging, not the algorithm."""

QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
"""TID 1500 row 12: what was done with each image, and the conclusion."""

CONCLUSION = Code("121077", "DCM", "Conclusion")
"""Concept of the closing text."""

COMMENT = Code("121106", "DCM", "Comment")
"""Concept of a reason or warning in words."""

MODALITY = Code("121139", "DCM", "Modality")
ROWS = Code("110910", "DCM", "Pixel Data Rows")
COLUMNS = Code("110911", "DCM", "Pixel Data Columns")
IMAGE_VIEW = Code("111031", "DCM", "Image View")
ORIENTATION_ROW = Code("111044", "DCM", "Patient Orientation Row")
ORIENTATION_COLUMN = Code("111043", "DCM", "Patient Orientation Column")
HORIZONTAL_SPACING = Code("111026", "DCM", "Horizontal Pixel Spacing")
VERTICAL_SPACING = Code("111066", "DCM", "Vertical Pixel Spacing")
"""The above: descriptors of an Image Library entry (TID 1602, 1603)."""

FINDING = Code("121071", "DCM", "Finding")
"""TID 1501: what the group is about."""

PRESENCE = Code("121052", "DCM", "Presence of property")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
"""CID 240: a named finding is there or is not."""

NORMALITY = Code("121402", "DCM", "Normality")
NORMAL = Code("17621005", "SCT", "Normal")
ABNORMAL = Code("263654008", "SCT", "Abnormal")
UNDETERMINED = Code("371934000", "SCT", "Normality Undetermined")
"""CID 222: the image is unlike normal ones, like them, or nobody knows."""

FAILURE = Code("114006", "DCM", "Measurement failure")
NOT_ATTEMPTED = Code("114007", "DCM", "Measurement not attempted")
"""CID 42: why a score has no value; never to be read as a negative result."""

ANALYSIS = Code("ANALYSIS", SCHEME, "Analysis by AI")
"""All that the node would have done with an image that it refused."""

RESULT_IMAGE = Code("RESULT_IMAGE", SCHEME, "Result image")
"""What an image task made."""

DONE = Code("DONE", SCHEME, "Done")
"""An image task came to its end and its result is referenced."""

ABNORMALITY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
"""The finding of a model that names none: something in the image is unlike normal ones."""

ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
"""Algorithm Family (CID 7162) in TID 4019."""

VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")
"""What a heatmap is to the score that it goes with."""

NO_UNITS = Code("1", "UCUM", "no units")
MILLIMETRE = Code("mm", "UCUM", "mm")
PIXELS = Code("{pixels}", "UCUM", "Pixels")
"""Units."""

DERIVATION: dict[Task, Code] = {
    Task.BONE_SUPPRESSION: BONE_SUPPRESSION,
    Task.RESTORATION: RESTORATION,
    Task.ANOMALY: ANOMALY,
}
"""The code of what each task does."""


class CodedName(Protocol):
    """A coded concept as a model card gives it."""

    @property
    def value(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def meaning(self) -> str: ...


def finding(code: CodedName | None) -> Code:
    """The concept of a finding: the model card's, or a general abnormality."""
    return ABNORMALITY if code is None else Code(code.value, code.scheme, code.meaning)


def score(name: str) -> Code:
    """The concept of a finding's score. Its meaning starts with the finding's name, which is what viewers
    show.

    Not 122157 (Probability): a score is no calibrated probability. Code values are limited to 16 characters,
    so the value is made of a digest of the name.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:10].upper()
    return Code(f"SCORE{digest}", SCHEME, f"{name[:1].upper()}{name[1:]} score"[:64])


def item(code: Code) -> Dataset:
    """``code`` as an item of a code sequence (PS3.3 table 8.8-1)."""
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return ds


def uses_private_scheme(ds: Dataset) -> bool:
    """Whether any code in ``ds``, however deep, is from the private scheme."""
    return any(designator == SCHEME for designator in _designators(ds))


def identification() -> Dataset:
    """The Coding Scheme Identification item of the private scheme (PS3.3 C.12.1.1.7)."""
    ds = Dataset()
    ds.CodingSchemeDesignator = SCHEME
    ds.CodingSchemeUID = uids.CODING_SCHEME
    ds.CodingSchemeName = "Concepts of pacs-node"
    ds.CodingSchemeVersion = "1"
    ds.CodingSchemeResponsibleOrganization = "pacs-node"
    return ds


def identify_scheme(ds: Dataset, carried: Sequence | list[Dataset] = ()) -> None:  # type: ignore[assignment]
    """Write Coding Scheme Identification Sequence: the source's items, and the private scheme if it is
    used.
    """
    items = [entry for entry in carried if entry.get("CodingSchemeDesignator") != SCHEME]
    if uses_private_scheme(ds):
        items.append(identification())
    if items:
        ds.CodingSchemeIdentificationSequence = items


def _designators(ds: Dataset) -> Iterator[str]:
    for element in ds.iterall():
        if element.keyword == "CodingSchemeDesignator":
            yield str(element.value)
