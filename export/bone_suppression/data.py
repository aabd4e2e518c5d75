"""What training draws from: squares of pairs kept ready, varied in bones and tone, in a fixed order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, from_numpy

from export.bone_suppression.pairs import SOFT, DataError, Defect, digest, find
from export.bone_suppression.reading import LEVELS, fault, read_alone, read_pair, square
from pacs_node.phantom import Phantom

Array = np.ndarray
#: One patient in this many is left out of training, to validate.
HELD_OUT = 8
#: What an opacity adds at least where it is seen, as a share of the range from black to white.
SEEN = 0.01
#: Spread of a source's brightnesses, as a share of their mean, that is left alone: bones and noise make 0.010
#: in projections of a CT and 0.005 in Gusarev's pairs; SZCH's have 0.043.
EVEN = 0.02


@dataclass(frozen=True)
class Squares:
    """Planes (k, S, S) uint16 from black to white, bone-bright: a radiograph (k = 1), its soft tissue (2),
    its lungs (3). ``name`` is source/file. ``brightness``: of the soft tissue as a share of the radiograph's
    where there is no bone, as it is in the planes and as it is to be drawn.
    """

    name: str
    patient: str
    planes: Array
    brightness: tuple[float, float] = (1.0, 1.0)

    @property
    def source(self) -> str:
        """The folder that it came from."""
        return self.name.split("/")[0]


def held_out(patient: str) -> bool:
    """Whether a patient (a digest) is left out of training."""
    return int(patient, 16) % HELD_OUT == 0


def left_out(patients: Iterable[str]) -> set[str]:
    """Those to validate with: by their digests, so that they stay the same when others join; of few, one."""
    everyone = set(patients)
    out = {p for p in everyone if held_out(p)}
    return out if out and len(out) < len(everyone) else {min(everyone)}


def split(pairs: Sequence[Squares]) -> tuple[list[Squares], list[Squares]]:
    """Pairs to train and to validate with, no patient in both. Raises DataError for one patient alone."""
    out = left_out(p.patient for p in pairs)
    learnt = [p for p in pairs if p.patient not in out]
    if not learnt:
        raise DataError(
            [
                Defect(
                    "the training data",
                    f"has {len(pairs)} pairs of one patient; one must be left out to validate with",
                    "Give pairs of two patients at least (images of other names, DICOM of other Patient IDs)",
                )
            ]
        )
    return learnt, [p for p in pairs if p.patient in out]


def levelled(pairs: Sequence[Squares]) -> list[Squares]:
    """The same pairs, the soft tissue of each source in one brightness, the mean of theirs, if they differ.

    Where a maker's processing sets the brightness of each soft-tissue image anew (of three pairs of SZCH's to
    0.90, 0.95 and 1.00 of the radiograph's), nothing in the radiograph tells to which: learnt as they are,
    the pairs contradict each other, and a radiograph that is new gets the brightness of any of them.
    """
    own = np.array([_brightness(p) for p in pairs])
    means: dict[str, float] = {}
    for source in {p.source for p in pairs}:
        some = own[[p.source == source for p in pairs]]
        if some.std() > EVEN * some.mean():
            means[source] = float(some.mean())
    return [
        replace(p, brightness=(float(share), means[p.source])) if p.source in means else p
        for p, share in zip(pairs, own, strict=True)
    ]


def _brightness(pair: Squares) -> float:
    """The soft tissue's brightness as a share of the radiograph's, where there is no bone.

    Bone makes the share less, so it is the upper quartile of what is not black.
    """
    small = (cv2.resize(plane, (128, 128), interpolation=cv2.INTER_AREA) for plane in pair.planes[:2])
    radiograph, soft = (plane.astype(np.float32) / LEVELS for plane in small)
    seen = radiograph > 0.1
    return float(np.percentile(soft[seen] / radiograph[seen], 75)) if seen.any() else 1.0


def kept(cache: Path, key: str, make: Callable[[], Array]) -> Array:
    """``make()``, or what it gave before under this key; mapped from disk, so that processes share it."""
    path = cache / "squares" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, make())
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


def _state(*paths: Path | None) -> str:
    """Changes when the files do."""
    return "|".join(f"{p.resolve()}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths if p)


def load(
    folders: Sequence[Path],
    size: int,
    cache: Path,
    *,
    tone: str = "own",
    soft: str = SOFT,
    skip_defects: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Squares]:
    """All pairs of the folders at ``size``, kept in ``cache``.

    Raises DataError with all defects of all pairs, unless they are to be skipped (``tell`` then names them).
    """
    pairs: list[Squares] = []
    defects: list[Defect] = []
    for folder in folders:
        findings = find(folder, soft)
        defects += findings.defects
        for number, found in enumerate(findings.pairs, 1):
            try:
                planes = kept(
                    cache,
                    f"pair {size} {tone} {_state(found.radiograph, found.soft_tissue, found.lungs)}",
                    lambda found=found: read_pair(found, tone).planes(size),  # type: ignore[misc]
                )
            except DataError as error:
                defects += error.defects
                continue
            pairs.append(Squares(found.name, found.patient, planes))
            if number % 50 == 0:
                tell(f"{folder}: {number} of {len(findings.pairs)} pairs")
    if defects and not skip_defects:
        raise DataError(defects)
    for defect in defects:
        tell(f"left out: {defect}")
    if not pairs:
        raise DataError(defects)
    return pairs


def phantoms(count: int, size: int, cache: Path) -> list[Squares]:
    """Synthetic pairs in which bone, soft tissue and lungs are known exactly."""

    def planes(seed: int) -> Array:
        view = "AP" if seed % 3 == 0 else "PA"
        shown = Phantom(seed, view, "MF"[seed % 2], 25 + seed * 7 % 60, nodules=seed % 3).render(size)
        return np.stack(
            [
                square(image.astype(np.float32), size)
                for image in (shown.radiograph, shown.soft_tissue, shown.lung_mask)
            ]
        )

    return [
        Squares(
            f"phantom/{seed}",
            digest(f"phantom {seed}"),
            kept(cache, f"phantom {seed} {size}", lambda seed=seed: planes(seed)),  # type: ignore[misc]
        )
        for seed in range(count)
    ]


def alone(paths: Sequence[Path], size: int, cache: Path) -> list[Squares]:
    """Radiographs without twins, from which an autoencoder learns too. Raises DataError."""
    if not paths:
        raise fault(Path("--unpaired"), "holds no images", "Give a folder of PNG, JPEG, TIFF or DICOM files")
    return [
        Squares(
            f"{path.parent.name}/{path.stem}",
            digest(path.name),
            kept(
                cache,
                f"alone {size} {_state(path)}",
                lambda path=path: square(read_alone(path), size)[None],  # type: ignore[misc]
            ),
        )
        for path in paths
    ]


@dataclass(frozen=True)
class Order:
    """Every item once an epoch, in an order that the seed and the epoch alone decide."""

    items: int
    batch: int
    seed: int

    def __call__(self, iteration: int, index: int) -> int:
        """Which item is number ``index`` of this iteration's batch."""
        epoch, place = divmod(iteration * self.batch + index, self.items)
        return int(_shuffled(self.items, self.seed, epoch)[place])


@lru_cache(maxsize=4)
def _shuffled(items: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng((seed, epoch, items)).permutation(items)


def opacities(shape: tuple[int, int], side: int, rng: np.random.Generator) -> Array:
    """What round or oval shadows of 5 to 40 mm add to a window (H, W) of an image ``side`` wide.

    They belong to radiograph and soft tissue alike, so that a model learns to leave nodules where they are,
    across ribs, too. An image is taken to be 400 mm wide.
    """
    height, width = shape
    found = np.zeros(shape, np.float32)
    for _ in range(rng.poisson(0.5 + 16 * height * width / side**2)):
        long = np.exp(rng.uniform(np.log(5 / 800), np.log(40 / 800))) * side
        short, turn, steep = long * rng.uniform(0.6, 1), rng.uniform(0, np.pi), rng.uniform(0.5, 1.5)
        strength = np.exp(rng.uniform(np.log(0.02), np.log(0.2))) * rng.choice((1, 1, 1, 1, -0.5))
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        reach = int(long) + 1
        top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
        part = found[top : int(y) + reach + 1, left : int(x) + reach + 1]
        rows, columns = np.ogrid[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]]
        along = (columns * np.cos(turn) + rows * np.sin(turn)) / long
        across = (rows * np.cos(turn) - columns * np.sin(turn)) / short
        # A ball's shadow is its chord, steep = 0.5; flatter rims have less.
        part += strength * np.clip(1 - along**2 - across**2, 0, None).astype(np.float32) ** np.float32(steep)
    return found


def cut(planes: Sequence[Array], side: int, rng: np.random.Generator) -> list[Array]:
    """A square of ``side`` pixels of each plane; in three of four cases moved, turned and sized anew.

    By up to an eighth of the side, 20 degrees, and to 0.62 to 1.3 times the size: the crooked, the small and
    the widely framed. What lies beyond the image is mirrored or, as often, black, white or grey like the
    border of a plate.
    """
    whole = planes[0].shape[-1]
    top, left = rng.integers(0, whole - side + 1, size=2)
    if rng.random() < 0.25:
        return [plane[top : top + side, left : left + side] for plane in planes]
    scale, angle = np.exp(rng.uniform(np.log(0.62), np.log(1.3))), np.deg2rad(rng.uniform(-20, 20))
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    middle = np.array([left, top]) + (side - 1) / 2 + rng.uniform(-side / 8, side / 8, size=2)
    there = np.column_stack([matrix, middle - matrix @ np.full(2, (side - 1) / 2)])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    mirrored, grey = rng.random() < 0.5, float(rng.choice((0.0, 1.0, rng.random())))
    border = cv2.BORDER_REFLECT if mirrored else cv2.BORDER_CONSTANT
    if scale < 1:  # warpAffine takes single values, which would make edges jagged
        planes = [cv2.GaussianBlur(plane, (0, 0), 0.5 * math.sqrt(scale**-2 - 1)) for plane in planes]
    return [
        cv2.warpAffine(
            plane, there, (side, side), flags=flags, borderMode=border, borderValue=grey if number < 2 else 0
        )
        for number, plane in enumerate(planes)
    ]


def vary(planes: Sequence[Array], rng: np.random.Generator) -> list[Array]:
    """Stronger or weaker bones (0.8 to 3.5 times), another tone and contrast.

    A radiograph and, if it has them, soft tissue and lungs; in [0, 1] and staying there. What the model must
    learn is what bone looks like, not how strongly one maker shows it.
    """
    images = list(planes[:2])
    if len(images) == 2:
        strength = np.float32(np.exp(rng.uniform(np.log(0.8), np.log(3.5))))
        images[0] = images[1] + strength * (images[0] - images[1])
    low, high = min(float(images[0].min()), 0.0), max(float(images[0].max()), 1.0)
    gamma, contrast = np.exp(rng.uniform(-0.5, 0.5)), rng.uniform(0.7, 1.1)
    offset = rng.uniform(-0.1, 0.1) + (1 - contrast) / 2
    for number, image in enumerate(images):
        toned = np.clip((image - low) / (high - low), 0, 1) ** np.float32(gamma)
        images[number] = np.clip(toned * np.float32(contrast) + np.float32(offset), 0, 1)
    return [*images, *planes[2:]]


def processed(planes: Sequence[Array], rng: np.random.Generator) -> list[Array]:
    """As another maker would show them: detail of some width stronger or weaker, contrast evened, noise.

    Each of the three in some cases only, and of a radiograph and its soft tissue alike: what is between the
    two stays bone. In [0, 1] and staying there; lungs as they are.
    """
    images = list(planes[:2])
    if rng.random() < 0.5:
        amount, width = np.float32(rng.uniform(-0.4, 0.8)), math.exp(rng.uniform(math.log(1.5), math.log(50)))
        images = [image + amount * (image - blurred(image, width)) for image in images]
    if rng.random() < 0.25:
        width, usual = math.exp(rng.uniform(math.log(20), math.log(80))), rng.uniform(0.06, 0.2)
        wide = [blurred(image, width) for image in images]
        spread = np.sqrt(np.maximum(blurred(np.square(images[0] - wide[0]), width), 0))
        gain = np.clip(np.float32(usual) / (spread + np.float32(0.02)), 0.6, 2.5)
        images = [mean + gain * (image - mean) for image, mean in zip(images, wide, strict=True)]
    if rng.random() < 0.3:
        grains = rng.standard_normal(images[0].shape, dtype=np.float32)
        noise = np.float32(math.exp(rng.uniform(math.log(0.005), math.log(0.05)))) * grains
        images = [image + noise for image in images]
    return [*(np.clip(image, 0, 1) for image in images), *planes[2:]]


def blurred(image: Array, sigma: float) -> Array:
    """By a Gaussian of ``sigma`` pixels; wide ones at a fraction of the size, in a tenth of the time."""
    shrink = 2 ** max(0, int(math.log2(sigma / 2.5)))
    rows, columns = image.shape
    size = max(1, columns // shrink), max(1, rows // shrink)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / shrink)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR))


@dataclass(frozen=True)
class Example:
    """Images (1, H, W) in [-1, 1]: a radiograph and, if it has one, its soft tissue. ``opacities``: where
    such were added to both, (1, H, W) in [0, 1].
    """

    images: list[Tensor]
    opacities: Tensor


def draw(
    squares: Squares,
    rng: np.random.Generator,
    *,
    crop: int = 0,
    varied: bool = False,
    as_they_are: float = 0.0,
    masked: bool = False,
) -> Example:
    """One example of ``crop`` pixels a side: the whole square if that is 0.

    ``varied``: with opacities, mirrored or not, and all but the share ``as_they_are`` also cut, varied and
    processed as those functions do. ``masked``: black outside the lungs, as GL-LCM's local path sees a
    radiograph.
    """
    whole = squares.planes.shape[-1]
    planes = [plane.astype(np.float32) / LEVELS for plane in squares.planes]
    own, wanted = squares.brightness
    if own != 1:  # what is left between the two is bone, which may be varied
        planes[1] = np.clip(planes[1] / np.float32(own), 0, 1)
    if varied and rng.random() >= as_they_are:
        planes = processed(vary(cut(planes, crop or whole, rng), rng), rng)
    elif crop:
        top, left = rng.integers(0, whole - crop + 1, size=2)
        planes = [plane[top : top + crop, left : left + crop] for plane in planes]
    added = np.zeros_like(planes[0])
    if varied:
        added = opacities(planes[0].shape, whole, rng)
        planes = [*(np.clip(image + added, 0, 1) for image in planes[:2]), *planes[2:]]
    if wanted != 1:
        planes[1] = np.clip(planes[1] * np.float32(wanted), 0, 1)
    images = [image * planes[2] for image in planes[:2]] if masked else planes[:2]
    both = [*(image * 2 - 1 for image in images), np.minimum(np.abs(added) / SEEN, 1)]
    if varied and rng.random() < 0.5:
        both = [image[:, ::-1] for image in both]
    *shown, where = (from_numpy(np.ascontiguousarray(image)[None]) for image in both)
    return Example(shown, where)
