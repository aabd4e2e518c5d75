"""Which model a configuration uses for which task."""

from __future__ import annotations

from pacs_node.config import Config
from pacs_node.errors import ModelError
from pacs_node.infer.catalog import Catalog
from pacs_node.tasks import Task


def models_by_task(config: Config) -> dict[Task, tuple[str, str] | str]:
    """Name and version of the model that each task would use, or why there is none."""
    found: dict[Task, tuple[str, str] | str] = {}
    for task in Task:
        try:
            card = Catalog(config.models.folders).card(task, config.models.name_for(task))
            found[task] = (card.name, card.version)
        except ModelError as error:
            found[task] = str(error)
    return found
