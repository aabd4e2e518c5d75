"""Films that look different: turned, sized and framed otherwise, of another tone, processing or noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from export.bone_suppression.evaluation.cases import TITLES, Array, words
from export.bone_suppression.evaluation.part import Bench, Part
from export.bone_suppression.evaluation.pictures import sheet
from export.bone_suppression.evaluation.statistics import shown, summary, table
from export.bone_suppression.metrics import bone_suppression_ratio, psnr

#: A radiograph and its soft tissue (rows, columns) in [0, 1] -> both of them, varied alike; clipped later.
Variation = Callable[[Array, Array], tuple[Array, Array]]
#: Pairs of a source at most, unless said otherwise.
USUAL = 8
#: What is shown of the first pair of each source.
SHOWN = ("turned by 15 degrees", "0.75 times the size", "in a white border", "local contrast evened")
NOTE = """\
Pairs whose two images were varied alike, at 1024 px along the longer side: the gain in PSNR over the
unchanged radiograph, mean [95% interval, bootstrap over patients] or, of fewer than 8 patients, mean (each
pair), and BSR. Processing, tone curves and borders change what there is to gain; BSR is a share of it."""


def _blurred(image: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))


def placed(angle: float = 0.0, size: float = 1.0, border: float | None = 0.0) -> Variation:
    """Turned by ``angle`` degrees and sized about the middle; around it ``border``, or mirrored if None."""

    def vary(image: Array) -> Array:
        rows, columns = image.shape
        matrix = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), angle, size)
        small = _blurred(image, 0.5 * np.sqrt(size**-2 - 1)) if size < 1 else image
        mode = cv2.BORDER_REFLECT if border is None else cv2.BORDER_CONSTANT
        return cv2.warpAffine(small, matrix, (columns, rows), borderMode=mode, borderValue=border or 0.0)

    return lambda radiograph, soft: (vary(radiograph), vary(soft))


def toned(curve: Callable[[Array], Array]) -> Variation:
    """Every grey value by the same curve."""
    return lambda radiograph, soft: (curve(radiograph), curve(soft))


def sharpened(sigma: float, amount: float) -> Variation:
    """What is finer than ``sigma`` pixels made stronger by ``amount``."""
    return toned(lambda image: image + amount * (image - _blurred(image, sigma)))


def evened(radiograph: Array, soft: Array) -> tuple[Array, Array]:
    """Contrast within 40 pixels brought nearer to what is usual, by the radiograph's own, as makers do."""
    spread = np.sqrt(_blurred(np.square(radiograph - _blurred(radiograph, 40)), 40))
    gain = np.clip(0.12 / (spread + 0.02), 0.6, 2.5)

    def vary(image: Array) -> Array:
        wide = _blurred(image, 40)
        return wide + gain * (image - wide)

    return vary(radiograph), vary(soft)


def noisy(amount: float) -> Variation:
    """The same white noise in both, of this standard deviation."""

    def vary(radiograph: Array, soft: Array) -> tuple[Array, Array]:
        noise = np.random.default_rng(0).normal(0, amount, radiograph.shape).astype(np.float32)
        return radiograph + noise, soft + noise

    return vary


VARIATIONS: dict[str, Variation] = {
    "as it is": lambda radiograph, soft: (radiograph, soft),
    "turned by 8 degrees": placed(8),
    "turned by 15 degrees": placed(15),
    "turned by 25 degrees": placed(25),
    "0.6 times the size": placed(size=0.6, border=None),
    "0.75 times the size": placed(size=0.75, border=None),
    "1.3 times the size": placed(size=1.3),
    "in a black border": placed(size=0.75),
    "in a white border": placed(size=0.75, border=1.0),
    "gamma 0.5": toned(np.sqrt),
    "gamma 2": toned(np.square),
    "half the contrast": toned(lambda image: 0.25 + image / 2),
    "edges enhanced": sharpened(2, 1.0),
    "detail enhanced": sharpened(30, 0.7),
    "local contrast evened": evened,
    "noise of 2%": noisy(0.02),
    "noise of 5%": noisy(0.05),
    "blurred": toned(lambda image: _blurred(image, 1.5)),
}


def run(bench: Bench) -> Part:
    """Measures every variation of each source's pairs; shows some of its first."""
    figures: dict[str, Any] = {}
    lines, pictures = [], []
    for source, chosen in bench.cases(USUAL).items():
        both = [case.read() for case in chosen]
        patients = [case.found.patient for case in chosen]
        figures[source] = {"pairs": len(chosen), "trained_on": words(chosen)}
        tiles = []
        for name, vary in VARIATIONS.items():
            results = list(suppressed(bench, vary, both))
            found = summary("psnr_gain", [psnr(o, t) - psnr(i, t) for i, t, o in results], patients, 2)
            found |= summary("bsr", [bone_suppression_ratio(o, i, t) for i, t, o in results], patients, 3)
            figures[source][name.replace(" ", "_").replace(".", "_").replace("%", "_percent")] = found
            gain, bsr = shown(found, "psnr_gain", 2, "+"), shown(found, "bsr", 3)
            lines.append([TITLES.get(source, source), len(chosen), words(chosen), name, gain, bsr])
            if name in SHOWN:
                tiles.append(pictured(name, *results[0]))
        pictures.append(sheet(bench.out / f"variations-{source}.png", tiles, 400))
    heads = ["source", "pairs", "trained on", "varied", "PSNR gain, dB", "BSR"]
    return Part("Films that look different", f"{NOTE}\n\n{table(heads, lines)}", figures, pictures)


def suppressed(
    bench: Bench, vary: Variation, pairs: Sequence[tuple[Array, Array]]
) -> Iterator[tuple[Array, Array, Array]]:
    """Of each pair the varied radiograph, its truth and the result."""
    for pair in pairs:
        image, truth = (np.clip(varied, 0, 1) for varied in vary(*pair))
        yield image, truth, bench.suppress(image).image


def pictured(name: str, image: Array, truth: Array, ours: Array) -> list[tuple[Array, str]]:
    """Original, ours, truth, bones."""
    gain = psnr(ours, truth) - psnr(image, truth)
    return [
        (image, name),
        (ours, f"ours {gain:+.2f} dB"),
        (truth, "truth"),
        (3 * (image - ours), "bones, x3"),
    ]
