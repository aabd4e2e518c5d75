"""Radiographs and their soft-tissue twins, varied in bone strength and tone so that a model carries to other
makers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, from_numpy

from pacs_node.phantom import Phantom

SIZE = 512
Array = np.ndarray


@dataclass(frozen=True)
class Pair:
    """One radiograph (rows, columns) and the same without bones: uint8, bone-bright, of one size."""

    name: str
    radiograph: Array
    soft_tissue: Array


def held_out(name: str) -> bool:
    """Whether a JSRT image (one a patient) is left out of training: one in eight, by a hash of its file
    name.
    """
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 8 == 0


def read_pairs(folder: Path, size: int | None = SIZE) -> list[Pair]:
    """The pairs ``folder/cxr/NAME`` and ``folder/soft_tissue/NAME``; ``size`` None keeps the matrix as it is.

    Raises FileNotFoundError if there are none or a twin is missing, ValueError if one cannot be read or the
    two sizes differ
    by more than a pixel (a pixel is cut off).
    """
    names = sorted(p.name for p in (folder / "cxr").glob("*.*"))
    if not names:
        raise FileNotFoundError(
            f"{folder}/cxr holds no radiographs; give a folder with cxr/ and soft_tissue/"
        )
    pairs = []
    for name in names:
        paths = folder / "cxr" / name, folder / "soft_tissue" / name
        if not paths[1].exists():
            raise FileNotFoundError(f"{paths[0]} has no twin; expected {paths[1]}")
        both = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in paths]
        for path, image in zip(paths, both, strict=True):
            if image is None:
                raise ValueError(f"{path} is not a readable image")
        (rows, columns), (rows_of_twin, columns_of_twin) = both[0].shape, both[1].shape
        if abs(rows - rows_of_twin) > 1 or abs(columns - columns_of_twin) > 1:
            raise ValueError(
                f"{paths[0]} is {rows} x {columns}, its twin {rows_of_twin} x {columns_of_twin}; "
                "a pair must show the same field"
            )
        part = np.s_[: min(rows, rows_of_twin), : min(columns, columns_of_twin)]
        both = [image[part] for image in both]
        if size is not None:
            both = [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in both]
        pairs.append(Pair(f"{folder.name}/{name}", *both))
    return pairs


def phantoms(count: int, cache: Path, size: int = SIZE) -> list[Pair]:
    """Synthetic pairs in which bone and soft tissue are known exactly; kept in ``cache``."""
    file = cache / f"phantoms-{count}-{size}.npy"
    if not file.exists():
        images = []
        for seed in range(count):
            shown = Phantom(
                seed, "AP" if seed % 3 == 0 else "PA", "MF"[seed % 2], 25 + seed * 7 % 60, nodules=seed % 3
            ).render(size)
            images.append([np.round(np.clip(i, 0, 1) * 255) for i in (shown.radiograph, shown.soft_tissue)])
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, np.asarray(images, np.uint8))
    return [Pair(f"phantom/{seed}", *both) for seed, both in enumerate(np.load(file))]


def training_pairs(data: Path, cache: Path) -> list[Pair]:
    """JSRT without the patients held out, the Gusarev pairs and phantoms. The SZCH pairs are for validation
    alone.
    """
    jsrt = [p for p in read_pairs(data / "jsrt_bse") if not held_out(Path(p.name).name)]
    return jsrt + 2 * read_pairs(data / "des_gusarev") + phantoms(32, cache)


def vary(pair: Pair, rng: np.random.Generator) -> tuple[Array, Array]:
    """Stronger or weaker bones (0.8 to 3.5 times), another tone curve and contrast, mirrored or not.

    -> radiograph and soft tissue, float32 in [-1, 1]. What the model must learn is what bone looks like, not
    how strongly
    one maker shows it.
    """
    radiograph, soft = (image.astype(np.float32) / 255 for image in (pair.radiograph, pair.soft_tissue))
    radiograph = soft + np.exp(rng.uniform(np.log(0.8), np.log(3.5))).astype(np.float32) * (radiograph - soft)
    low = min(float(radiograph.min()), 0.0)
    high = max(float(radiograph.max()), 1.0)
    gamma, contrast = np.exp(rng.uniform(-0.5, 0.5)), rng.uniform(0.7, 1.1)
    offset = rng.uniform(-0.1, 0.1) + (1 - contrast) / 2
    mirrored = rng.random() < 0.5

    def toned(image: Array) -> Array:
        image = np.clip(np.clip((image - low) / (high - low), 0, 1) ** gamma * contrast + offset, 0, 1)
        return (image[:, ::-1] if mirrored else image) * 2 - 1

    return toned(radiograph), toned(soft)


def crops(images: list[tuple[Array, ...]], side: int, rng: np.random.Generator) -> list[Tensor]:
    """The same random square of each tuple's images, as one (N, 1, side, side) tensor a member of the
    tuples.
    """
    cut = []
    for same_field in images:
        top, left = rng.integers(0, same_field[0].shape[0] - side + 1, size=2)
        cut.append([image[top : top + side, left : left + side] for image in same_field])
    return [
        from_numpy(np.ascontiguousarray(np.stack(members)[:, None], np.float32))
        for members in zip(*cut, strict=True)
    ]
