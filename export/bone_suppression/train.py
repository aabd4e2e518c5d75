"""Training: first the autoencoder, then the denoiser in its latent space. One recipe for every system.

Which samples an iteration takes, how they are varied and which noise they get follows from the seed, the
iteration and the sample's number in the batch: the same on one device or several, stopped or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.bone_suppression.data import Order, Squares, draw
from export.bone_suppression.losses import Discriminator, fooled, ms_ssim, told_apart
from export.bone_suppression.recipes import AutoencoderRecipe, Recipe, System, kept
from export.bone_suppression.vqgan import Quantiser
from export.devices import HERE, Place, gathered
from export.training import Feed, Trainer, TrainingError, averaged, learn, read, run, say
from pacs_node.infer.cards import Diffusion
from pacs_node.infer.sampling.noise import Noise

AUTOENCODER, DENOISER = "autoencoder.pt", "denoiser.pt"
#: Images on which a latent_scale is measured.
MEASURED = 16


@dataclass(frozen=True)
class Item:
    """What one sample shows: a pair (or a radiograph alone), masked by its lungs or not; of the autoencoder's
    samples, which ``plane``.
    """

    squares: Squares
    masked: bool = False
    plane: int = 0


def items(recipe: Recipe, pairs: Sequence[Squares]) -> list[Item]:
    """Every pair, and once more masked if the recipe says so. Raises TrainingError if none has lungs."""
    found = [Item(s) for s in pairs]
    if recipe.masked:
        with_lungs = [s for s in pairs if len(s.planes) == 3]
        if not with_lungs:
            raise TrainingError(
                "the recipe wants radiographs masked by their lungs, and no pair has a lung mask; put "
                "masks in lungs/ beside cxr/, add phantoms, or set masked=false"
            )
        found += [Item(s, masked=True) for s in with_lungs]
    return found


def plan(recipe: Recipe, count: int) -> tuple[int, list[tuple[int, float]]]:
    """Iterations of all epochs over ``count`` samples, and the milestones as (iteration, rate)."""
    epoch = max(1, count // recipe.batch)
    steps = [
        (after * epoch, recipe.rate * recipe.factor**number)
        for number, after in enumerate(recipe.milestones, 1)
    ]
    return recipe.epochs * epoch, steps


def trainer(
    system: System,
    stage: str,
    recipe: Recipe,
    make: Callable[[], nn.Module],
    count: int,
    place: Place,
    diffusion: dict[str, Any] | None = None,
    **more: Any,
) -> Trainer:
    """The recipe's trainer of one stage over ``count`` samples an epoch."""
    settings = {"system": system.name, "network": stage, **kept(recipe)}
    if diffusion:
        settings["diffusion"] = diffusion
    if isinstance(recipe, AutoencoderRecipe) and recipe.adversarial:
        width = recipe.opponent_width
        more |= {"opponent": lambda: Discriminator(width), "opponent_rate": recipe.opponent_rate}
    return Trainer(
        make,
        rate=recipe.rate,
        warm_up=recipe.warm_up,
        decay=recipe.decay,
        epsilon=recipe.epsilon,
        clip=recipe.clip or None,
        average=recipe.average or None,
        seed=recipe.seed,
        milestones=plan(recipe, count)[1],
        settings=settings,
        fixed=("network", "diffusion", "quantised"),
        place=place,
        **more,
    )


class Learning(nn.Module):
    """An autoencoder as it is called in training, with codes or, before they are chosen, without."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor, quantised: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Images -> decoded again, what quantisation costs, and the latents."""
        latent = self.autoencoder.encode(image).float()
        if quantised:
            codes, cost = self.autoencoder.quantise(latent)
        else:
            codes, cost = latent, 1e-3 * latent.square().mean()
        return self.autoencoder.decoder(codes), cost, latent.detach()


@torch.no_grad()
def revive(codes: Quantiser, latent: Tensor, least: float) -> None:
    """Codes with fewer than ``least`` latents a batch on average start again at latents of this batch."""
    weak = codes.ema_cluster_size < least
    if weak.any():
        rows = gathered(latent.permute(0, 2, 3, 1).flatten(0, 2))
        picks = rows[torch.randint(len(rows), (int(weak.sum()),))]
        codes.embedding.weight[weak] = codes.ema_w[weak] = picks
        codes.ema_cluster_size[weak] = 1.0


class AutoencoderTraining:
    """ML-VQGAN on single images: either one of a pair, or a radiograph without a twin."""

    def __init__(
        self,
        system: System,
        pairs: Sequence[Squares],
        others: Sequence[Squares] = (),
        *,
        perceptual: nn.Module | None = None,
        place: Place = HERE,
        workers: int = 0,
    ) -> None:
        self.system, self.place, self.recipe = system, place, system.autoencoder
        both = items(self.recipe, pairs)
        self.items = [Item(i.squares, i.masked, plane) for plane in range(2) for i in both]
        self.items += [Item(s) for s in others]
        self.order = Order(len(self.items), self.recipe.batch, self.recipe.seed)
        self.trainer = trainer(
            system,
            "autoencoder",
            self.recipe,
            lambda: system.make_autoencoder(system.autoencoder_shape),
            len(self.items),
            place,
            through=Learning,
        )
        self.trainer.model.train()
        self.perceptual = perceptual.to(place.device) if perceptual and self.recipe.perceptual else None
        self.feed = Feed(
            self.sample, self.recipe.batch, place, portions=self.recipe.accumulate, workers=workers
        )

    def sample(self, iteration: int, index: int) -> Tensor:
        """(1, crop, crop) in [-1, 1]."""
        item = self.items[self.order(iteration, index)]
        rng = np.random.default_rng((self.recipe.seed, iteration, index))
        drawn = draw(item.squares, rng, crop=self.recipe.crop, varied=self.recipe.varied, masked=item.masked)
        return drawn[item.plane]

    def terms(self, image: Tensor, decoded: Tensor, quantisation: Tensor) -> dict[str, Tensor]:
        """The weighted terms of the loss but the adversary's."""
        recipe = self.recipe
        found = {"quantisation": recipe.quantisation * quantisation.float()}
        if recipe.l1:
            found["l1"] = recipe.l1 * F.l1_loss(decoded, image)
        if recipe.l2:
            found["l2"] = recipe.l2 * F.mse_loss(decoded, image)
        if recipe.ms_ssim:
            found["ms_ssim"] = recipe.ms_ssim * (1 - ms_ssim(decoded, image).mean())
        if self.perceptual is not None:
            with self.place.autocast():
                found["perceptual"] = recipe.perceptual * self.perceptual(decoded, image)
        return found

    def step(self) -> dict[str, float]:
        """One update of the autoencoder and of its opponent; returns the weighted terms."""
        trainer, recipe = self.trainer, self.recipe
        trainer.rng()
        model, opponent = trainer.parts["model"], trainer.parts.get("opponent")
        if trainer.iteration < recipe.opponent_from:
            opponent = None
        quantised = trainer.iteration >= recipe.unquantised
        report: dict[str, float] = {}
        share = 1 / recipe.accumulate
        for number, samples in enumerate(self.feed(trainer.iteration), 1):
            last = number == recipe.accumulate
            image = torch.stack(samples).to(self.place.device, memory_format=torch.channels_last)
            with model.portion(last=last):
                with self.place.autocast():
                    decoded, quantisation, latent = model.call(image, quantised)
                decoded = decoded.float()
                terms = self.terms(image, decoded, quantisation)
                if opponent:
                    with self.place.autocast():
                        terms["adversarial"] = recipe.adversarial * fooled(opponent.module, decoded)
                add(report, learn(terms, share))
            if opponent:
                with opponent.portion(last=last):
                    with self.place.autocast():
                        apart = told_apart(opponent.call, image, decoded)
                    add(report, {"opponent": learn({"apart": recipe.adversarial * apart}, share)["apart"]})
            if recipe.revive and trainer.iteration >= recipe.unquantised - 1:
                revive(self.trainer.model.quantizer["quantizer"], latent, recipe.revive)
        trainer.advance()
        return report


class DenoiserTraining:
    """The denoiser on pairs of latents, against the noise that ``system.diffusion`` describes."""

    def __init__(
        self,
        system: System,
        pairs: Sequence[Squares],
        autoencoder: nn.Module,
        *,
        place: Place = HERE,
        workers: int = 0,
    ) -> None:
        self.system, self.place, self.recipe = system, place, system.denoiser
        recipe = self.recipe
        self.autoencoder = autoencoder.eval().requires_grad_(False).to(place.device)
        self.items = items(recipe, pairs)
        self.order = Order(len(self.items), recipe.batch, recipe.seed)
        diffusion = dict(system.diffusion)
        if not diffusion["latent_scale"]:
            diffusion["latent_scale"] = self.measured_scale(pairs[:MEASURED])
        try:
            self.diffusion = Diffusion(**diffusion)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise TrainingError(f"the diffusion cannot be as set: {wrong}") from error
        if recipe.error not in ("l1", "l2"):
            raise TrainingError(f"error={recipe.error}: that must be l1 or l2")
        noise = Noise(self.diffusion)
        levels = [noise.at(t) for t in range(noise.train_steps)]
        self.alpha, self.sigma, self.told = (
            torch.tensor([getattr(level, name) for level in levels], dtype=torch.float32, device=place.device)
            for name in ("alpha", "sigma", "told")
        )
        self.trainer = trainer(
            system,
            "denoiser",
            recipe,
            lambda: system.make_denoiser(system.denoiser_shape),
            len(self.items),
            place,
            diffusion,
        )
        self.trainer.model.train()
        self.side = (recipe.crop or pairs[0].planes.shape[-1]) // system.factor
        self.channels = system.autoencoder_shape.code_dimension
        self.latents: dict[int, list[Tensor]] = {}
        self.feed = Feed(self.sample, recipe.batch, place, portions=recipe.accumulate, workers=workers)

    @torch.no_grad()
    def measured_scale(self, pairs: Sequence[Squares]) -> float:
        """What brings latents to unit variance."""
        rng = np.random.default_rng(0)
        spread = [self.encode(draw(s, rng)[0][None].to(self.place.device)).std() for s in pairs]
        return round(float(1 / torch.stack(spread).mean()), 4)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Latents, float32, quantised if the recipe works on such, not scaled."""
        with self.place.autocast():
            latent = self.autoencoder.encode(image).float()
        return self.autoencoder.quantise(latent)[0] if self.recipe.quantised else latent

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Images in [-1, 1] of latents that are not scaled."""
        with self.place.autocast():
            back = self.autoencoder.decoder if self.recipe.quantised else self.autoencoder.decode
            return back(latent).float()

    def sample(self, iteration: int, index: int) -> tuple[int, list[Tensor], int, Tensor]:
        """Which item, its images (none if their latents are known), the level, and the noise."""
        recipe = self.recipe
        number = self.order(iteration, index)
        rng, noise = (np.random.default_rng((recipe.seed, iteration, index, n)) for n in range(2))
        level = int(noise.integers(len(self.alpha)))
        if noise.random() < recipe.late:
            level = len(self.alpha) - 1 - level // 10
        drawn = noise.standard_normal((self.channels, self.side, self.side), dtype=np.float32)
        offset = noise.standard_normal((self.channels, 1, 1), dtype=np.float32)
        images = []
        if number not in self.latents:
            item = self.items[number]
            images = draw(item.squares, rng, crop=recipe.crop, varied=recipe.varied, masked=item.masked)
        return number, images, level, torch.from_numpy(drawn + recipe.offset_noise * offset)

    def pair_of_latents(self, number: int, images: list[Tensor]) -> list[Tensor]:
        """Of radiograph and soft tissue, scaled. Images that never vary are encoded once."""
        if number in self.latents:
            return [latent.to(self.place.device) for latent in self.latents[number]]
        latents = [self.encode(image[None].to(self.place.device))[0] for image in images]
        latents = [latent * self.diffusion.latent_scale for latent in latents]
        if not (self.recipe.varied or self.recipe.crop):
            self.latents[number] = [latent.cpu() for latent in latents]
        return latents

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network is to predict of a sample alpha clean + sigma noise."""
        if self.diffusion.prediction == "epsilon":
            return noise
        if self.diffusion.prediction == "sample":
            return clean
        return wide(self.alpha[level]) * noise - wide(self.sigma[level]) * clean

    def clean(self, prediction: Tensor, sample: Tensor, level: Tensor) -> Tensor:
        """The clean latent that a prediction amounts to."""
        alpha, sigma = wide(self.alpha[level]), wide(self.sigma[level])
        if self.diffusion.prediction == "epsilon":
            return (sample - sigma * prediction) / alpha
        if self.diffusion.prediction == "sample":
            return prediction
        return (alpha * sample - sigma * prediction) / (alpha.square() + sigma.square())

    def step(self) -> dict[str, float]:
        """One update; returns the error and, beside it, what leaving the radiograph as it is would cost."""
        trainer, recipe = self.trainer, self.recipe
        part = trainer.parts["model"]
        report: dict[str, float] = {}
        distance = F.mse_loss if recipe.error == "l2" else F.l1_loss
        for number, samples in enumerate(self.feed(trainer.iteration), 1):
            device = self.place.device
            latents = [self.pair_of_latents(item, images) for item, images, _, _ in samples]
            condition, clean = (torch.stack(members) for members in zip(*latents, strict=True))
            level = torch.tensor([s[2] for s in samples], device=device)
            noise = torch.stack([s[3] for s in samples]).to(device)
            noisy = wide(self.alpha[level]) * clean + wide(self.sigma[level]) * noise
            with part.portion(last=number == recipe.accumulate):
                with self.place.autocast():
                    prediction = self.system.denoise(part.call, noisy, condition, self.told[level])
                error = distance(prediction.float(), self.target(clean, noise, level))
                add(report, learn({"error": error}, 1 / recipe.accumulate))
            with torch.no_grad():
                made = self.clean(prediction.detach().float(), noisy, level)
                # A level that is nearly all noise says nothing of the clean latent by epsilon.
                near = distance(made.clamp(-9, 9), clean)
                unchanged = distance(condition, clean)
            add(
                report,
                {"clean": near.item() / recipe.accumulate, "unchanged": unchanged.item() / recipe.accumulate},
            )
        trainer.advance()
        return report

    @torch.no_grad()
    def suppress(self, image: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """(N, 1, S, S) in [-1, 1] -> soft tissue as it is decoded, and the image less the decoded difference
        that suppression makes; by the averaged weights, DDIM in ``steps`` steps.
        """
        scale, steps = self.diffusion.latent_scale, self.recipe.steps
        network = self.trainer.average.eval()
        latent = self.encode(image)
        generator = np.random.default_rng(seed)
        sample = torch.from_numpy(generator.standard_normal(latent.shape, dtype=np.float32)).to(latent.device)
        count = len(self.alpha)
        visited = [round(count * (i + 1) / steps) - 1 for i in range(steps)][::-1]
        clean = sample
        for number, t in enumerate(visited):
            level = torch.full((len(sample),), t, device=latent.device)
            with self.place.autocast():
                prediction = self.system.denoise(network, sample, latent * scale, self.told[level])
            clean = self.clean(prediction.float(), sample, level)
            if self.diffusion.clip_start is not None:
                limit = self.diffusion.clip_start + self.diffusion.clip_slope * (count - 1 - t)
                clean = clean.clamp(-limit, limit)
            if number + 1 < steps:
                noise = (sample - wide(self.alpha[level]) * clean) / wide(self.sigma[level])
                later = visited[number + 1]
                sample = self.alpha[later] * clean + self.sigma[later] * noise
        self.trainer.model.train()
        soft = self.decode(clean / scale)
        return soft, image - (self.decode(latent) - soft)


def wide(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def add(report: dict[str, float], values: dict[str, float]) -> None:
    """Sums by name."""
    for name, value in values.items():
        report[name] = report.get(name, 0.0) + value


def load_autoencoder(system: System, path: Path) -> nn.Module:
    """The autoencoder of a checkpoint, averaged if it was; its shape must be the system's."""
    return _load(system.make_autoencoder, system.autoencoder_shape, path)


def load_denoiser(system: System, path: Path) -> nn.Module:
    """The denoiser of a checkpoint, averaged if it was; its shape must be the system's."""
    return _load(system.make_denoiser, system.denoiser_shape, path)


def _load(make: Callable[[Any], nn.Module], shape: Any, path: Path) -> nn.Module:
    found, weights = averaged(path, type(shape))
    if found != shape:
        raise TrainingError(f"{path} holds {found}, not {shape}; choose its system by --shape")
    model = make(shape)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def load_diffusion(path: Path) -> dict[str, Any]:
    """The card's table [diffusion] of a denoiser's checkpoint, the measured latent_scale included."""
    found: dict[str, Any] = read(path)["settings"]["diffusion"]
    return found


def train(
    training: AutoencoderTraining | DenoiserTraining,
    checkpoint: Path,
    *,
    minutes: float,
    iterations: int | None = None,
    look: Callable[[], None] | None = None,
    look_every: int | None = None,
    every: int = 20,
) -> None:
    """Trains for ``minutes``, to the last epoch or to ``iterations``, whichever comes first; goes on from
    ``checkpoint`` if it is there.
    """
    recipe, count = training.recipe, len(training.items)
    last = plan(recipe, count)[0]
    epoch = max(1, count // recipe.batch)
    say(
        training.place,
        f"{count} samples, {epoch} iterations an epoch, {last} in all; {training.place.device}, "
        f"{str(training.place.precision).removeprefix('torch.')}, {training.place.world} processes",
    )
    try:
        run(
            training.trainer,
            training.step,
            checkpoint,
            minutes=minutes,
            iterations=min(last, iterations or last),
            every=every,
            look=look,
            look_every=max(1, round(recipe.look * epoch)) if look_every is None else look_every,
        )
    finally:
        training.feed.close()
