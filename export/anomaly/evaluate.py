"""Figures of the shipped anomaly model on patients that it has not seen, through the runtime itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from export.anomaly import data
from pacs_node.conditions import Conditions
from pacs_node.infer import load, read_card

DRAWS = 2000


def roc_auc(normal: np.ndarray, abnormal: np.ndarray) -> float:
    """Chance that an abnormal score exceeds a normal one, ties counted half."""
    order = np.sort(normal)
    below = np.searchsorted(order, abnormal, "left") + np.searchsorted(order, abnormal, "right")
    return float(below.mean() / (2 * len(normal)))


def pr_auc(normal: np.ndarray, abnormal: np.ndarray) -> float:
    """Average precision of finding the abnormal ones."""
    scores = np.concatenate([normal, abnormal])
    truth = np.concatenate([np.zeros(len(normal)), np.ones(len(abnormal))])[
        np.argsort(-scores, kind="stable")
    ]
    precision = np.cumsum(truth) / np.arange(1, len(truth) + 1)
    return float((precision * truth).sum() / truth.sum())


def bootstrap(
    measure: Callable[[np.ndarray, np.ndarray], float],
    scores: np.ndarray,
    normal: np.ndarray,
    patients: np.ndarray,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """95% interval of ``measure``: patients drawn with replacement, each with all of their radiographs."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(patients == p) for p in np.unique(patients)]
    values = []
    while len(values) < draws:
        picked = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        if normal[picked].any() and not normal[picked].all():
            values.append(measure(scores[picked][normal[picked]], scores[picked][~normal[picked]]))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def figures_of(scores: np.ndarray, records: list[data.Record], threshold: float) -> dict[str, Any]:
    """ROC-AUC and PR-AUC with intervals, and what the threshold does, of radiographs of one view."""
    normal = np.array([r.normal for r in records])
    patients = np.array([r.patient for r in records])
    roc = bootstrap(roc_auc, scores, normal, patients)
    pr = bootstrap(pr_auc, scores, normal, patients)
    return {
        "no_finding": int(normal.sum()),
        "pneumonia": int((~normal).sum()),
        "patients": len(set(patients)),
        "roc_auc": round(roc_auc(scores[normal], scores[~normal]), 3),
        "roc_auc_95": [round(v, 3) for v in roc],
        "pr_auc": round(pr_auc(scores[normal], scores[~normal]), 3),
        "pr_auc_95": [round(v, 3) for v in pr],
        "pr_auc_of_chance": round(float((~normal).mean()), 3),
        "called_abnormal_of_no_finding": round(float((scores[normal] >= threshold).mean()), 3),
        "called_abnormal_of_pneumonia": round(float((scores[~normal] >= threshold).mean()), 3),
        "mean_score_of_no_finding": round(float(scores[normal].mean()), 2),
    }


def overlay(image: np.ndarray, heatmap: np.ndarray, caption: str, side: int = 320) -> np.ndarray:
    """Radiograph over the same with its heatmap in red, (2 * side, side, 3) uint8."""
    grey = cv2.cvtColor(cv2.resize(np.round(image * 255).astype(np.uint8), (side, side)), cv2.COLOR_GRAY2BGR)
    heat = cv2.resize(heatmap, (side, side))[..., None]
    red = grey * (1 - heat * np.array([0.8, 0.8, 0.0])) + heat * np.array([0.0, 0.0, 90.0])
    tile = np.vstack([grey, np.clip(red, 0, 255).astype(np.uint8)])
    return cv2.putText(tile, caption, (4, 2 * side - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 255, 255), 1)


def evaluate(model_folder: Path, folder: Path, out: Path, *, part: str = "test") -> dict[str, Any]:
    """Runs the model in ``model_folder`` on one part of the patients; table and pictures into ``out``."""
    model = load(read_card(model_folder))
    if model.card.anomaly is None:
        raise TypeError(f"{model_folder} is no anomaly model")
    records = data.select(data.read_records(folder), part)
    scores, blind, tiles = [], [], []
    pictured = {"PA": 0, "AP": 0, "PA normal": 0, "AP normal": 0}
    for record in records:
        image = cv2.imread(str(record.path), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        view = "PA" if record.view == "PA" else "AP"
        sex = "M" if record.sex == "M" else "F"
        finding = model(image, Conditions(record.age, sex, view)).findings[0]
        scores.append(finding.score)
        blind.append(model(image, Conditions()).findings[0].score)
        kind = view + (" normal" if record.normal else "")
        if pictured[kind] < 6:
            pictured[kind] += 1
            label = "No Finding" if record.normal else "Pneumonia"
            tiles.append(overlay(image, finding.heatmap, f"{view} {label} {finding.score:.2f}"))
    out.mkdir(parents=True, exist_ok=True)
    rows = [np.hstack(tiles[i : i + 6]) for i in range(0, len(tiles) // 6 * 6, 6)]
    cv2.imwrite(str(out / f"anomaly-{part}.png"), np.vstack(rows))
    thresholds = model.card.anomaly.thresholds
    found: dict[str, Any] = {
        "measured": f"{len(records)} radiographs of patients in the {part} part of NIH ChestX-ray14, No "
        "Finding against Pneumonia (often with other labels), by view; intervals: bootstrap by patient, 95%"
    }
    for view in ("PA", "AP"):
        chosen = np.array([r.view == view for r in records])
        of_view = [r for r in records if r.view == view]
        found[view] = figures_of(np.array(scores)[chosen], of_view, thresholds.of(view))
        normal = np.array([r.normal for r in of_view])
        blank = np.array(blind)[chosen]
        found[view]["roc_auc_without_conditions"] = round(roc_auc(blank[normal], blank[~normal]), 3)
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table, one column a view."""
    views = {name: row for name, row in found.items() if isinstance(row, dict)}
    lines = [f"| | {' | '.join(views)} |", "|---|" + "---|" * len(views)]
    lines += [f"| {key} | {' | '.join(str(v[key]) for v in views.values())} |" for key in views["PA"]]
    return "\n".join(lines)
