"""Arrays in, arrays and numbers out: ONNX models, providers, samplers and the three tasks.

catalog = Catalog(site_folders)
model = load(catalog.card(Task.BONE_SUPPRESSION), Settings())
result = model(image, conditions, seed=0)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pacs_node.infer.cards import Card, read_card
from pacs_node.infer.catalog import Catalog, shipped_models
from pacs_node.infer.providers import Settings
from pacs_node.infer.results import AnomalyResult, Finding, ImageResult, Progress
from pacs_node.tasks import Task

if TYPE_CHECKING:
    from pacs_node.infer.running import Model, Network

__all__ = [
    "AnomalyResult",
    "Card",
    "Catalog",
    "Finding",
    "ImageResult",
    "Progress",
    "Settings",
    "load",
    "make",
    "read_card",
    "shipped_models",
]

_loaded: dict[tuple[str, str, Settings], Model] = {}
_lock = threading.Lock()


def load(card: Card, settings: Settings | None = None) -> Model:
    """The model of ``card``, files verified, sessions made: once for a process, then the same object.

    Raises ModelError if a file is missing or altered, or the graphs are not what the card says.
    """
    settings = settings or Settings()
    key = (str(card.folder), card.digest, settings)
    with _lock:
        if key not in _loaded:
            _loaded[key] = make(card, settings)
        return _loaded[key]


def make(card: Card, settings: Settings) -> Model:
    """As ``load``, but a new one each time, whose memory is free again when it is let go."""
    # Here, so that whoever only reads cards (check, the receiver) does not load OpenCV and ONNX Runtime.
    from pacs_node.infer.anomaly import Anomaly
    from pacs_node.infer.bone_suppression import BoneSuppression
    from pacs_node.infer.restoration import Restoration
    from pacs_node.infer.running import Model

    kinds: dict[Task, Callable[[Card, Settings], Network]] = {
        Task.BONE_SUPPRESSION: BoneSuppression,
        Task.RESTORATION: Restoration,
        Task.ANOMALY: Anomaly,
    }
    return Model(card, settings, kinds[card.task])
