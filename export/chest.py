"""``python -m export.chest``: the weights that tell an upright frontal chest from other images.

A logistic regression (ridge, Newton's method) on the ranks that ``pacs_node.infer.likeness`` takes. Chests
are NIH ChestX-ray14's No Finding images of the patients to train with, mirrored, moved, turned by up to 12
degrees, made smaller and larger, some in a white or black border; the others are the same lying, upside down
or inverted, and clouds. Everything else (limbs, a dog, laterals, other hospitals' chests) is only scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from export.anomaly import data as nih
from pacs_node.config import Config
from pacs_node.dicom.files import open_dicom
from pacs_node.dicom.pixels import read_radiograph
from pacs_node.infer.likeness import LEAST, SIDE, WEIGHTS, ranks

Array = np.ndarray
#: Weight of the ridge; looks of each radiograph; Newton's steps.
RIDGE, LOOKS, STEPS = 10.0, 3, 12


def moved(square: Array, rng: np.random.Generator) -> Array:
    """Another look of a square of ranks, as ranks."""
    middle = ((SIDE - 1) / 2, (SIDE - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, rng.uniform(-12, 12), np.exp(rng.uniform(-0.35, 0.2)))
    matrix[:, 2] += rng.uniform(-3, 3, 2)
    border = cv2.BORDER_CONSTANT if rng.random() < 0.3 else cv2.BORDER_REPLICATE
    level = float(rng.choice((-1, 1)))
    found = cv2.warpAffine(square, matrix, (SIDE, SIDE), borderMode=border, borderValue=level)
    return ranks((found + 1e-4 * rng.standard_normal(found.shape)).astype(np.float32))


def wrong(square: Array, rng: np.random.Generator) -> Array:
    """What is no upright chest: this one lying or upside down, inverted, or clouds."""
    chance = rng.random()
    if chance < 0.6:
        return np.rot90(square, rng.integers(1, 4))
    if chance < 0.8:
        return -np.rot90(square, rng.integers(0, 4))
    noise = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), np.exp(rng.uniform(-1.5, 2)))


def examples(squares: list[Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """(n, SIDE * SIDE + 1) with a column of ones, and (n,) of 1 for chests and 0."""
    chests, others = [], []
    for square in squares:
        for image in (square, square[:, ::-1]):
            for _ in range(LOOKS):
                chests.append(moved(np.ascontiguousarray(image), rng))
                others.append(moved(np.ascontiguousarray(wrong(image, rng)), rng))
    both = np.array(chests + others, np.float64)
    return np.c_[both, np.ones(len(both))], np.repeat([1.0, 0.0], len(chests))


def fit(given: Array, wanted: Array) -> Array:
    """Weights, the last one the constant."""
    weights = np.zeros(given.shape[1])
    ridge = RIDGE * np.eye(given.shape[1])
    for _ in range(STEPS):
        likely = 1 / (1 + np.exp(-given @ weights))
        slope = given.T @ (likely - wanted) + ridge @ weights
        certain = likely * (1 - likely) + 1e-4
        weights -= np.linalg.solve(given.T @ (given * certain[:, None]) + ridge, slope)
    return weights


def read(path: Path) -> Array:
    """A PNG, JPEG or DICOM file as ranks (SIDE, SIDE)."""
    if path.suffix == ".dcm":
        image = read_radiograph(open_dicom(path, 1 << 30), Config().limits.max_pixels).image
    else:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    return ranks(image).reshape(SIDE, SIDE)


def main() -> None:
    """Fits, prints the table, writes the weights."""
    parser = argparse.ArgumentParser(prog="python -m export.chest", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    records = nih.read_records(arguments.data)
    learnt = {record.path for record in nih.select(records, "train")}
    patients = {record.patient for record in records if record.path in learnt}
    unseen = [record.path for record in records if record.patient not in patients]
    weights = fit(*examples([read(path) for path in sorted(learnt)], np.random.default_rng(0)))
    np.save(arguments.out, weights.astype(np.float16))
    weights = np.load(arguments.out).astype(np.float64)

    folders = ("jsrt_bse/cxr", "des_szch/cxr", "des_gusarev/cxr", "dicom", "lateral")
    sets = {name: sorted(p for p in (arguments.data / name).iterdir() if p.is_file()) for name in folders}
    sets["dicom, others"] = [p for p in sets["dicom"] if p.name.startswith("NEG")]
    sets["dicom"] = [p for p in sets["dicom"] if p not in sets["dicom, others"]]
    squares = {name: [read(p) for p in paths] for name, paths in ({"nih, unseen": unseen} | sets).items()}
    for name, turns in (("lying", 1), ("upside down", 2)):
        squares[f"nih, {name}"] = [np.rot90(square, turns) for square in squares["nih, unseen"]]
    squares["nih, inverted"] = [-square for square in squares["nih, unseen"]]
    print("| images | n | least | second | median | largest | refused |\n|---|---|---|---|---|---|---|")
    for name, found in squares.items():
        scores = np.sort([square.ravel() @ weights[:-1] + weights[-1] for square in found])
        refused = int((scores < LEAST).sum())
        middle = np.median(scores)
        print(
            f"| {name} | {len(scores)} | {scores[0]:.1f} | {scores[1]:.1f} | {middle:.1f} | {scores[-1]:.1f} "
            f"| {refused} |"
        )


if __name__ == "__main__":
    main()
