"""The second stage: diffusion of the soft tissue's latent, given the radiograph's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.bone_suppression.data import Example, Order, Squares, draw
from export.bone_suppression.losses import difference
from export.bone_suppression.recipes import System, side_by_side
from export.bone_suppression.train import add, items, trainer
from export.bone_suppression.unet import UNet
from export.devices import HERE, Place
from export.training import Feed, TrainingError, learn
from pacs_node.infer.cards import Diffusion
from pacs_node.infer.sampling.noise import Noise

#: Images on which a latent_scale is measured.
MEASURED = 16
#: Least side of the part of a latent that is decoded in training, where its bones count: half of the latent's
#: side if that is more.
DECODED = 32


@dataclass(frozen=True)
class Sample:
    """One example of item number ``item`` (none if its latents are known), the level and the noise, and
    (top, left) of the part of its latent that is decoded.
    """

    item: int
    shown: Example | None
    level: int
    noise: Tensor
    corner: tuple[int, int]


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
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.autoencoder.to(place.device, memory_format=torch.channels_last)
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
            lambda: UNet(system.denoiser_shape),
            len(self.items),
            place,
            diffusion,
        )
        self.trainer.model.train()
        self.side = (recipe.crop or pairs[0].planes.shape[-1]) // system.factor
        self.decoded = max(DECODED, self.side // 2)
        self.channels = system.autoencoder_shape.code_dimension
        self.latents: dict[int, list[Tensor]] = {}
        self.feed = Feed(self.sample, recipe.batch, place, portions=recipe.accumulate, workers=workers)

    @torch.no_grad()
    def measured_scale(self, pairs: Sequence[Squares]) -> float:
        """What brings latents to unit variance."""
        rng = np.random.default_rng(0)
        spread = [self.encode(draw(s, rng).images[0][None].to(self.place.device)).std() for s in pairs]
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
            return self.autoencoder.decoder(latent).float()

    def sample(self, iteration: int, index: int) -> Sample:
        """Number ``index`` of this iteration's batch."""
        recipe = self.recipe
        number = self.order(iteration, index)
        rng, noise = (np.random.default_rng((recipe.seed, iteration, index, n)) for n in range(2))
        level = int(noise.integers(len(self.alpha)))
        if noise.random() < recipe.late:
            level = len(self.alpha) - 1 - level // 10
        drawn = noise.standard_normal((self.channels, self.side, self.side), dtype=np.float32)
        offset = noise.standard_normal((self.channels, 1, 1), dtype=np.float32)
        shown = None if number in self.latents else self.items[number].draw(recipe, rng)
        top, left = noise.integers(0, max(self.side - self.decoded, 0) + 1, size=2)
        whole = torch.from_numpy(drawn + recipe.offset_noise * offset)
        return Sample(number, shown, level, whole, (int(top), int(left)))

    def pair_of_latents(self, number: int, shown: Example | None) -> list[Tensor]:
        """Of radiograph and soft tissue, scaled. Images that never vary are encoded once."""
        if number in self.latents:
            return [latent.to(self.place.device) for latent in self.latents[number]]
        assert shown is not None
        latents = [self.encode(image[None].to(self.place.device))[0] for image in shown.images]
        latents = [latent * self.diffusion.latent_scale for latent in latents]
        if not (self.recipe.varied or self.recipe.crop or self.recipe.bones):
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

    def bones_missed(self, samples: Sequence[Sample], condition: Tensor, made: Tensor) -> Tensor:
        """How far parts of the decoded bone images are from those of the samples."""
        latents, true, opacities = [], [], []
        factor = self.system.factor
        for number, sample in enumerate(samples):
            top, left = sample.corner
            part = np.s_[:, top : top + self.decoded, left : left + self.decoded]
            latents.append((condition[number][part], made[number][part]))
            down, right = factor * top, factor * left
            place = np.s_[:, down : down + factor * self.decoded, right : right + factor * self.decoded]
            assert sample.shown is not None
            radiograph, soft = sample.shown.images
            true.append(radiograph[place] - soft[place])
            opacities.append(sample.shown.opacities[place])
        before, after = (
            torch.stack(part) / self.diffusion.latent_scale for part in zip(*latents, strict=True)
        )
        with self.place.autocast():
            with torch.no_grad():
                radiographs = self.autoencoder.decoder(before)
            bones = radiographs - self.autoencoder.decoder(after)
        device = self.place.device
        return difference(bones.float(), torch.stack(true).to(device), torch.stack(opacities).to(device))

    def step(self) -> dict[str, float]:
        """One update; returns the error and, beside it, what leaving the radiograph as it is would cost."""
        trainer, recipe = self.trainer, self.recipe
        part = trainer.parts["model"]
        report: dict[str, float] = {}
        distance = F.mse_loss if recipe.error == "l2" else F.l1_loss
        for number, samples in enumerate(self.feed(trainer.iteration), 1):
            device = self.place.device
            latents = [self.pair_of_latents(s.item, s.shown) for s in samples]
            condition, clean = (torch.stack(members) for members in zip(*latents, strict=True))
            level = torch.tensor([s.level for s in samples], device=device)
            noise = torch.stack([s.noise for s in samples]).to(device)
            noisy = wide(self.alpha[level]) * clean + wide(self.sigma[level]) * noise
            with part.portion(last=number == recipe.accumulate):
                with self.place.autocast():
                    prediction = side_by_side(part.call, noisy, condition, self.told[level])
                prediction = prediction.float()
                terms = {"error": distance(prediction, self.target(clean, noise, level))}
                made = self.clean(prediction, noisy, level)
                if recipe.bones:
                    terms["bones"] = recipe.bones * self.bones_missed(samples, condition, made)
                add(report, learn(terms, 1 / recipe.accumulate))
            with torch.no_grad():
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
                prediction = side_by_side(network, sample, latent * scale, self.told[level])
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
