"""The conditioned Gaussian over the extractor's features, and the whole model as one module.

After PaDiM (Defard et al., ICPR 2021): each place of the feature map has a Gaussian of its own. Here its mean
is a linear function of age, sex and view (ridge regression on normal radiographs), so that an old AP chest is
compared with what old AP chests look like. The same is done for the extractor's outline of findings and for
the image-level numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.anomaly.network import Extractor, Output

PARTS = ("finding present", "outline mean", "outline peak", "deviation mean", "deviation peak")
DESIGN = 4


def design(conditions: Tensor) -> Tensor:
    """(N, 5) conditions -> (N, 4): 1, (age - 50 years) / 20, sex and view; 0 for what is not known."""
    age, known, sex, view = conditions[:, 0], conditions[:, 1], conditions[:, 2], conditions[:, 3]
    return torch.stack([torch.ones_like(age), (age - 0.5) * known * 5, sex, view], dim=1)


def ridge(regressors: Tensor, values: Tensor, strength: float) -> Tensor:
    """Coefficients (k, ...) of ``values`` (N, ...) on ``regressors`` (N, k); the constant is not shrunk."""
    flat = values.reshape(len(values), -1).double()
    g = regressors.double()
    penalty = torch.diag(torch.tensor([0.0] + [strength * len(g)] * (g.shape[1] - 1), dtype=torch.float64))
    return torch.linalg.solve(g.T @ g + penalty, g.T @ flat).reshape(-1, *values.shape[1:]).float()


def outline_of(output: Output) -> Tensor:
    """(N, 1, S/4, S/4): how clearly a finding covers each place; 0 where surely none does."""
    return F.softplus(output.change[:, :1].float() + 3)


def top_mean(x: Tensor, share: float) -> Tensor:
    """(N, P) -> (N,): mean of the largest ``share`` of each row."""
    return x.topk(max(1, int(share * int(x.shape[1]))), dim=1).values.mean(1)


@dataclass(frozen=True)
class Settings:
    """Choices of the Gaussian.

    Features kept, ridge strength, shrinkages towards the pooled covariance and a sphere, weights of the
    score's parts (in the order of ``PARTS``).
    """

    features: int = 24
    ridge: float = 0.05
    pooled: float = 0.5
    sphere: float = 0.05
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 0.25, 0.25)


class AnomalyModel(nn.Module):
    """image (N, 1, S, S) in [-1, 1], conditions (N, 5) -> score (N,), heatmap (N, S/4, S/4) >= 0.

    Score: in standard deviations above the mean of normal radiographs of that age, sex and view. Heatmap:
    likewise, 0.7 of the outline's and 0.3 of the features' deviation at each place, negative sums cut off.
    """

    def __init__(self, extractor: Extractor, settings: Settings = Settings()) -> None:
        super().__init__()
        self.extractor, self.settings = extractor, settings
        side, width, d = extractor.shape.size // 16, extractor.shape.widths[3], settings.features
        for name, shape in {
            "centre": (width,),
            "basis": (width, d),
            "place_mean": (DESIGN, side * side, d),
            "whiten": (side * side, d, d),
            "outline_mean": (DESIGN, side * side),
            "outline_scale": (side * side,),
            "deviation_mean": (DESIGN, side * side),
            "deviation_scale": (side * side,),
            "part_mean": (DESIGN, len(PARTS)),
            "part_scale": (len(PARTS),),
            "score_mean": (DESIGN,),
            "score_scale": (1,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    def project(self, output: Output) -> Tensor:
        """(N, P, d): the patch features in the basis of normal variation."""
        return (output.patches.float().flatten(2).transpose(1, 2) - self.centre) @ self.basis

    def deviation(self, projected: Tensor, g: Tensor) -> Tensor:
        """(N, P): log of the Mahalanobis distance per degree of freedom."""
        mean = torch.einsum("nk,kpd->npd", g, self.place_mean)
        white = torch.einsum("npd,pde->npe", projected - mean, self.whiten)
        return (white.square().mean(2) + 1e-3).log() * 0.5

    def parts(self, output: Output, deviation: Tensor) -> Tensor:
        """(N, 5): the image-level numbers, in the order of ``PARTS``."""
        outline = outline_of(output).flatten(1)
        return torch.stack(
            [
                output.image.float(),
                outline.mean(1),
                top_mean(outline, 0.05),
                deviation.mean(1),
                top_mean(deviation, 0.1),
            ],
            dim=1,
        )

    def standard_parts(self, parts: Tensor, g: Tensor) -> Tensor:
        """The numbers in standard deviations above what is expected; bounded, so that none rules alone."""
        return ((parts - g @ self.part_mean) / self.part_scale).clamp(-4, 6)

    def combine(self, standard: Tensor) -> Tensor:
        """(N,): weighted sum of the standardised numbers."""
        return standard @ torch.tensor(self.settings.weights, device=standard.device)

    def forward(self, image: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        g = design(conditions)
        output = self.extractor(image)
        deviation = self.deviation(self.project(output), g)
        standard = self.standard_parts(self.parts(output, deviation), g)
        score = (self.combine(standard) - g @ self.score_mean) / self.score_scale
        side = image.shape[-1] // 16
        strange = (deviation - g @ self.deviation_mean) / self.deviation_scale
        strange = F.interpolate(
            strange.view(-1, 1, side, side), scale_factor=4.0, mode="bilinear", align_corners=False
        )
        expected = F.interpolate(
            (g @ self.outline_mean).view(-1, 1, side, side),
            scale_factor=4.0,
            mode="bilinear",
            align_corners=False,
        )
        scale = F.interpolate(
            self.outline_scale.view(1, 1, side, side), scale_factor=4.0, mode="bilinear", align_corners=False
        )
        outline = (outline_of(output) - expected) / scale
        return score, (0.7 * outline + 0.3 * strange)[:, 0].clamp_min(0)

    @torch.no_grad()
    def fit(self, outputs: list[Output], conditions: Tensor) -> None:
        """

        Stimates every buffer from the extractor's outputs on normal radiographs with their ``conditions``.
        """
        s = self.settings
        patches = torch.cat([o.patches.float() for o in outputs])
        output = Output(
            torch.cat([o.change.float() for o in outputs]),
            torch.cat([o.image.float() for o in outputs]),
            torch.cat([o.conditions.float() for o in outputs]),
            patches,
        )
        g = design(conditions)
        flat = patches.flatten(2).transpose(1, 2).reshape(-1, patches.shape[1])
        self.centre.copy_(flat.mean(0))
        covariance = torch.cov((flat - self.centre).T.double())
        self.basis.copy_(torch.linalg.eigh(covariance).eigenvectors[:, -s.features :].float())
        projected = self.project(output)
        self.place_mean.copy_(ridge(g, projected, s.ridge))
        rest = (projected - torch.einsum("nk,kpd->npd", g, self.place_mean)).transpose(0, 1).double()
        local = torch.einsum("pnd,pne->pde", rest, rest) / len(g)
        pooled = local.mean(0, keepdim=True)
        sphere = torch.eye(s.features, dtype=torch.float64) * pooled.diagonal(dim1=1, dim2=2).mean()
        shrunk = (1 - s.pooled) * local + s.pooled * pooled
        shrunk = (1 - s.sphere) * shrunk + s.sphere * sphere
        values, vectors = torch.linalg.eigh(shrunk)
        self.whiten.copy_((vectors * values.clamp_min(1e-9).rsqrt()[:, None, :]).float())

        deviation = self.deviation(projected, g)
        self.deviation_mean.copy_(ridge(g, deviation, s.ridge))
        self.deviation_scale.copy_(self._spread(deviation - g @ self.deviation_mean))
        side = patches.shape[-1]
        outline = F.adaptive_avg_pool2d(outline_of(output), side).flatten(1)
        self.outline_mean.copy_(ridge(g, outline, s.ridge))
        self.outline_scale.copy_(self._spread(outline - g @ self.outline_mean))
        parts = self.parts(output, deviation)
        self.part_mean.copy_(ridge(g, parts, s.ridge))
        self.part_scale.copy_((parts - g @ self.part_mean).square().mean(0).sqrt())
        total = self.combine(self.standard_parts(parts, g))
        self.score_mean.copy_(ridge(g, total, s.ridge))
        self.score_scale.copy_((total - g @ self.score_mean).square().mean().sqrt().view(1))

    @staticmethod
    def _spread(rest: Tensor) -> Tensor:
        """Deviation at each place, half shrunk towards that of the whole plane."""
        return (0.5 * rest.square().mean(0) + 0.5 * rest.square().mean()).sqrt()


@torch.no_grad()
def outputs_of(extractor: Extractor, images: Tensor, batch: int = 32) -> list[Output]:
    """The extractor's outputs on (N, 1, S, S) images, batch by batch."""
    return [extractor(images[i : i + batch]) for i in range(0, len(images), batch)]
