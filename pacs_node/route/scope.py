"""Which header facts say that an object is not a frontal chest radiograph of a human.

A header that is silent passes: many modalities fill in little, and the pixels have their own checks later. A
header that speaks against it is believed. Each check stands for one attribute or a few that say the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset

from pacs_node.config.attributes import items, texts
from pacs_node.errors import Refused

# PS3.4 B.5: what can be a radiograph
_RADIOGRAPHS = {
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, For Presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, For Processing
}
# Gateways and archives convert radiographs to Secondary Capture; Modality then still says what took the
# picture
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MODALITIES = {"CR", "DX", "DR", "RG"}  # RG: film digitised; DR: not a defined term, but in use

# Body Part Examined: PS3.16 Annex L and the words that devices write. A value that names more than the chest
# (CHESTABDOMEN, a baby's whole trunk) or a part of it taken otherwise (RIB, STERNUM, TSPINE) is not a chest
# radiograph.
_CHEST_WORDS = {"CHEST", "THORAX", "LUNG", "LUNGS", "CXR", "TORAX", "TORACE", "TÓRAX"}
_EMPTY_WORDS = {"", "UNKNOWN", "OTHER", "NONE", "UNDEFINED", "UNSPECIFIED", "NA", "N A"}
_OTHER_PARTS = {
    *(
        "ABDOMEN",
        "ABD",
        "PELVIS",
        "RIB",
        "RIBS",
        "STERNUM",
        "SPINE",
        "TSPINE",
        "CLAVICLE",
        "SHOULDER",
        "SCAPULA",
    ),
    *("HEAD", "NECK", "HEART", "BREAST", "HIP", "HUMERUS", "WALL"),
}
# Anatomic Region Sequence: PS3.16 CID 4009 / 4031, with the SNOMED RT codes of older devices and SNOMED CT's
# own neighbours of the same meaning
_CHEST_CODES = {
    *("816094009", "51185008", "43799004", "39607008", "302551006", "181216001"),  # chest, thorax, lung
    *("T-D3000", "T-D3010", "T-28000", "R-FAB57"),
}

# View Position: PS3.3 C.8.1.4 (CR), C.8.11.1 (DX), and what devices write
_FRONTAL_VIEWS = {"PA", "AP", "FRONTAL", "FRN"}
_LATERAL_VIEWS = {"LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LATL", "LATR", "XTABLELAT"}
_OBLIQUE_VIEWS = {"RLO", "LLO", "RAO", "LAO", "RPO", "LPO", "RO", "LO", "OBL", "OBLIQUE"}
_DECUBITUS_VIEWS = {"RLD", "LLD", "DECUBITUS", "DECUB"}
_OTHER_VIEWS = {"AXIAL", "TANGENTIAL", "LORDOTIC", "TANG"}

# View Code Sequence: PS3.16 CID 4010, in SNOMED CT and SNOMED RT
_FRONTAL_CODES = {"399348003", "272479007", "399033003", "R-10206", "R-10214", "R-10202"}
_VIEW_CODES = {
    **dict.fromkeys(
        ("399067008", "399173006", "399198007", "399352003", "399260004", "30730003"), "a lateral view"
    ),
    **dict.fromkeys(("R-10236", "R-10232", "R-10228", "R-10224", "R-10226", "R-10204"), "a lateral view"),
    **dict.fromkeys(
        (
            *("399312000", "399160007", "399132005", "260427002", "399099002", "399135007", "399184004"),
            *("399006002", "260426006", "399368009", "399004004", "399225005", "399288005", "399182000"),
            *("399059000", "399356000", "399236003", "399038007", "399325008"),
        ),
        "an oblique view",
    ),
}

# Words in texts that describe this image or its series
_DESCRIPTIONS = (
    "SeriesDescription",
    "AcquisitionDeviceProcessingDescription",
    "ProtocolName",
    "PerformedProcedureStepDescription",
)
_ANIMAL = re.compile(r"(?i)\b(canine|feline|equine|bovine|porcine|avian|veterinary|dog|horse|puppy|kitten)\b")
_LATERAL = re.compile(r"(?i)\b(lat|lateral|llat|rlat|ll|latl|latr|laterale|profil|profile)\b")
_FRONTAL = re.compile(r"(?i)(\b(pa|ap|frontal|frn|front|face)\b|p\s*-?>\s*a|a\s*-?>\s*p)")
_HUMAN = {"337915000", "L-85B00"}  # Homo sapiens, in SNOMED CT and SNOMED RT


def out_of_scope(header: Dataset) -> Refused | None:
    """Why the header says that this is not a frontal chest radiograph; None if it does not say so.

    Codes: ``not-radiograph``, ``multi-frame``, ``localizer``, ``not-human``, ``not-chest``, ``not-frontal``.
    """
    for check in _CHECKS:
        if refusal := check(header):
            return refusal
    return None


def _refused(code: str, reason: str) -> Refused:
    return Refused(
        code,
        reason,
        "If the header is wrong, correct it at the modality; the object is kept and forwarded as it is",
    )


def _sop_class(header: Dataset) -> Refused | None:
    sop_class = _first(header, "SOPClassUID")
    if sop_class in _RADIOGRAPHS or not sop_class:
        return None
    modality = _first(header, "Modality").upper()
    if sop_class == _SECONDARY_CAPTURE:
        if modality in _MODALITIES:
            return None
        return _refused(
            "not-radiograph",
            f"a Secondary Capture whose Modality is {modality or 'absent'}, not one of "
            f"{', '.join(sorted(_MODALITIES))}",
        )
    return _refused("not-radiograph", f"its SOP Class {_name(sop_class)} is not CR or DX")


def _modality(header: Dataset) -> Refused | None:
    modality = _first(header, "Modality").upper()
    if modality and modality not in _MODALITIES:
        return _refused("not-radiograph", f"Modality is {modality}, not CR or DX")
    return None


def _frames(header: Dataset) -> Refused | None:
    frames = _first(header, "NumberOfFrames")
    if frames not in ("", "0", "1"):
        return _refused("multi-frame", f"it has {frames} frames; a radiograph has one")
    return None


def _localizer(header: Dataset) -> Refused | None:
    if "LOCALIZER" in (value.upper() for value in texts("ImageType", header)):
        return _refused("localizer", "Image Type says LOCALIZER")
    return None


def _species(header: Dataset) -> Refused | None:
    if _first(header, "AnatomicalOrientationType").upper() == "QUADRUPED":
        return _refused("not-human", "Anatomical Orientation Type is QUADRUPED")
    for _, code, meaning in _codes(header, "PatientSpeciesCodeSequence"):
        if code and code not in _HUMAN:
            return _refused("not-human", f"Patient Species Code is {code} ({meaning})")
    species = _first(header, "PatientSpeciesDescription")
    if species and species.lower() not in ("human", "homo sapiens"):
        return _refused("not-human", f"Patient Species Description is {species}")
    if texts("PatientBreedDescription", header):
        return _refused("not-human", "Patient Breed Description is given, which only animals have")
    for where, text in _described(header):
        if found := _ANIMAL.search(text):
            return _refused("not-human", f"{where} names an animal ({found[0].lower()})")
    return None


def _body_part(header: Dataset) -> Refused | None:
    value = _first(header, "BodyPartExamined").upper()
    words = set(re.findall(r"[^\W\d_]+", value))
    if " ".join(re.findall(r"[^\W\d_]+", value)) in _EMPTY_WORDS:
        return None
    if words & _CHEST_WORDS and not words & _OTHER_PARTS:
        return None
    return _refused("not-chest", f"Body Part Examined is {value}")


def _region(header: Dataset) -> Refused | None:
    regions = [(code, meaning) for _, code, meaning in _codes(header, "AnatomicRegionSequence") if code]
    if not regions or any(
        code in _CHEST_CODES or meaning.upper() in _CHEST_WORDS for code, meaning in regions
    ):
        return None
    code, meaning = regions[0]
    return _refused("not-chest", f"Anatomic Region Sequence is {code} ({meaning})")


def _view_position(header: Dataset) -> Refused | None:
    value = _first(header, "ViewPosition").upper()
    words = set(re.findall(r"[A-Z]+", value))
    if words & _FRONTAL_VIEWS and not words & (_OBLIQUE_VIEWS | _DECUBITUS_VIEWS):
        return None
    for views, name in (
        (_LATERAL_VIEWS, "a lateral view"),
        (_OBLIQUE_VIEWS, "an oblique view"),
        (_DECUBITUS_VIEWS, "a lateral decubitus view"),
        (_OTHER_VIEWS, "not a standard frontal view"),
    ):
        if words & views:
            return _refused("not-frontal", f"View Position is {value}, {name}")
    return None


def _view_code(header: Dataset) -> Refused | None:
    views = [(code, meaning) for _, code, meaning in _codes(header, "ViewCodeSequence")]
    if any(code in _FRONTAL_CODES for code, _ in views):
        return None
    for code, meaning in views:
        if code in _VIEW_CODES or _LATERAL.search(meaning) or "oblique" in meaning.lower():
            said = _VIEW_CODES.get(code, "not a frontal view")
            return _refused("not-frontal", f"View Code Sequence is {code} ({meaning}), {said}")
    return None


def _orientation(header: Dataset) -> Refused | None:
    """PS3.3 C.7.6.1.1.1: the first letter of each axis is its main direction. A frontal image has one axis
    along left-right and one along head-foot, and so none along anterior-posterior."""
    axes = [value[0].upper() for value in texts("PatientOrientation", header)]
    if len(axes) == 2 and set(axes) & {"A", "P"}:
        shown = "\\".join(texts("PatientOrientation", header))
        plane = "a lateral view" if set(axes) & {"H", "F"} else "an axial view"
        return _refused("not-frontal", f"Patient Orientation is {shown}, {plane}")
    return None


def _description(header: Dataset) -> Refused | None:
    """Texts of the image and its series; one that names a frontal view too says nothing of this image."""
    for where, text in _described(header):
        if _LATERAL.search(text) and not _FRONTAL.search(text) and not _first(header, "ViewPosition"):
            return _refused("not-frontal", f"{where} says lateral")
    return None


_CHECKS: tuple[Callable[[Dataset], Refused | None], ...] = (
    _sop_class,
    _modality,
    _frames,
    _localizer,
    _species,
    _body_part,
    _region,
    _view_position,
    _view_code,
    _orientation,
    _description,
)


def _first(header: Dataset, keyword: str) -> str:
    return next(iter(texts(keyword, header)), "")


def _name(sop_class: str) -> str:
    from pydicom.uid import UID

    uid = UID(sop_class)
    return uid.name if uid.name != uid else f"{sop_class} (private)"


def _codes(header: Dataset, keyword: str) -> Iterator[tuple[str, str, str]]:
    """(coding scheme, code value, meaning) of each item of a code sequence (PS3.3 section 8)."""
    for item in items(keyword, header):
        yield _first(item, "CodingSchemeDesignator"), _first(item, "CodeValue"), _first(item, "CodeMeaning")


def _described(header: Dataset) -> Iterator[tuple[str, str]]:
    for keyword in _DESCRIPTIONS:
        for text in texts(keyword, header):
            yield keyword, text.replace("_", " ")
    for _, _, meaning in _codes(header, "PerformedProtocolCodeSequence"):
        yield "PerformedProtocolCodeSequence", meaning.replace("_", " ")
