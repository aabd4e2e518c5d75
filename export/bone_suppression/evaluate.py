"""Figures of the shipped bone suppression on pairs that it has not seen, through the runtime itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from export.bone_suppression.data import held_out, native
from export.bone_suppression.metrics import bone_suppression_ratio, psnr, ssim
from export.bone_suppression.pairs import Found, find
from pacs_node.conditions import Conditions
from pacs_node.infer import Settings, load, read_card


def sources(data: Path) -> dict[str, list[Found]]:
    """Pairs that were not trained on, by where they come from."""
    jsrt = [p for p in find(data / "jsrt_bse").pairs if held_out(p.patient)]
    return {"SZCH dual energy": find(data / "des_szch").pairs, "JSRT held out": jsrt}


def tile(*images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] side by side, at 640 px."""
    return np.hstack([cv2.resize(np.clip(i, 0, 1), (640, 640), interpolation=cv2.INTER_AREA) for i in images])


def evaluate(folder: Path, data: Path, out: Path, steps: int | None = None) -> dict[str, Any]:
    """Mean figures per source at the images' own matrix; original, ours, truth, bone as pictures."""
    model = load(read_card(folder), Settings(steps=steps))
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for source, pairs in sources(data).items():
        rows, tiles = [], []
        for index, pair in enumerate(pairs):
            image, soft = native(pair)
            result = model(image, Conditions(), seed=index)
            rows.append(
                (
                    psnr(image, soft),
                    psnr(result.image, soft),
                    ssim(image, soft),
                    ssim(result.image, soft),
                    bone_suppression_ratio(result.image, image, soft),
                    result.seconds,
                )
            )
            if index < 4:
                tiles.append(tile(image, result.image, soft, result.bone * 3 + 0.2))
        cv2.imwrite(
            str(out / f"bone-{source.split()[0].lower()}.png"),
            np.round(np.vstack(tiles) * 255).astype(np.uint8),
        )
        before, after, similar, similar_after, ratio, _ = np.mean(rows, axis=0)
        found[source] = {
            "pairs": len(pairs),
            "psnr_unchanged": round(float(before), 2),
            "psnr": round(float(after), 2),
            "psnr_gain": round(float(after - before), 2),
            "psnr_gain_smallest": round(float(min(row[1] - row[0] for row in rows)), 2),
            "ssim_unchanged": round(float(similar), 3),
            "ssim": round(float(similar_after), 3),
            "bone_suppression_ratio": round(float(ratio), 3),
            "seconds_per_image": round(float(np.median([row[5] for row in rows])), 2),
        }
    found["steps"] = result.parameters["steps"]
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| source | pairs | PSNR unchanged | PSNR | gain (smallest) | SSIM unchanged | SSIM | BSR |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for source, row in found.items():
        if isinstance(row, dict):
            lines.append(
                f"| {source} | {row['pairs']} | {row['psnr_unchanged']} | {row['psnr']} | "
                f"{row['psnr_gain']:+.2f} "
                f"({row['psnr_gain_smallest']:+.2f}) | {row['ssim_unchanged']} | {row['ssim']} | "
                f"{row['bone_suppression_ratio']} |"
            )
    return "\n".join(lines)
