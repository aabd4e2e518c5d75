"""Which models are there: the shipped ones and the site's own, found by task and name."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pacs_node.errors import ModelError
from pacs_node.infer.cards import CARD, Card, names, read_card
from pacs_node.tasks import Task


def shipped_models() -> Path:
    """The folder of the node's own models: package data of a wheel, ``onnx_models/`` of a checkout.

    Raises ModelError if there is neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_models", package.parent / "onnx_models"):
        if folder.is_dir():
            return folder
    raise ModelError(
        f"The models that come with the node are neither in {package / '_models'} nor in "
        f"{package.parent / 'onnx_models'}. Install pacs-node again."
    )


@dataclass(frozen=True)
class Problem:
    """A folder or a card that cannot be used: sentences, and the name of the model, if it has one."""

    text: str
    name: str | None = None

    def __str__(self) -> str:
        return self.text


def scan(folders: Sequence[Path]) -> tuple[list[Card], list[Problem]]:
    """All usable cards in the given folders of models, and what is wrong with the others."""
    cards: list[Card] = []
    problems: list[Problem] = []
    for folder in folders:
        if not folder.is_dir():
            problems.append(
                Problem(
                    f"{folder}: this folder of models does not exist. Make it, or correct models.folders."
                )
            )
            continue
        for candidate in sorted(folder.iterdir()):
            # A hidden folder is a model on its way in (models add); others may be anything (lost+found).
            if candidate.name.startswith(".") or not _holds_model(candidate):
                continue
            try:
                card = read_card(candidate)
            except ModelError as error:
                problems.append(Problem(str(error), _name(candidate)))
                continue
            if twin := next((c for c in cards if c.name == card.name), None):
                problems.append(
                    Problem(
                        f"{twin.folder / CARD} and {candidate / CARD} have the same name {card.name!r}. "
                        "Remove one of them, or give one another name.",
                        card.name,
                    )
                )
                continue
            cards.append(card)
    return cards, problems


def _name(folder: Path) -> str:
    """The name of a model whose card is wrong: what the card says, if it can be read that far."""
    try:
        name = tomllib.loads((folder / CARD).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError):
        return folder.name
    return name if isinstance(name, str) else folder.name


def _holds_model(folder: Path) -> bool:
    return (folder / CARD).exists() or (folder.is_dir() and any(folder.glob("*.onnx")))


class Catalog:
    """The models that are there: the shipped ones, then those of the site's ``folders``.

    A folder or a card that is wrong stands in ``problems`` and leaves the others alone: only a task that asks
    for that model by its name fails.
    """

    def __init__(self, folders: Sequence[Path] = (), shipped: Path | None = None) -> None:
        self.shipped = shipped_models() if shipped is None else shipped
        self.cards, self.problems = scan([self.shipped, *folders])

    def is_shipped(self, card: Card) -> bool:
        """Whether the model came with the node."""
        return card.folder.parent == self.shipped

    def card(self, task: Task | str, name: str | None = None) -> Card:
        """The card of that name, or the task's default where ``name`` is None or "default".

        The default is the task's only model, else its only shipped one, so that adding a model never silently
        changes results. Raises ModelError naming the choices, or saying what is wrong with the one named.
        """
        task = Task(task)
        cards = [card for card in self.cards if card.task is task]
        choices = names(c.name for c in cards) if cards else "none"
        if name not in (None, "default"):
            if broken := [problem.text for problem in self.problems if problem.name == name]:
                raise ModelError("\n".join(broken))
            for card in self.cards:
                if card.name == name and card.task is task:
                    return card
                if card.name == name:
                    raise ModelError(
                        f"The model {name!r} is for {card.task}, not {task}. Models for it: {choices}."
                    )
            near = difflib.get_close_matches(str(name), [c.name for c in cards], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"There is no model {name!r} for {task}.{hint} Models for it: {choices}.")
        if not cards:
            raise ModelError(f"There is no model for {task}. Add one with: pacs-node models add FOLDER")
        shipped = [card for card in cards if self.is_shipped(card)]
        for only in (cards, shipped):
            if len(only) == 1:
                return only[0]
        raise ModelError(
            f"There are several models for {task}: {choices}. Name one in the configuration: models.{task}."
        )
