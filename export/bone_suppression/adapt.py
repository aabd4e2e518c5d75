"""From a model to a site's own: it learns on from the site's pairs, is measured on pairs left out, and kept.

What is measured is what would run: the model's folder through the runtime, on pairs of patients that it has
not learnt from. So each fold learns anew without its patients; the model that is kept learns from all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from export.bone_suppression import data
from export.bone_suppression.data import Squares
from export.bone_suppression.evaluation.cases import SIDE, read_fitted
from export.bone_suppression.evaluation.pairs import affine
from export.bone_suppression.metrics import measures
from export.bone_suppression.pairs import SOFT, DataError, Defect, find
from export.bone_suppression.reading import LEVELS
from export.bone_suppression.tuning import Plan, Tuning, tune
from export.bone_suppression.weights import Networks, networks
from export.devices import HERE, Place
from export.shipping import write_card
from export.training import TrainingError
from pacs_node.conditions import Conditions
from pacs_node.infer import ImageResult, Settings, make, read_card
from pacs_node.infer.cards import CARD, Card
from pacs_node.infer.external_data import external_files
from pacs_node.infer.running import Model
from pacs_node.tasks import Task

Array = np.ndarray
Measured = Mapping[str, float]
#: Phantoms to learn from beside the site's pairs, and others to see whether what was known is still known.
PHANTOMS, UNSEEN = 24, 4
#: Pairs of the replayed folders that are measured, of those left out of learning.
REPLAYED = 8
#: Bytes of memory that learning takes for each weight: the weight in the model read back and in the one that
#: learns, its gradient, AdamW's two moments, the average.
BYTES = 24


@dataclass(frozen=True)
class Request:
    """What to adapt by what. ``folds``: how often patients are left out to measure, at most.

    ``minutes`` are for all of it. ``phantoms`` are learnt from beside the site's pairs.
    ``side``: longer side of what is measured, in pixels.
    """

    model: Path
    pairs: tuple[Path, ...]
    cache: Path
    replay: tuple[Path, ...] = ()
    minutes: float = 45.0
    folds: int = 4
    plan: Plan = field(default_factory=Plan)
    phantoms: int = PHANTOMS
    side: int = SIDE
    soft: str = SOFT
    tone: str = "own"
    skip_defects: bool = False


@dataclass(frozen=True)
class Pair:
    """One pair as it is learnt from and as it is measured. ``group``: its row in the table."""

    group: str
    squares: Squares
    read: Callable[[], tuple[Array, Array]]


@dataclass(frozen=True)
class Adapted:
    """What came of it: the graphs' folder, and each pair's measures before and after, the site's first.

    Of a site's pair "after" is by a model that has not learnt from its patient.
    """

    parent: Card
    card: Card
    system: str
    site: list[Pair]
    pairs: list[Pair]
    before: list[Measured]
    after: list[Measured]
    plan: Plan
    folds: int
    seconds: float

    @property
    def gain(self) -> float:
        """What PSNR on the site's pairs that were left out gained, in dB."""
        each = zip(self.before, self.after, strict=True)
        return float(np.mean([a["psnr"] - b["psnr"] for b, a in each][: len(self.site)]))


def adapt(
    request: Request, folder: Path, place: Place = HERE, tell: Callable[[str], None] = print
) -> Adapted:
    """The adapted graphs in ``folder``, with the parent's card.

    Raises ModelError, DataError, TrainingError.
    """
    start = time.monotonic()
    parent = read_card(request.model)
    check(parent)
    found = networks(parent)
    enough_memory(parent, found)
    size = parent.input.size
    site = pairs_of(request, request.pairs, size, tell)
    groups = folds(site, request.folds)
    given = pairs_of(request, request.replay, size, tell) if request.replay else []
    out = data.left_out(p.squares.patient for p in given) if given else set()
    drawn = [phantom(s) for s in data.phantoms(request.phantoms + UNSEEN, size, request.cache)]
    others = [p for p in given if p.squares.patient in out][:REPLAYED] + drawn[request.phantoms :]
    replay = [p for p in given if p.squares.patient not in out] + drawn[: request.phantoms]
    plan = request.plan

    def learn(chosen: Sequence[Pair], plan: Plan) -> tuple[Mapping[str, Tensor], int]:
        """Weights, and after how many iterations."""
        both = ([p.squares for p in some] for some in (chosen, replay))
        training = Tuning(parent, found, *both, plan, place)
        return tune(training, plan, tell), training.trainer.iteration

    tell(
        f"{parent.name} {parent.version} ({found.system.name}): {len(site)} pairs of the site, "
        f"{len(replay)} others, {len(groups)} folds"
    )
    pairs = [*site, *others]
    model = make(parent, Settings())
    before = [measure(model, p) for p in pairs]
    after: dict[int, Measured] = {}
    for number, group in enumerate(groups, 1):
        tell(f"fold {number} of {len(groups)}: {len(group)} of the site's pairs left out")
        left = request.minutes - (time.monotonic() - start) / 60
        plan = replace(plan, minutes=max(0.0, left) / (len(groups) + 2 - number))
        weights, iterations = learn([p for i, p in enumerate(site) if i not in group], plan)
        # What time allows here is what the others get: the figures are to be those of what is kept.
        plan = replace(plan, iterations=iterations)
        with tempfile.TemporaryDirectory() as aside:
            model = make(write(parent, found, weights, Path(aside) / "model"), Settings())
            after |= {i: measure(model, site[i]) for i in group}
    tell("the model itself: from all of the site's pairs")
    weights, _ = learn(site, replace(plan, minutes=float("inf")))
    card = write(parent, found, weights, folder)
    model = make(card, Settings())
    after |= {i: measure(model, pairs[i]) for i in range(len(site), len(pairs))}
    return Adapted(
        parent,
        card,
        found.system.name,
        site,
        pairs,
        before,
        [after[i] for i in range(len(pairs))],
        plan,
        len(groups),
        time.monotonic() - start,
    )


def check(card: Card) -> None:
    """Raises ModelError or TrainingError for a model that cannot be adapted."""
    if card.task is not Task.BONE_SUPPRESSION:
        raise TrainingError(f"{card.name} is for {card.task}; give a model for bone_suppression (--model)")
    card.verify()
    if card.input.range != (-1.0, 1.0):
        raise TrainingError(
            f"{card.name} takes images in {list(card.input.range)}, and the networks of this project are "
            "trained with [-1, 1]; it cannot be adapted here"
        )


def enough_memory(card: Card, found: Networks) -> None:
    """Raises TrainingError for a network that this machine cannot hold while it learns."""
    needed = BYTES * sum(weight.numel() for weight in found.denoiser.parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise TrainingError(
            f"{card.name} ({found.system.name}) takes about {needed / 1e9:.0f} GB of memory to learn on, and "
            f"this machine has {there / 1e9:.0f} GB. Adapt it on a bigger one, or adapt a small model"
        )


def pairs_of(request: Request, folders: Sequence[Path], size: int, tell: Callable[[str], None]) -> list[Pair]:
    """All pairs of the folders. Raises DataError."""
    squares = data.load(
        folders,
        size,
        request.cache,
        tone=request.tone,
        soft=request.soft,
        skip_defects=request.skip_defects,
        tell=tell,
    )
    on_disk = {found.name: found for folder in folders for found in find(folder, request.soft).pairs}
    return [
        Pair(s.source, s, lambda found=on_disk[s.name]: read_fitted(found, request.side, request.tone))  # type: ignore[misc]
        for s in squares
    ]


def phantom(squares: Squares) -> Pair:
    """A drawn pair, measured at the size that it was drawn at."""
    radiograph, soft = (plane.astype(np.float32) / LEVELS for plane in squares.planes[:2])
    return Pair("phantom", squares, lambda: (radiograph, soft))


def folds(pairs: Sequence[Pair], most: int) -> list[set[int]]:
    """Which pairs are left out together: each patient once. Raises DataError for one patient alone."""
    patients = sorted({p.squares.patient for p in pairs})
    if len(patients) < 2:
        raise DataError(
            [
                Defect(
                    f"{len(pairs)} pairs",
                    "are of one patient, so that nothing is left to measure on",
                    "Give pairs of two patients at least (images of other names, DICOM of other Patient IDs)",
                )
            ]
        )
    count = max(2, min(len(patients), most))
    number = {patient: i % count for i, patient in enumerate(patients)}
    return [{i for i, p in enumerate(pairs) if number[p.squares.patient] == n} for n in range(count)]


def measure(model: Model, pair: Pair) -> dict[str, float]:
    """PSNR and both BSR of the runtime's result, as it is and after the affine fit ("fitted …")."""
    image, truth = pair.read()
    result = model(image.astype(np.float32), Conditions(), 0)
    assert isinstance(result, ImageResult)
    plain = measures(result.image, image, truth)
    fit = measures(affine(result.image, truth), affine(image, truth), truth)
    kept = ("psnr_unchanged", "psnr", "bsr", "bsr_published")
    return {key: plain[key] for key in kept} | {f"fitted_{key}": fit[key] for key in kept}


def write(card: Card, found: Networks, weights: Mapping[str, Tensor], folder: Path) -> Card:
    """The model of ``card`` with other weights of the denoiser, in ``folder``.

    It has no variants: those would still hold the old weights.
    """
    folder.mkdir(parents=True)
    for name in card.files.values():
        for part in (name, *external_files(card.folder / name)):
            shutil.copyfile(card.folder / part, folder / part)
    found.graphs["denoiser"].write(found.places["denoiser"], weights, folder / card.files["denoiser"])
    content = tomllib.loads((card.folder / CARD).read_text(encoding="utf-8"))
    content.pop("variants", None)
    content.pop("digests")
    write_card(folder, content)
    return read_card(folder)
