"""Training: first the autoencoder, then the denoiser in its latent space."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.anomaly import data as nih
from export.bone_suppression import autoencoder, denoiser
from export.bone_suppression.data import SIZE, Pair, crops, training_pairs, vary
from export.restoration.diffusion import TRAIN_STEPS, add_noise, alphas_cumprod
from export.training import Trainer, averaged, run

AUTOENCODER, DENOISER = "autoencoder.pt", "denoiser.pt"
#: From here on a discriminator watches the decoded image; before, there is nothing worth telling apart.
ADVERSARIAL_FROM, ADVERSARIAL_WEIGHT = 1000, 0.005
#: Noise that is constant over each channel's plane, as a share of the rest (BS-LDM, section III-C).
OFFSET_NOISE = 0.1


class Adversaries(nn.Module):
    """The autoencoder and its discriminator as one model: one optimiser, one checkpoint."""

    def __init__(self, shape: autoencoder.Shape) -> None:
        super().__init__()
        self.shape = shape
        self.autoencoder = autoencoder.Autoencoder(shape)
        self.discriminator = autoencoder.Discriminator()

    def fooled(self, image: Tensor) -> Tensor:
        """The discriminator's view of ``image``, with gradients for the image alone."""
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, fixed, (image,))


def slopes(image: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours, down and across."""
    return image.diff(dim=2), image.diff(dim=3)


def distance(image: Tensor, reference: Tensor) -> Tensor:
    """L1 of the image and of its slopes, at full and at a quarter of the side: ribs are edges and shadows."""
    total = torch.zeros(())
    for factor in (1, 4):
        a, b = (F.avg_pool2d(i, factor) for i in (image, reference))
        total = (
            total + F.l1_loss(a, b) + sum(F.l1_loss(x, y) for x, y in zip(slopes(a), slopes(b), strict=True))
        )
    return total


def autoencoder_trainer(shape: autoencoder.Shape, *, seed: int = 0) -> Trainer:
    """The recipe's trainer of the autoencoder."""
    return Trainer(lambda: Adversaries(shape), rate=2e-4, warm_up=100, decay=0.01, clip=1.0, seed=seed)


def autoencoder_step(
    trainer: Trainer, pairs: list[Pair], others: list[Pair], batch: int, crop: int
) -> dict[str, float]:
    """One update on crops of either image of a pair, or of a radiograph without a twin. Returns the terms."""
    rng = trainer.rng()
    images = []
    for _ in range(batch):
        source = others if others and rng.random() < 0.3 else pairs
        images.append((vary(source[rng.integers(len(source))], rng)[rng.integers(2)],))
    (image,) = crops(images, crop, rng)
    model: Adversaries = trainer.model  # type: ignore[assignment]
    with torch.autocast("cpu", torch.bfloat16):
        decoded, quantisation = model.autoencoder(image)
    decoded = decoded.float()
    terms = {"distance": distance(decoded, image), "quantisation": quantisation.float()}
    if trainer.iteration >= ADVERSARIAL_FROM:
        real, false = model.discriminator(image), model.discriminator(decoded.detach())
        terms["adversarial"] = ADVERSARIAL_WEIGHT * (model.fooled(decoded) - 1).square().mean()
        terms["discriminator"] = 0.5 * ((real - 1).square().mean() + false.square().mean())
    return trainer.update(terms)


def load_autoencoder(path: Path) -> autoencoder.Autoencoder:
    """The averaged autoencoder of a checkpoint."""
    shape, weights = averaged(path, autoencoder.Shape)
    model = Adversaries(shape)
    model.load_state_dict(weights)
    return model.autoencoder.eval().requires_grad_(False)


def denoiser_trainer(shape: denoiser.Shape, *, seed: int = 1) -> Trainer:
    """The recipe's trainer of the denoiser."""
    return Trainer(
        lambda: denoiser.Denoiser(shape),
        rate=3e-4,
        warm_up=50,
        decay=0.01,
        clip=1.0,
        average=0.995,
        seed=seed,
    )


def latent_scale(encoder: autoencoder.Autoencoder, pairs: list[Pair]) -> float:
    """What brings latents to unit variance, measured on radiographs of the first pairs."""
    images = torch.stack([torch.from_numpy(p.radiograph)[None].float() / 127.5 - 1 for p in pairs[:16]])
    return float(1 / encoder.encode(images).std())


def denoiser_step(
    trainer: Trainer,
    encoder: autoencoder.Autoencoder,
    scale: float,
    pairs: list[Pair],
    batch: int,
    crop: int,
    alphas: Tensor,
) -> dict[str, float]:
    """One update on crops of varied pairs. Returns the loss and, beside it, what doing nothing would cost."""
    rng = trainer.rng()
    radiograph, soft = crops([vary(pairs[rng.integers(len(pairs))], rng) for _ in range(batch)], crop, rng)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        condition, clean = (encoder.encode(image).float() * scale for image in (radiograph, soft))
    # Nearly a third of the steps from nearly pure noise, where few-step sampling does most of its work.
    uniform = torch.from_numpy(rng.integers(TRAIN_STEPS, size=batch))
    late = torch.from_numpy(rng.random(batch) < 0.3)
    timestep = torch.where(late, TRAIN_STEPS - 1 - uniform // 10, uniform)
    noise = torch.randn_like(clean) + OFFSET_NOISE * torch.randn(*clean.shape[:2], 1, 1)
    sample = add_noise(clean, noise, timestep, alphas)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = trainer.model(sample, condition, timestep.float())
    terms = trainer.update({"error": F.l1_loss(prediction.float(), clean)})
    return terms | {"unchanged": float(F.l1_loss(condition, clean))}


def train_autoencoder(
    data: Path, out: Path, *, minutes: float, iterations: int | None = None, batch: int = 4, crop: int = 192
) -> None:
    """Trains for ``minutes``, going on from ``out/autoencoder.pt`` if it is there."""
    pairs = training_pairs(data, out.parent / "cache")
    records = nih.select(nih.read_records(data), "train")[:300]
    images = nih.read_images([r.path for r in records], SIZE, out.parent / "cache")
    others = [Pair(r.path.name, image, image) for r, image in zip(records, images, strict=True)]
    trainer = autoencoder_trainer(autoencoder.Shape())
    run(
        trainer,
        lambda: autoencoder_step(trainer, pairs, others, batch, crop),
        out / AUTOENCODER,
        minutes=minutes,
        iterations=iterations,
        every=50,
    )


def train_denoiser(
    data: Path, out: Path, *, minutes: float, iterations: int | None = None, batch: int = 8, crop: int = 256
) -> None:
    """Trains for ``minutes``, going on from ``out/denoiser.pt`` if it is there. Needs
    ``out/autoencoder.pt``.
    """
    pairs = training_pairs(data, out.parent / "cache")
    encoder, alphas = load_autoencoder(out / AUTOENCODER), alphas_cumprod()
    scale = latent_scale(encoder, pairs)
    trainer = denoiser_trainer(denoiser.Shape())
    run(
        trainer,
        lambda: denoiser_step(trainer, encoder, scale, pairs, batch, crop, alphas),
        out / DENOISER,
        minutes=minutes,
        iterations=iterations,
        every=25,
    )


def load_denoiser(path: Path) -> denoiser.Denoiser:
    """The averaged denoiser of a checkpoint."""
    shape, weights = averaged(path, denoiser.Shape)
    model = denoiser.Denoiser(shape)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
