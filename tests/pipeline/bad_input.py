"""Images as they should not be, and odd ones that are right: what a node meets in its life."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from tests.pipeline.conftest import chest


def _without(*keywords: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for keyword in keywords:
            del dataset[keyword]

    return change


def _truncated(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]


def _one_pixel(dataset: Dataset) -> None:
    dataset.Rows = dataset.Columns = 1
    dataset.PixelData = b"\1\0"


def _huge(dataset: Dataset) -> None:
    dataset.Rows = dataset.Columns = 60000


def _wrong_bits(dataset: Dataset) -> None:
    dataset.BitsStored, dataset.HighBit = 40, 39


def _undecodable(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51 this is no code stream"])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"


def _colour(dataset: Dataset) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)


def _multi_frame(dataset: Dataset) -> None:
    dataset.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData * 2


def _constant(dataset: Dataset) -> None:
    dataset.PixelData = bytes(len(dataset.PixelData))


def _lateral(dataset: Dataset) -> None:
    dataset.ViewPosition = "LL"


#: What must be refused: name to what makes it so of a good image.
REFUSED: dict[str, Callable[[Dataset], None]] = {
    "truncated": _truncated,
    "no-rows": _without("Rows"),
    "no-columns": _without("Columns"),
    "no-pixel-data": _without("PixelData"),
    "one-pixel": _one_pixel,
    "huge": _huge,
    "wrong-bits": _wrong_bits,
    "undecodable": _undecodable,
    "colour": _colour,
    "multi-frame": _multi_frame,
    "constant": _constant,
    "lateral": _lateral,
}


def _monochrome1(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation = "MONOCHROME1"
    pixels = np.frombuffer(dataset.PixelData, np.uint16)
    dataset.PixelData = (4095 - pixels).astype(np.uint16).tobytes()


def _padded(dataset: Dataset) -> None:
    pixels = np.frombuffer(dataset.PixelData, np.uint16).reshape(dataset.Rows, dataset.Columns).copy()
    pixels[:, :8] = 4095
    dataset.PixelData, dataset.PixelPaddingValue = pixels.tobytes(), 4095


def _modality_lut(dataset: Dataset) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "OD"
    table.LUTData = (np.arange(4096, dtype=np.uint16) * 2).tobytes()
    table["LUTData"].VR = "OW"
    dataset.ModalityLUTSequence = [table]


def _named(character_set: list[str], name: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = character_set, name

    return change


#: What is odd but right, and must be analysed.
ODD: dict[str, Callable[[Dataset], None]] = {
    "monochrome1": _monochrome1,
    "padded": _padded,
    "modality-lut": _modality_lut,
    "korean": _named(["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "japanese": _named(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "chinese": _named(["GB18030"], "Wang^XiaoDong=王^小东"),
}


def images() -> dict[str, Dataset]:
    """All of them by name, each in a study of its own."""
    made = {}
    for number, (name, change) in enumerate({**REFUSED, **ODD}.items(), start=100):
        made[name] = chest(1, study=number)
        change(made[name])
    return made
