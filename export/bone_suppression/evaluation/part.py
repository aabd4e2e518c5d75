"""What each part of the evaluation is given and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.bone_suppression.evaluation.cases import Case, cases, folders
from pacs_node.conditions import Conditions
from pacs_node.infer import Card, ImageResult, load
from pacs_node.infer.running import Model


@dataclass(frozen=True)
class Bench:
    """A model, where the data lies and where the pictures go.

    ``most``: images of a source at most, 0 for each part's own number.
    """

    card: Card
    data: Path
    runs: Path
    out: Path
    more: tuple[Path, ...] = ()
    most: int = 0

    def suppress(self, image: np.ndarray, model: Model | None = None) -> ImageResult:
        """By ``model``, or as the card says: through the runtime, with the seed 0.

        Raises TypeError if the model is for another task.
        """
        result = (model or load(self.card))(image.astype(np.float32), Conditions(), 0)
        if not isinstance(result, ImageResult):
            raise TypeError(f"{self.card.name} suppresses no bones")
        return result

    def cases(self, usual: int = 0) -> dict[str, list[Case]]:
        """Of each source; see there. ``usual``: how many if nothing else is said, 0 for all."""
        return cases(self.card, folders(self.data, self.runs, self.more), self.most or usual)


@dataclass(frozen=True)
class Part:
    """What was measured: Markdown for RESULTS.md and figures for the card."""

    title: str
    text: str
    figures: dict[str, Any]
    pictures: list[Path] = field(default_factory=list)
