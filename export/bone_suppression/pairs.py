"""Pairs of a radiograph and the same without its bones, as a site can lay them down:

    DIR/cxr/NAME and DIR/soft_tissue/NAME   images (PNG, JPEG, TIFF; 8 or 16 bit; bone-bright) or DICOM files
    DIR/lungs/NAME                          lung masks as images, for those that have one; not needed
    DIR/**                                  DICOM alone: a soft-tissue image and its radiograph are found by
                                            study and by what the header says of the series

DICOM is read as the node reads what it receives (polarity, window, bit depth), so that a model learns from
what it will see. Images of two folders belong together by their names, DICOM files by names or by study.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from pacs_node.dicom.files import read_header
from pacs_node.dicom.identity import is_own_result
from pacs_node.errors import PacsNodeError, Refused
from pacs_node.route.scope import out_of_scope

IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
RADIOGRAPHS, TWINS, LUNGS = "cxr", "soft_tissue", "lungs"
#: What devices call the image without bones, in Series Description, Image Type and their like.
SOFT = r"soft[ _-]*tiss|\bsoft\b|bone[ _-]*(sup|remov|subtr|free|less)|\bweichteil"
#: And the image of the bones alone, which is not needed.
BONE = r"\bbones?\b|\bknochen"
_DESCRIPTIONS = (
    "SeriesDescription",
    "ImageType",
    "ProtocolName",
    "DerivationDescription",
    "AcquisitionDeviceProcessingDescription",
)


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with the data: what, where, why, and what to do."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.remedy}"


class DataError(PacsNodeError):
    """The training data cannot be used as it is; ``defects`` holds everything that is wrong."""

    def __init__(self, defects: Sequence[Defect]) -> None:
        self.defects = tuple(defects)
        count = len(defects)
        head = "" if count == 1 else f"{count} things are wrong with the data:\n  "
        super().__init__(head + "\n  ".join(map(str, defects)))


@dataclass(frozen=True)
class Found:
    """A pair on disk. ``patient`` keeps one patient's pairs on one side of the split: a digest of Patient ID,
    or of an image's file name.
    """

    name: str
    patient: str
    radiograph: Path
    soft_tissue: Path
    lungs: Path | None = None


@dataclass
class Findings:
    """What a folder holds: pairs, everything that is wrong, and what was left aside on purpose."""

    pairs: list[Found] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def digest(text: str) -> str:
    """What stands for a patient: no name, and the same wherever the files lie."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_dicom(path: Path) -> bool:
    """By the four letters after the preamble, or by the suffix."""
    if path.suffix.lower() in IMAGES:
        return False
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def find(folder: Path, soft: str = SOFT) -> Findings:
    """The pairs in ``folder``, laid down in one of the ways above.

    ``soft`` is the pattern (of :mod:`re`, whatever the case) that tells soft-tissue series in a folder of
    DICOM files. Nothing but headers is read.
    """
    if not folder.is_dir():
        return Findings(
            defects=[Defect(str(folder), "there is no such folder", "Give the folder that holds the pairs")]
        )
    halves = [folder / RADIOGRAPHS, folder / TWINS]
    there = [half.is_dir() for half in halves]
    if all(there):
        return _two_folders(folder)
    if any(there):
        return Findings(
            defects=[
                Defect(
                    str(halves[there.index(False)]),
                    f"is missing beside {halves[there.index(True)].name}/",
                    f"Put radiographs in {RADIOGRAPHS}/ and their twins, named alike, in {TWINS}/",
                )
            ]
        )
    found = _one_folder(folder, re.compile(soft, re.IGNORECASE))
    if not found.pairs and not found.defects:
        found.defects.append(
            Defect(
                str(folder),
                "holds no pairs: neither the two folders nor a DICOM series that says it is soft tissue",
                f"Make {RADIOGRAPHS}/ and {TWINS}/ with files named alike, or say by --soft-tissue PATTERN "
                "what the soft-tissue series are called",
            )
        )
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR"
    )


def _two_folders(folder: Path) -> Findings:
    result = Findings()
    sides: list[dict[str, Path]] = []
    for part in (RADIOGRAPHS, TWINS, LUNGS):
        by_name: dict[str, Path] = {}
        for path in _files(folder / part) if (folder / part).is_dir() else []:
            if path.suffix.lower() not in IMAGES and not is_dicom(path):
                result.notes.append(f"{path}: neither an image nor DICOM; left aside")
                continue
            key = path.relative_to(folder / part).with_suffix("").as_posix()
            if key in by_name:
                result.defects.append(
                    Defect(str(path), f"has the same name as {by_name[key].name}", "Keep one of the two")
                )
            by_name[key] = path
        sides.append(by_name)
    radiographs, twins, lungs = sides
    for half, files in ((RADIOGRAPHS, radiographs), (TWINS, twins)):
        if not files:
            result.defects.append(
                Defect(str(folder / half), "holds no images", "Put PNG, JPEG, TIFF or DICOM files there")
            )
    if result.defects:
        return result
    if not radiographs.keys() & twins.keys() and all(map(is_dicom, (*radiographs.values(), *twins.values()))):
        headers = [_headers(files.values(), result) for files in (radiographs, twins)]
        _by_study(folder, headers[0], headers[1], result)
        return result
    for key in sorted(radiographs.keys() | twins.keys()):
        if key in radiographs and key in twins:
            patient = digest(radiographs[key].name)
            if is_dicom(radiographs[key]):
                patient = _patient(radiographs[key]) or patient
            pair = Found(f"{folder.name}/{key}", patient, radiographs[key], twins[key], lungs.get(key))
            result.pairs.append(pair)
        else:
            here, there = (radiographs, TWINS) if key in radiographs else (twins, RADIOGRAPHS)
            result.defects.append(
                Defect(
                    str(here[key]),
                    f"has no twin {folder / there / key}.*",
                    "Add it, or take this file away",
                )
            )
    for key in sorted(lungs.keys() - radiographs.keys()):
        result.notes.append(f"{lungs[key]}: a lung mask of no radiograph; left aside")
    return result


def _patient(path: Path) -> str | None:
    """Whose a DICOM file is; None if it does not say or cannot be read (which reading it will tell)."""
    try:
        ds = read_header(path, any_uids=True)
    except Refused:
        return None
    return _owner(ds)


def _owner(ds: Dataset) -> str | None:
    owner = str(ds.get("PatientID") or "").strip() or str(ds.get("StudyInstanceUID") or "")
    return digest(owner) if owner else None


def _headers(paths: Iterable[Path], result: Findings) -> list[tuple[Path, Dataset]]:
    """Headers of images; own results and objects without pixels are left aside, broken files are defects."""
    found = []
    for path in paths:
        try:
            ds = read_header(path)
        except Refused as refusal:
            result.defects.append(Defect(str(path), refusal.reason, refusal.remedy or "Take the file away"))
            continue
        if is_own_result(ds):
            result.notes.append(f"{path}: a result of this node, not a measured truth; left aside")
        elif "Rows" in ds:
            found.append((path, ds))
    return found


def _one_folder(folder: Path, soft: re.Pattern[str]) -> Findings:
    result = Findings()
    files = [path for path in _files(folder) if is_dicom(path)]
    plain, twins, bones = [], [], 0
    for path, ds in _headers(files, result):
        words = " ".join(str(ds.get(k) or "") for k in _DESCRIPTIONS)
        if soft.search(words):
            twins.append((path, ds))
        elif re.search(BONE, words, re.IGNORECASE):
            bones += 1
        else:
            plain.append((path, ds))
    if bones:
        result.notes.append(f"{folder}: {bones} images of the bones alone are not needed; left aside")
    _by_study(folder, plain, twins, result)
    return result


def _by_study(
    folder: Path, plain: list[tuple[Path, Dataset]], twins: list[tuple[Path, Dataset]], result: Findings
) -> None:
    """Each soft-tissue image with the one radiograph of its study that it can belong to."""
    studies = defaultdict(list)
    for path, ds in plain:
        studies[ds.StudyInstanceUID].append((path, ds))
    taken: dict[Path, Path] = {}
    for path, twin in twins:
        candidates = _narrowed(twin, studies[twin.StudyInstanceUID])
        if len(candidates) != 1:
            what = "no radiograph" if not candidates else f"{len(candidates)} radiographs that it fits"
            result.defects.append(
                Defect(
                    str(path),
                    f"is a soft-tissue image whose study {twin.StudyInstanceUID} has {what}",
                    f"Add or take away files, or put the two into {RADIOGRAPHS}/ and {TWINS}/, named alike",
                )
            )
            continue
        ((radiograph, ds),) = candidates
        if radiograph in taken:
            result.defects.append(
                Defect(
                    str(path),
                    f"is a second soft-tissue image of {radiograph}, beside {taken[radiograph]}",
                    "Keep the one that shows the truth",
                )
            )
            continue
        taken[radiograph] = path
        patient = _owner(ds) or digest(str(radiograph))
        name = f"{folder.name}/{radiograph.relative_to(folder).with_suffix('').as_posix()}"
        result.pairs.append(Found(name, patient, radiograph, path))
    without = len(plain) - len(taken)
    if without and taken:
        result.notes.append(f"{folder}: {without} radiographs without a soft-tissue image are left aside")


def _narrowed(twin: Dataset, candidates: list[tuple[Path, Dataset]]) -> list[tuple[Path, Dataset]]:
    """The candidates that ``twin`` fits best: by the source it names, else by what the two have in common.

    Each test counts only where it leaves somebody.
    """
    sources = {str(item.get("ReferencedSOPInstanceUID")) for item in twin.get("SourceImageSequence") or []}
    tests: list[Callable[[Dataset], bool]] = [
        lambda ds: ds.SOPInstanceUID in sources,
        lambda ds: out_of_scope(ds) is None,
        *(
            (lambda ds, keyword=keyword: ds.get(keyword) == twin.get(keyword))  # type: ignore[misc]
            for keyword in ("Rows", "Columns", "ViewPosition", "AcquisitionNumber", "AcquisitionTime")
        ),
    ]
    for test in tests:
        candidates = [c for c in candidates if test(c[1])] or candidates
    return candidates
