"""One stage of ``python -m export train bone_suppression``: its data, its training, what it shows."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from export.anomaly import data as nih
from export.bone_suppression import data, validate
from export.bone_suppression.features import features
from export.bone_suppression.losses import vgg16
from export.bone_suppression.pairs import IMAGES, SOFT, is_dicom
from export.bone_suppression.pickled import read_checkpoint
from export.bone_suppression.recipes import System
from export.bone_suppression.train import AUTOENCODER, DENOISER, load_autoencoder, train
from export.bone_suppression.train_autoencoder import AutoencoderTraining
from export.bone_suppression.train_denoiser import DenoiserTraining
from export.devices import Place
from export.training import say

#: Of the project's own data: phantoms beside the pairs, and NIH radiographs for the autoencoder.
PHANTOMS, UNPAIRED = 32, 300


class Stage:
    """``name`` is autoencoder or denoiser; ``arguments`` those of the command line.

    ``own``: the folders of pairs where the command line names none.
    """

    def __init__(
        self, name: str, system: System, place: Place, arguments: Namespace, own: Sequence[Path]
    ) -> None:
        self.name, self.system, self.place, self.arguments, self.own = name, system, place, arguments, own
        self.out: Path = arguments.runs / "bone_suppression" / system.name
        self.cache: Path = arguments.runs / "cache"

    def train(self, minutes: float) -> None:
        """Trains and validates. Raises DataError, TrainingError."""
        say(self.place, f"-- {self.system.name}, {self.name}")
        if self.place.first:  # one process prepares what all then map
            self.squares()
        self.place.decide(True)
        found = self.squares()
        learnt, validated = data.split(found)
        say(self.place, f"{len(learnt)} pairs to train with, {len(validated)} to validate with")
        run = self.autoencoder if self.name == "autoencoder" else self.denoiser
        run(learnt, validated, minutes)

    def autoencoder(self, learnt: list[data.Squares], validated: list[data.Squares], minutes: float) -> None:
        """The first stage."""
        file = self.arguments.perceptual
        training = AutoencoderTraining(
            self.system,
            learnt,
            self.others(),
            perceptual=vgg16(file) if file else features(),
            place=self.place,
            workers=self.arguments.workers,
        )
        self.run(
            training,
            AUTOENCODER,
            minutes,
            lambda: validate.look_at_autoencoder(
                training, validated, self.out / "validation", self.arguments.look_pairs
            ),
        )

    def denoiser(self, learnt: list[data.Squares], validated: list[data.Squares], minutes: float) -> None:
        """The second stage; needs the first."""
        training = DenoiserTraining(
            self.system,
            learnt,
            load_autoencoder(self.system, self.out / AUTOENCODER),
            place=self.place,
            workers=self.arguments.workers,
        )
        self.run(
            training,
            DENOISER,
            minutes,
            lambda: validate.look_at_denoiser(
                training, validated, self.out / "validation", self.arguments.look_pairs
            ),
        )

    def run(
        self,
        training: AutoencoderTraining | DenoiserTraining,
        file: str,
        minutes: float,
        look: Callable[[], None],
    ) -> None:
        """From a checkpoint of its own, else from --start-from, else from nothing."""
        checkpoint = self.out / file
        if self.arguments.start_from and not checkpoint.exists():
            origin: Path = self.arguments.start_from
            training.trainer.start_from(read_checkpoint(origin).weights, origin)
        train(
            training,
            checkpoint,
            minutes=minutes,
            iterations=self.arguments.iterations,
            look=look if self.arguments.look_pairs else None,
            look_every=self.arguments.look,
        )

    def squares(self) -> list[data.Squares]:
        """All pairs."""
        given = self.arguments.pairs
        phantoms = self.arguments.phantoms
        found = data.load(
            given or self.own,
            self.system.size,
            self.cache,
            tone=self.arguments.tone,
            soft=self.arguments.soft_tissue or SOFT,
            skip_defects=self.arguments.skip_defects,
            tell=lambda line: say(self.place, line),
        )
        if self.system.denoiser.varied:
            found = data.levelled(found)
        if phantoms is None:
            phantoms = 0 if given else PHANTOMS
        return found + data.phantoms(phantoms, self.system.size, self.cache)

    def others(self) -> list[data.Squares]:
        """Radiographs without twins."""
        folder: Path | None = self.arguments.unpaired
        if folder:
            files = (p for p in sorted(folder.rglob("*")) if p.is_file())
            paths = [p for p in files if p.suffix.lower() in IMAGES or is_dicom(p)]
        elif self.arguments.pairs:
            return []
        else:
            records = nih.select(nih.read_records(self.arguments.data), "train")
            paths = [r.path for r in records[:UNPAIRED]]
        return data.alone(paths, self.system.size, self.cache)
