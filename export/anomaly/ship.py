"""The anomaly model: the Gaussian fitted, thresholds taken from normal radiographs.

Written as ONNX with its card.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.anomaly import data, synthesis
from export.anomaly.gaussian import AnomalyModel, Settings, outputs_of
from export.anomaly.train import load_extractor, load_normals
from export.shipping import export_graph, parity, write_card

PERCENTILE = 90
VARIANTS = 2


@dataclass
class Fitted:
    """The model with the thresholds by view and the normal radiographs' scores behind them."""

    model: AnomalyModel
    thresholds: dict[str, float]
    heatmap_top: float
    normals: dict[str, int]


def as_tensor(images: np.ndarray) -> Tensor:
    """(n, S, S) uint8 -> (n, 1, S, S) float32 in [-1, 1]."""
    return torch.from_numpy(images).float()[:, None] / 127.5 - 1


@torch.no_grad()
def fit(
    checkpoint: Path,
    folder: Path,
    cache: Path,
    settings: Settings = Settings(),  # noqa: B008
) -> Fitted:
    """The Gaussian on the training patients' normals and variants of them.

    Thresholds on those and validation's.
    """
    model = AnomalyModel(load_extractor(checkpoint), settings).eval()
    size = model.extractor.shape.size
    normals = load_normals(folder, "train", size, cache, jsrt=False)
    rng = np.random.default_rng(0)
    images, conditions = [as_tensor(normals.images)], [torch.from_numpy(normals.conditions)]
    for _ in range(VARIANTS):
        varied = []
        for image in normals.images:
            grey = image.astype(np.float32) / 255
            varied.append(
                synthesis.degrade(synthesis.vary(grey, np.zeros_like(grey), rng, flip=False)[0], rng)
            )
        images.append(torch.from_numpy(np.stack(varied))[:, None] * 2 - 1)
        conditions.append(conditions[0])
    model.fit(outputs_of(model.extractor, torch.cat(images)), torch.cat(conditions))

    unseen = load_normals(folder, "validation", size, cache, jsrt=False)
    known = torch.cat([conditions[0], torch.from_numpy(unseen.conditions)])
    score, heatmap = predict(model, torch.cat([images[0], as_tensor(unseen.images)]), known)
    view = known[:, 3].numpy()
    chosen = {"PA": view > 0, "AP": view < 0, "unknown": np.ones(len(view), bool)}
    return Fitted(
        model,
        {name: round(float(np.percentile(score[mask], PERCENTILE)), 3) for name, mask in chosen.items()},
        round(float(np.quantile(heatmap.max((1, 2)), 0.95)), 1),
        {name: int(mask.sum()) for name, mask in chosen.items()},
    )


@torch.no_grad()
def predict(
    model: AnomalyModel, images: Tensor, conditions: Tensor, batch: int = 32
) -> tuple[np.ndarray, ...]:
    """(scores (n,), heatmaps (n, h, w)) batch by batch."""
    found = [model(images[i : i + batch], conditions[i : i + batch]) for i in range(0, len(images), batch)]
    return tuple(torch.cat(part).numpy() for part in zip(*found, strict=True))


def card(fitted: Fitted, version: str) -> dict[str, Any]:
    """What the card says; ``evaluate`` fills in the figures."""
    size = fitted.model.extractor.shape.size
    return {
        "name": f"anomaly-{size}",
        "task": "anomaly",
        "version": version,
        "summary": "How far a frontal chest radiograph departs from normal ones of that age, sex and "
        "view: a small "
        "self-supervised extractor with a conditioned Gaussian (PaDiM kind), with a heatmap.",
        "intended_use": "Research: sorting frontal chest radiographs of adults by how unlike normal ones "
        "they look. "
        "Not for diagnosis, and a normal score rules nothing out.",
        "qualification": "RESEARCH",
        "licence": "Apache-2.0",
        "files": {"model": "model.onnx"},
        "input": {"size": size, "range": [-1.0, 1.0], "channels": 1},
        "anomaly": {
            "finding": "Departure from a normal chest",
            "score_meaning": "Standard deviations above the mean of normal radiographs of that age, sex "
            "and view; "
            "not a probability.",
            "thresholds": fitted.thresholds,
            "heatmap_range": [1.0, max(4.0, fitted.heatmap_top)],
        },
        "training": {
            "data": [
                "NIH ChestX-ray14, No Finding radiographs of the training patients: 55 PA, 137 AP",
                "JSRT, 92 radiographs without nodule (extractor only)",
            ],
            "terms": [
                "NIH Clinical Center: free use with attribution; Wang et al., ChestX-ray8, CVPR 2017",
                "JSRT database: research and education; Shiraishi et al., AJR 2000",
            ],
            "recipe": "python -m export train anomaly --iterations 1360 && python -m export onnx anomaly",
            "notes": [
                "No abnormal radiograph was trained on: the extractor learns to find, outline and "
                "measure synthetic "
                "findings drawn on normal radiographs.",
                "Patients are split by a hash: 54% training, 10% validation, 36% test. The weights of "
                "the score's "
                "parts were set with pneumonia radiographs of training and validation patients at hand, "
                "never with those of test patients.",
                f"Thresholds: {PERCENTILE}th percentile of the scores of {fitted.normals['PA']} PA and "
                f"{fitted.normals['AP']} AP normal radiographs of training and validation patients.",
            ],
        },
        "figures": {},
        "limits": {
            "texts": [
                "Small findings (nodules, fine interstitial change, early pneumonia, pneumothorax) are "
                "often missed; "
                "anything unusual but harmless (devices, rotation, scoliosis, poor inspiration) may "
                "score high.",
                "In the data the view goes with the disease (69% of the normals are AP, 44% of the "
                "pneumonias): "
                "compare scores within a view only; figures are given for each view apart.",
                "Overall brightness and contrast differ between the normal and the pneumonia radiographs "
                "of this set; "
                "the model takes both out first, so as not to score the exposure.",
                "Labels of ChestX-ray14 come from report text and are wrong in part.",
                "Few children in the training data; radiographs of other hospitals and detectors were "
                "not measured.",
                "A lung that is white throughout may be left out of the heatmap: the extractor knows "
                "findings as changes within a lung that it can still see.",
                "More unseen normal radiographs than the 10% at which the thresholds were set are called "
                "abnormal, above all AP ones (see figures): the extractor has seen the others in training.",
                "Age, sex and view move the score of a single radiograph, but telling them made no "
                "measurable difference to the ROC-AUC within a view (see figures).",
                "The heatmap shows where features depart from normal; it is no outline of a finding.",
            ]
        },
    }


def ship(
    checkpoint: Path, data_folder: Path, cache: Path, folder: Path, *, version: str
) -> tuple[Fitted, list[float]]:
    """Writes ``model.onnx`` and ``card.toml``; returns the fitted model and the differences to torch."""
    fitted = fit(checkpoint, data_folder, cache)
    records = data.select(data.read_records(data_folder), "train", normal=True)[:4]
    inputs = {
        "image": as_tensor(data.read_images([r.path for r in records], fitted.model.extractor.shape.size)),
        "conditions": torch.tensor([r.conditions for r in records]),
    }
    path = folder / "model.onnx"
    export_graph(fitted.model, path, inputs, ["score", "heatmap"])
    errors = parity(fitted.model, path, inputs, tolerance=1e-2)
    write_card(folder, card(fitted, version))
    return fitted, errors
