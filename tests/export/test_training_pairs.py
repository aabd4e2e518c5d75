"""Pairs as sites lay them down: images and DICOM files are found and read; what is wrong is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from export.__main__ import main
from export.bone_suppression.pairs import DataError, find
from export.bone_suppression.reading import read_pair
from pacs_node.dicom.files import encode
from pacs_node.dicom.identity import MANUFACTURER, MODEL_NAME
from pacs_node.phantom import Phantom, PhantomImages
from pacs_node.phantom.dicom import Acquisition, image

SIZE = 160


@pytest.fixture(scope="module")
def shown() -> list[PhantomImages]:
    return [Phantom(seed).render(SIZE) for seed in (3, 4)]


def levels(picture: np.ndarray, bits: int) -> np.ndarray:
    values = np.rint(np.clip(picture, 0, 1) * ((1 << bits) - 1))
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def lay(folder: Path, name: str, radiograph: np.ndarray, soft: np.ndarray | None) -> None:
    """Writes one pair of integers as ``cxr/name`` and ``soft_tissue/name``."""
    for part, values in (("cxr", radiograph), ("soft_tissue", soft)):
        if values is not None:
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / part / name, quality=95)


@pytest.mark.parametrize(
    ("name", "bits", "near"),
    [("a.png", 8, 0.003), ("a.png", 12, 2e-4), ("a.tif", 16, 2e-5), ("sub/a.jpg", 8, 0.06)],
)
def test_images_are_read_whatever_their_form(
    tmp_path: Path, shown: list[PhantomImages], name: str, bits: int, near: float
) -> None:
    for part in ("cxr", "soft_tissue", "lungs"):
        (tmp_path / part / name).parent.mkdir(parents=True)
    lay(tmp_path, name, levels(shown[0].radiograph, bits), levels(shown[0].soft_tissue, bits))
    Image.fromarray(shown[0].lung_mask).save(tmp_path / "lungs" / Path(name).with_suffix(".png"))
    findings = find(tmp_path)
    assert not findings.defects
    (found,) = findings.pairs
    read = read_pair(found)
    # Bits are told by the largest value: the phantom's brightest pixel is white.
    assert read.bits == (bits, bits)
    assert np.abs(read.radiograph - np.clip(shown[0].radiograph, 0, 1)).max() < near
    assert np.abs(read.soft_tissue - np.clip(shown[0].soft_tissue, 0, 1)).max() < near
    assert (read.lungs > 0.5).mean() == pytest.approx(shown[0].lung_mask.mean())
    planes = read.planes(64)
    assert planes.shape == (3, 64, 64)
    assert planes.dtype == np.uint16


Breakage = Callable[[Path, list[PhantomImages]], None]


def without_twin(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", levels(shown[1].radiograph, 8), None)


def other_matrix(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", levels(shown[1].radiograph, 8), levels(shown[1].soft_tissue, 8)[:-2])


def colours(folder: Path, shown: list[PhantomImages]) -> None:
    red = np.stack([levels(shown[1].radiograph, 8), *[levels(shown[1].soft_tissue, 8)] * 2], axis=-1)
    lay(folder, "b.png", red, red)


def cut_short(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", levels(shown[1].radiograph, 8), levels(shown[1].soft_tissue, 8))
    path = folder / "cxr" / "b.png"
    path.write_bytes(path.read_bytes()[:3000])


def no_image(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", levels(shown[1].radiograph, 8), levels(shown[1].soft_tissue, 8))
    (folder / "cxr" / "b.png").write_text("what was here?")


def one_inverted(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", levels(shown[1].radiograph, 8), 255 - levels(shown[1].soft_tissue, 8))


def both_inverted(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", 255 - levels(shown[1].radiograph, 8), 255 - levels(shown[1].soft_tissue, 8))


def the_same(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", *[levels(shown[1].radiograph, 8)] * 2)


def another_patient(folder: Path, shown: list[PhantomImages]) -> None:
    mirrored = np.ascontiguousarray(np.rot90(levels(shown[1].soft_tissue, 8)))
    lay(folder, "b.png", levels(shown[1].radiograph, 8), mirrored)


def without_contrast(folder: Path, shown: list[PhantomImages]) -> None:
    lay(folder, "b.png", levels(shown[1].radiograph, 8), np.full((SIZE, SIZE), 9, np.uint8))


def named_twice(folder: Path, shown: list[PhantomImages]) -> None:
    for name in ("b.png", "b.jpg"):
        lay(folder, name, levels(shown[1].radiograph, 8), levels(shown[1].soft_tissue, 8))


@pytest.mark.parametrize(
    ("broken", "what", "remedy"),
    [
        (without_twin, "has no twin", "Add it"),
        (other_matrix, "is 160 x 160, its twin", "export both alike"),
        (colours, "colour", "grey"),
        (cut_short, "cannot be read", "Copy the file again"),
        (no_image, "no image that can be read", "Give PNG"),
        (one_inverted, "each other's negative", "Invert one"),
        (both_inverted, "looks inverted", "invert both"),
        (the_same, "the same image", "export it anew"),
        (another_patient, "do not show the same", "names belong together"),
        (without_contrast, "are alike", "image with content"),
        (named_twice, "has the same name as", "Keep one"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path,
    shown: list[PhantomImages],
    capsys: pytest.CaptureFixture[str],
    broken: Breakage,
    what: str,
    remedy: str,
) -> None:
    lay(tmp_path, "a.png", levels(shown[0].radiograph, 8), levels(shown[0].soft_tissue, 8))
    broken(tmp_path, shown)
    with pytest.raises(SystemExit) as stop:
        main(["pairs", "bone_suppression", "--pairs", str(tmp_path)])
    message = str(stop.value)
    assert "b." in message
    assert what in message
    assert remedy in message
    if broken is not named_twice:  # which may spoil any pair
        assert "/a: 160 x 160, 8 bits" in capsys.readouterr().out


def test_a_folder_without_pairs_is_told_what_to_hold(tmp_path: Path) -> None:
    (empty,) = find(tmp_path).defects
    assert "holds no pairs" in str(empty)
    (tmp_path / "cxr").mkdir()
    (half,) = find(tmp_path).defects
    assert "soft_tissue" in str(half)
    (absent,) = find(tmp_path / "elsewhere").defects
    assert "no such folder" in str(absent)


def radiograph(seed: int, number: int = 1, **how: object) -> Dataset:
    return image(seed, number, Acquisition(rows=SIZE, columns=SIZE, **how))


def twin(source: Dataset, soft: np.ndarray, description: str, *, inverted: bool = False) -> Dataset:
    """What a dual-energy unit adds to the study: another series with its own pixels, window and polarity."""
    ds = copy.deepcopy(source)
    ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SeriesDescription = description
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    values = 100 + np.rint(np.clip(1 - soft if inverted else soft, 0, 1) * 3000)
    ds.PixelData = values.astype("<u2").tobytes()
    ds.WindowCenter, ds.WindowWidth = "1600.5", "3001"
    return ds


def put(folder: Path, name: str, ds: Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(encode(ds))
    return path


@pytest.mark.slow
def test_dicom_pairs_are_found_in_one_folder_of_studies(tmp_path: Path, shown: list[PhantomImages]) -> None:
    """Beside the pair: the bones alone, a lateral, a result of this node, a study without soft tissue."""
    source = radiograph(3, bits=10)
    put(tmp_path / "one", "IM0", source)
    soft = twin(source, shown[0].soft_tissue, "CHEST PA Soft Tissue", inverted=True)
    put(tmp_path / "one", "IM1", soft)
    put(tmp_path / "one", "IM2", twin(source, shown[0].bone, "CHEST PA Bone"))
    lateral = twin(source, shown[0].radiograph, "CHEST LAT")
    lateral.ViewPosition = "LL"
    put(tmp_path / "one", "IM3", lateral)
    own = twin(source, shown[0].soft_tissue, "Bone suppressed (AI)")
    own.Manufacturer, own.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    put(tmp_path / "one", "IM4", own)
    put(tmp_path / "two", "IM0", radiograph(4))
    (tmp_path / "notes.txt").write_text("not DICOM")
    findings = find(tmp_path)
    assert not findings.defects
    (found,) = findings.pairs
    assert (found.radiograph.name, found.soft_tissue.name) == ("IM0", "IM1")
    assert any("a result of this node" in note for note in findings.notes)
    read = read_pair(found)
    assert read.bits == (10, 12)
    assert np.abs(read.radiograph - shown[0].radiograph).max() < 1e-3
    assert np.abs(read.soft_tissue - shown[0].soft_tissue).max() < 1e-3
    assert found.patient != find(tmp_path / "two").defects  # one without a twin is no pair
    assert "PHANTOM" not in found.patient


@pytest.mark.slow
def test_two_exposures_of_one_study_are_told_apart_by_what_they_name(
    tmp_path: Path, shown: list[PhantomImages]
) -> None:
    sources = [radiograph(3, number) for number in (1, 2)]
    for ds in sources:
        del ds.AcquisitionNumber, ds.AcquisitionTime
    twins = [twin(ds, shown[0].soft_tissue, "Weichteil") for ds in sources]
    for number, ds in enumerate((*sources, *twins)):
        put(tmp_path, f"{number}.dcm", ds)
    findings = find(tmp_path)
    assert not findings.pairs
    assert all("2 radiographs" in str(d) and "named alike" in str(d) for d in findings.defects)
    for number, (ds, source) in enumerate(zip(twins, reversed(sources), strict=True)):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        ds.SourceImageSequence = [item]
        put(tmp_path, f"{2 + number}.dcm", ds)
    findings = find(tmp_path)
    assert not findings.defects
    assert [(p.radiograph.name, p.soft_tissue.name) for p in findings.pairs] == [
        ("1.dcm", "2.dcm"),
        ("0.dcm", "3.dcm"),
    ]


@pytest.mark.slow
def test_dicom_in_two_folders_is_matched_by_study_where_names_differ(
    tmp_path: Path, shown: list[PhantomImages]
) -> None:
    for seed, images in zip((3, 4), shown, strict=True):
        source = radiograph(seed)
        put(tmp_path / "cxr", f"radiograph-{seed}", source)
        put(tmp_path / "soft_tissue", f"export-{9 - seed}", twin(source, images.soft_tissue, "processed"))
    findings = find(tmp_path)
    assert not findings.defects
    assert [p.soft_tissue.name for p in findings.pairs] == ["export-5", "export-6"]
    assert len({p.patient for p in findings.pairs}) == 2
    # The same scale of the detector: shown by the radiograph's window, the twin keeps its tone.
    assert read_pair(findings.pairs[0]).correlation > 0.98
    path = findings.pairs[1].soft_tissue
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"export-\d: .* Send the object again"):
        read_pair(findings.pairs[1])


def test_the_window_of_the_radiograph_can_show_both(tmp_path: Path) -> None:
    source = radiograph(3, bits=12)
    values = np.frombuffer(source.PixelData, "<u2").reshape(SIZE, SIZE).astype(np.float32)
    darker = cv2.GaussianBlur(values, (0, 0), 2) - 100
    soft = twin(source, np.zeros((SIZE, SIZE), np.float32), "soft tissue")
    soft.PixelData = np.clip(np.rint(darker), 0, 4095).astype("<u2").tobytes()
    put(tmp_path, "a", source)
    put(tmp_path, "b", soft)
    (found,) = find(tmp_path).pairs
    changes = {tone: read_pair(found, tone).change for tone in ("own", "radiograph")}
    width = 0.9 * 4095
    assert changes["radiograph"] == pytest.approx(100 / width, abs=5e-3)
    assert abs(changes["own"] - changes["radiograph"]) > 0.01
