"""How near the result is to the soft tissue, as it is and once the tone curve is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from export.bone_suppression.evaluation.cases import TITLES, Array, Case, words
from export.bone_suppression.evaluation.part import Bench, Part
from export.bone_suppression.evaluation.pictures import sheet
from export.bone_suppression.evaluation.statistics import shown, summary, table
from export.bone_suppression.features import features
from export.bone_suppression.metrics import measures

#: Pairs of a source at most, unless said otherwise; rows of its picture; how much stronger bones are shown.
USUAL, ROWS, STRONGER = 32, 4, 3.0
DIGITS = {"psnr": 2, "ssim": 4, "mse": 6, "bsr": 3, "bsr_published": 3, "edges": 4}
NOTE = """\
1024 px along the longer side, mean [95% interval, bootstrap over patients] or, of fewer than 8 patients,
mean (each pair). "fitted": after the affine map of grey values that brings each image nearest to the truth,
for the result and for the unchanged radiograph alike. MSE in 1e-3. BSR: bones' energy that is gone;
"published": as BS-LDM and GL-LCM compute it, which a radiograph left unchanged scores well by. "Edges": the
distance of local edge strengths in 8 directions and 4 octaves, each place scaled to length 1 (the project's
own perceptual distance; it is not LPIPS and not comparable with it), less is nearer."""


def affine(image: Array, truth: Array) -> Array:
    """a * image + b with the least squared distance to ``truth``."""
    x, y = image.ravel().astype(np.float64), truth.ravel().astype(np.float64)
    variance = x.var()
    slope = ((x - x.mean()) * (y - y.mean())).mean() / variance if variance else 0.0
    return np.asarray(slope * image + (y.mean() - slope * x.mean()), np.float32)


class Edges:
    """The project's perceptual distance of images in [0, 1]."""

    def __init__(self) -> None:
        self.distance = features()

    def __call__(self, image: Array, truth: Array) -> float:
        pair = [
            torch.from_numpy(np.ascontiguousarray(i, np.float32))[None, None] * 2 - 1 for i in (image, truth)
        ]
        with torch.no_grad():
            return float(self.distance(*pair))


def compare(result: Array, image: Array, truth: Array, edges: Edges) -> dict[str, float]:
    """All figures of one result, and of the image left as it is ("…_unchanged")."""
    found = measures(result, image, truth)
    found |= {
        "mse": float(np.square(result - truth).mean()),
        "mse_unchanged": float(np.square(image - truth).mean()),
        "edges": edges(result, truth),
        "edges_unchanged": edges(image, truth),
    }
    return found


def source_figures(rows: Sequence[dict[str, float]], patients: Sequence[str]) -> dict[str, Any]:
    """Of one source: each figure and its value unchanged; intervals of BSR and of the gain in PSNR."""
    found: dict[str, Any] = {}
    for key, digits in DIGITS.items():
        found[key] = round(float(np.mean([r[key] for r in rows])), digits)
        if f"{key}_unchanged" in rows[0]:
            found[f"{key}_unchanged"] = round(float(np.mean([r[f"{key}_unchanged"] for r in rows])), digits)
    gains = [r["psnr"] - r["psnr_unchanged"] for r in rows]
    found |= summary("psnr_gain", gains, patients, DIGITS["psnr"])
    return found | summary("bsr", [r["bsr"] for r in rows], patients, DIGITS["bsr"])


def run(bench: Bench) -> Part:
    """Measures every source and shows original, ours, truth, difference and bone image."""
    edges = Edges()
    figures: dict[str, Any] = {}
    lines, pictures = [], []
    for source, chosen in bench.cases(USUAL).items():
        rows: dict[str, list[dict[str, float]]] = {"as it is": [], "fitted": []}
        tiles = []
        for case in chosen:
            image, truth = case.read()
            result = bench.suppress(image)
            ours = result.image
            rows["as it is"].append(compare(ours, image, truth, edges))
            rows["fitted"].append(compare(affine(ours, truth), affine(image, truth), truth, edges))
            if len(tiles) < ROWS:
                tiles.append(pictured(case, image, ours, truth, rows["as it is"][-1]))
        patients = [case.found.patient for case in chosen]
        title = TITLES.get(source, source)
        figures[source] = {"pairs": len(chosen), "patients": len(set(patients)), "trained_on": words(chosen)}
        for fit, each in rows.items():
            found = source_figures(each, patients)
            figures[source][fit.replace(" ", "_")] = found
            lines.append([title, len(chosen), words(chosen), fit, *cells(found)])
        pictures.append(sheet(bench.out / f"pairs-{source}.png", tiles, 480))
    heads = ["source", "pairs", "trained on", "grey values", "PSNR unchanged", "PSNR", "gain"]
    heads += ["SSIM (unchanged)", "MSE (unchanged)", "BSR", "BSR published (unchanged)", "Edges (unchanged)"]
    return Part("Against the truth of pairs", f"{NOTE}\n\n{table(heads, lines)}", figures, pictures)


def cells(found: dict[str, Any]) -> list[str]:
    """One row of the table, behind its names."""
    return [
        f"{found['psnr_unchanged']:.2f}",
        f"{found['psnr']:.2f}",
        shown(found, "psnr_gain", 2, "+"),
        f"{found['ssim']:.4f} ({found['ssim_unchanged']:.4f})",
        f"{found['mse'] * 1e3:.3f} ({found['mse_unchanged'] * 1e3:.3f})",
        shown(found, "bsr", 3),
        f"{found['bsr_published']:.3f} ({found['bsr_published_unchanged']:.3f})",
        f"{found['edges']:.4f} ({found['edges_unchanged']:.4f})",
    ]


def pictured(
    case: Case, image: Array, ours: Array, truth: Array, found: dict[str, float]
) -> list[tuple[Array, str]]:
    """Original, ours, truth, ours less the truth, bone image."""
    gain = found["psnr"] - found["psnr_unchanged"]
    return [
        (image, case.name),
        (ours, f"ours {gain:+.2f} dB"),
        (truth, "truth"),
        (0.5 + STRONGER * (ours - truth), f"ours - truth, x{STRONGER:g}"),
        (STRONGER * (image - ours), f"bones, x{STRONGER:g}"),
    ]
