"""The first stage: the autoencoder by its multi-level hybrid loss, against an adversary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.bone_suppression.data import Order, Squares
from export.bone_suppression.losses import difference, fooled, ms_ssim, told_apart
from export.bone_suppression.recipes import System
from export.bone_suppression.train import Item, add, items, trainer
from export.bone_suppression.vqgan import MLVQGAN, Quantiser
from export.devices import HERE, Place, gathered
from export.training import Feed, learn


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
    """ML-VQGAN on images: either one of a pair, or both if their difference counts, or a radiograph alone."""

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
        planes = (None,) if self.recipe.bones else (0, 1)
        self.items = [Item(i.squares, i.masked, plane) for plane in planes for i in both]
        self.items += [Item(s) for s in others]
        self.order = Order(len(self.items), self.recipe.batch, self.recipe.seed)
        self.trainer = trainer(
            system,
            "autoencoder",
            self.recipe,
            lambda: MLVQGAN(system.autoencoder_shape),
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
        """(1 or 2, 1, crop, crop) in [-1, 1]: an image, or a pair (of a radiograph alone, two parts)."""
        item = self.items[self.order(iteration, index)]
        rng = np.random.default_rng((self.recipe.seed, iteration, index))
        images = item.draw(self.recipe, rng).images
        if not self.recipe.bones:
            return images[item.plane or 0][None]
        return torch.stack(images if len(images) == 2 else images + item.draw(self.recipe, rng).images)

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
        if recipe.bones:
            both, made = (i.unflatten(0, (-1, 2)) for i in (image, decoded))
            found["bones"] = recipe.bones * difference(made[:, 0] - made[:, 1], both[:, 0] - both[:, 1])
        if self.perceptual is not None:
            with self.place.autocast():
                found["perceptual"] = recipe.perceptual * self.perceptual(decoded, image)
        return found

    def step(self) -> dict[str, float]:
        """One update of the autoencoder and of its opponent; returns the weighted terms."""
        trainer, recipe = self.trainer, self.recipe
        chance = trainer.rng().random()
        model, opponent = trainer.parts["model"], trainer.parts.get("opponent")
        if trainer.iteration < recipe.opponent_from:
            opponent = None
        quantised = trainer.iteration >= recipe.unquantised and chance >= recipe.raw
        report: dict[str, float] = {}
        share = 1 / recipe.accumulate
        for number, samples in enumerate(self.feed(trainer.iteration), 1):
            last = number == recipe.accumulate
            image = torch.cat(samples).to(self.place.device, memory_format=torch.channels_last)
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
