"""Anomaly: one graph gives a score and a heatmap, knowing age, sex and view; the card's threshold decides."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.infer.cards import Card
from pacs_node.infer.diffusion import Count, encode, run_parameters
from pacs_node.infer.geometry import Frame, check_image, resize
from pacs_node.infer.providers import Settings
from pacs_node.infer.results import AnomalyResult, Finding, Progress
from pacs_node.infer.session import open_session

Array = NDArray[np.float32]


def condition_vector(conditions: Conditions) -> Array:
    """(1, 5): age / 100 or 0, age known, sex (+1 M, -1 F, 0 unknown), view (+1 PA, -1 AP, 0 unknown), 1."""
    age = conditions.age_years
    return np.array(
        [
            [
                0.0 if age is None else age / 100,
                0.0 if age is None else 1.0,
                {"M": 1.0, "F": -1.0, None: 0.0}[conditions.sex],
                {"PA": 1.0, "AP": -1.0, None: 0.0}[conditions.view],
                1.0,
            ]
        ],
        np.float32,
    )


class Anomaly:
    """Features and the model of the normal in one graph, so that a new method is a new file, no code.

    The threshold is that of the image's view, as scores of PA and AP images lie apart.
    """

    def __init__(self, card: Card, settings: Settings) -> None:
        if card.anomaly is None:
            raise ModelError(f"{card.folder}: the card has no [anomaly]. Add it.")
        self.card, self.settings, self._part = card, settings, card.anomaly
        self._model = open_session(card, "model", settings)
        self.sessions = (self._model,)

    def __call__(
        self, image: Array, conditions: Conditions, seed: int = 0, progress: Progress | None = None
    ) -> AnomalyResult:
        """``image`` float32 (H, W) in [0, 1], bone bright, as check_image says; the seed is not used.

        Raises Refused or ValueError on an unfit image, ModelError if the model fails.
        """
        started = time.perf_counter()
        check_image(image)
        size = self.card.input.size
        frame = Frame(image.shape[0], image.shape[1], size)
        count = Count(1, progress)
        square = encode(frame.to_square(image), self.card)
        outputs = self._model.run(image=square, conditions=condition_vector(conditions))
        low, high = self._part.heatmap_range
        coarse = np.clip((outputs["heatmap"][0] - low) / (high - low), 0.0, 1.0)
        heatmap = np.clip(frame.to_native(resize(coarse, size, size)), 0.0, 1.0)
        score, threshold = float(outputs["score"][0]), self._part.thresholds.of(conditions.view)
        count()
        finding = Finding(
            name=self._part.finding,
            code=self._part.code,
            score=score,
            threshold=threshold,
            decision="abnormal" if score >= threshold else "normal",
            heatmap=heatmap,
        )
        return AnomalyResult(
            findings=[finding],
            parameters={
                "threshold": threshold,
                "score_meaning": self._part.score_meaning,
                "conditions": {
                    "age_years": conditions.age_years,
                    "sex": conditions.sex,
                    "view": conditions.view,
                },
            }
            | run_parameters(self.card, self.sessions, self.settings),
            seconds=time.perf_counter() - started,
        )
