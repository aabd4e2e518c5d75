"""The multi-level hybrid loss of ML-VQGAN beside L1 and quantisation: perception, structure, adversary.

BS-LDM: Sun et al., arXiv 2412.15670, section III-A. The perceptual distance is that of Zhang et al., CVPR
2018 (LPIPS): features of a network, each place's scaled to length 1, their squared differences summed over
channels and averaged over places and levels. MS-SSIM: Wang, Simoncelli, Bovik, Asilomar 2003.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.training import TrainingError

#: Exponents of the scales of MS-SSIM, from the finest on (Wang et al., section 3.2).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, DEVIATION = 11, 1.5
#: How much more than others an error counts that takes away from an opacity.
PROTECTION = 6.0


def ms_ssim(image: Tensor, reference: Tensor, span: float = 2.0) -> Tensor:
    """(N, 1, H, W) twice -> (N,), 1 where they are alike; ``span``: from black to white.

    Five scales, so each side has over 160 pixels; a smaller image leaves out the coarsest scales (the other
    exponents are scaled up to the same sum). Negative terms count as 0.
    """
    scales = sum(min(image.shape[2:]) >> level >= WINDOW for level in range(len(SCALES)))
    if not scales:
        raise TrainingError(f"images of {image.shape[2]} x {image.shape[3]} are too small for MS-SSIM")
    weights = [w * sum(SCALES) / sum(SCALES[:scales]) for w in SCALES[:scales]]
    offsets = torch.arange(WINDOW, dtype=image.dtype, device=image.device) - WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * DEVIATION**2))
    bell = (bell / bell.sum()).view(1, 1, WINDOW, 1)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, bell), bell.transpose(2, 3))

    small, less = (0.01 * span) ** 2, (0.03 * span) ** 2
    result = torch.ones(len(image), dtype=image.dtype, device=image.device)
    for level, weight in enumerate(weights):
        if level:
            image, reference = F.avg_pool2d(image, 2), F.avg_pool2d(reference, 2)
        mean, other = blur(image), blur(reference)
        variances = blur(image * image) + blur(reference * reference) - mean.square() - other.square()
        structure = (2 * (blur(image * reference) - mean * other) + less) / (variances + less)
        if level == len(weights) - 1:
            luminance = (2 * mean * other + small) / (mean.square() + other.square() + small)
            structure = structure * luminance
        # The gradient of x**w is infinite at 0.
        result = result * structure.mean((1, 2, 3)).clamp(min=1e-4) ** weight
    return result


def difference(made: Tensor, true: Tensor, opacities: Tensor | None = None, reach: int = 4) -> Tensor:
    """Between two bone images (N, 1, H, W): the mean error of their values, and of how they change over
    ``reach`` pixels down and across, where a rib's edge is. Where ``opacities`` (of the same shape, in
    [0, 1]) is 1, what is taken for bone and is none counts ``PROTECTION`` times.
    """
    error = made - true
    if opacities is not None:
        error = torch.where(error > 0, (1 + (PROTECTION - 1) * opacities) * error, error)
    down, across = error[..., reach:, :] - error[..., :-reach, :], error[..., reach:] - error[..., :-reach]
    return error.abs().mean() + down.abs().mean() + across.abs().mean()


class Discriminator(nn.Module):
    """Tells patches of real images from decoded ones: (N, 1, H, W) -> (N, 1, H/8 - 2, W/8 - 2).

    The patch discriminator of Isola et al., CVPR 2017, with group in place of batch normalisation: what it
    says of an image does not depend on the others in the batch, so that batches can be cut over devices.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            after = 2 * before
            layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False)]
            layers += [nn.GroupNorm(math.gcd(after, 32), after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))
        self.shape = width

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def fooled(discriminator: nn.Module, image: Tensor) -> Tensor:
    """Least squares (Mao et al., ICCV 2017): 0 if every patch passes for real. Gradients for the image
    alone.
    """
    fixed = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    seen: Tensor = torch.func.functional_call(discriminator, fixed, (image,))
    return (seen.float() - 1).square().mean()


def told_apart(discriminator: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Least squares of the adversary: 0 if it tells every patch; 0.25 if it says 1/2 to all."""
    of_real, of_made = discriminator(torch.cat([real, made.detach()])).float().chunk(2)
    return 0.5 * ((of_real - 1).square().mean() + of_made.square().mean())


class Perceptual(nn.Module):
    """LPIPS-like distance by the levels of features that ``network`` gives: (N, 1, H, W) twice, in [-1, 1] ->
    scalar. ``weights`` of the channels of each level, (1, C, 1, 1); without them every channel counts alike.
    """

    def __init__(self, network: nn.Module, weights: list[Tensor] | None = None) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        for number, weight in enumerate(weights or []):
            self.register_buffer(f"weight{number}", weight)

    def features(self, image: Tensor) -> list[Tensor]:
        """Of each level, scaled to length 1 at every place."""
        levels = (level.float() for level in self.network(image))
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in levels]

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        total = torch.zeros((), device=image.device)
        with torch.no_grad():
            references = self.features(reference)
        for number, (a, b) in enumerate(zip(self.features(image), references, strict=True)):
            weight = getattr(self, f"weight{number}", None)
            squares = (a - b).square()
            total = total + (squares if weight is None else squares * weight).sum(1).mean()
        return total


class Levels(nn.Module):
    """Parts of a network, one after the other; what each gives."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        return found


#: Convolutions of VGG16 (Simonyan, Zisserman, ICLR 2015) up to relu5_3, and the levels that LPIPS compares.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Scaled(nn.Module):
    """Grey in [-1, 1] to the three channels, means and deviations of ImageNet, as LPIPS scales them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return (image.expand(-1, 3, -1, -1) - self.shift) / self.scale


def vgg16(path: Path) -> Perceptual:
    """The distance by VGG16's features from a state dict on disk: torchvision's ``features.N.weight``, and if
    it holds them LPIPS's ``linN.model.1.weight``. Nothing in the file is executed. Raises TrainingError.
    """
    state = _state_dict(path)
    levels: list[nn.Module] = []
    number = 0
    before = 3
    for level, widths in enumerate(VGG16):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if level else [Scaled()]
        number += 1 if level else 0
        for width in widths:
            layer = nn.Conv2d(before, width, 3, 1, 1)
            try:
                layer.load_state_dict(
                    {k: state[f"features.{number}.{k}"] for k in ("weight", "bias")}  # a conv, then a relu
                )
            except (KeyError, RuntimeError) as error:
                raise TrainingError(
                    f"{path} has no features.{number} of VGG16 ({width} x {before} x 3 x 3); give the state "
                    "dict of torchvision's vgg16"
                ) from error
            layers += [layer, nn.ReLU()]
            before, number = width, number + 2
        levels.append(nn.Sequential(*layers))
    names = [f"lin{n}.model.1.weight" for n in range(len(VGG16))]
    weights = [state[n].float() for n in names] if all(n in state for n in names) else None
    return Perceptual(Levels(levels), weights)


def _state_dict(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such file; give the state dict of VGG16, or none") from error
    # torch raises UnpicklingError, RuntimeError, EOFError … by what is wrong with the file.
    except Exception as error:
        raise TrainingError(
            f"{path} is no state dict ({error.__class__.__name__}); save it as torch.save(model.state_dict())"
        ) from error
    return state
