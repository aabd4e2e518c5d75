"""Arrays in, arrays and numbers out: ONNX models, providers, samplers and the three tasks.

catalog = Catalog(site_folders)
model = load(catalog.card(Task.BONE_SUPPRESSION), Settings())
result = model(image, conditions, seed=0)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from pacs_node.infer.cards import Card, read_card
from pacs_node.infer.catalog import Catalog, shipped_models
from pacs_node.infer.providers import Settings
from pacs_node.infer.results import AnomalyResult, Finding, ImageResult, Progress
from pacs_node.tasks import Task

if TYPE_CHECKING:
    from pacs_node.infer.anomaly import Anomaly
    from pacs_node.infer.bone_suppression import BoneSuppression
    from pacs_node.infer.restoration import Restoration

    Model: TypeAlias = BoneSuppression | Restoration | Anomaly

__all__ = [
    "AnomalyResult",
    "Card",
    "Catalog",
    "Finding",
    "ImageResult",
    "Progress",
    "Settings",
    "load",
    "read_card",
    "shipped_models",
]

log = logging.getLogger(__name__)

_loaded: dict[tuple[str, str, Settings], Model] = {}
_lock = threading.Lock()


def load(card: Card, settings: Settings | None = None) -> Model:
    """The model of ``card``, files verified, sessions made: once for a process, then the same object.

    Raises ModelError if a file is missing or altered, or the graphs are not what the card says.
    """
    # Here, so that whoever only reads cards (check, the receiver) does not load OpenCV and ONNX Runtime.
    from pacs_node.infer.anomaly import Anomaly
    from pacs_node.infer.bone_suppression import BoneSuppression
    from pacs_node.infer.restoration import Restoration

    settings = settings or Settings()
    key = (str(card.folder), card.digest, settings)
    with _lock:
        if key not in _loaded:
            card.verify()
            kinds: dict[Task, Callable[[Card, Settings], Model]] = {
                Task.BONE_SUPPRESSION: BoneSuppression,
                Task.RESTORATION: Restoration,
                Task.ANOMALY: Anomaly,
            }
            model = kinds[card.task](card, settings)
            for warning in dict.fromkeys(w for s in model.sessions for w in s.choice.warnings):
                log.warning("%s: %s; it runs on %s", card.name, warning, model.sessions[0].choice.provider)
            _loaded[key] = model
        return _loaded[key]
