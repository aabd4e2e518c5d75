"""What a model gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pacs_node.infer.cards import Code

Array = NDArray[np.float32]
# Called with (steps done, steps in all), the last time with both alike.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageResult:
    """A derived image: ``image`` float32 (H, W) in [0, 1] on the source's own matrix.

    ``bone``, of bone suppression only, is what was taken away: source = image + bone. ``parameters`` hold
    only plain values (JSON): sampler, steps, seed, provider, precision, warnings … ``seconds`` is the
    wall-clock time.
    """

    image: Array
    bone: Array | None
    parameters: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Finding:
    """One thing that a model looks for, and its answer.

    ``score`` and ``threshold`` are on the model's own scale (its card says what it means); ``decision`` is
    "abnormal" at or above the threshold. ``heatmap``: where, float32 (H, W) in [0, 1] on the source's own
    matrix.
    """

    name: str
    code: Code | None
    score: float
    threshold: float
    decision: Literal["abnormal", "normal"]
    heatmap: Array = field(repr=False)


@dataclass(frozen=True)
class AnomalyResult:
    """The findings of one image, normal ones too; ``parameters`` and ``seconds`` as in ImageResult."""

    findings: list[Finding]
    parameters: dict[str, Any]
    seconds: float
