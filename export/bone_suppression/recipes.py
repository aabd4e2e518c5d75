"""How each system is trained: networks, noise, and every number of both stages as ``--set`` takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from export.bone_suppression import unet, vqgan
from export.bone_suppression.published import BS_LDM, GL_LCM, Published
from export.training import TrainingError


@dataclass(frozen=True)
class Recipe:
    """What both stages have. The defaults of the two stages are those of BS-LDM's code.

    ``milestones``: epochs after which the rate is multiplied by ``factor``; ``accumulate``: portions that a
    batch is taken in; ``decay``, ``epsilon``: AdamW's; ``clip``: largest norm of the gradients, 0 for any;
    ``average``: how much of the moving average an update leaves, 0 for none; ``crop``: side of the squares
    cut out, 0 for whole images; ``varied``: bones, opacities, tone, size and side varied, but for the share
    ``as_they_are``; ``masked``: radiographs black outside the lungs as additional samples (GL-LCM), of pairs
    with lung masks; ``look``: epochs between two validations.
    """

    batch: int = 4
    accumulate: int = 1
    epochs: int = 1000
    rate: float = 1e-4
    warm_up: int = 0
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    decay: float = 0.0
    epsilon: float = 1e-8
    clip: float = 0.0
    average: float = 0.0
    seed: int = 0
    crop: int = 0
    varied: bool = False
    as_they_are: float = 0.0
    masked: bool = False
    look: float = 10.0


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe):
    """Weights of the multi-level hybrid loss; a 0 leaves the term out.

    ``opponent_width``: channels of the discriminator's first layer; ``opponent_from``: the iteration from
    which it takes part. The first ``unquantised`` iterations pass without codes, which are then chosen among
    the latents: codes chosen before the latents have spread collapse. Codes that fewer than ``revive``
    latents a batch take, on average, start again at latents of the batch. ``raw``: share of the iterations
    that pass without codes for good, so that the decoder takes latents as they are, too. ``bones``: weight of
    the error of the difference that a pair's two decoded images have, which is what is subtracted from a
    radiograph; samples are whole pairs then. The authors do none of this.
    """

    l1: float = 1.0
    l2: float = 0.0
    quantisation: float = 1.0
    perceptual: float = 0.001
    ms_ssim: float = 1.0
    adversarial: float = 0.01
    opponent_rate: float = 5e-4
    opponent_width: int = 64
    opponent_from: int = 0
    unquantised: int = 0
    revive: float = 0.0
    raw: float = 0.0
    bones: float = 0.0


@dataclass(frozen=True)
class DenoiserRecipe(Recipe):
    """Latent diffusion. ``error``: "l2" or "l1" of what is predicted; ``offset_noise``: noise constant over a
    channel's plane, as a share of the rest; ``late``: share of the samples drawn from the tenth of the levels
    with the most noise, where few-step sampling does most of its work; ``quantised``: whether the diffusion
    works on latents after quantisation; ``steps``: of the validation's sampling; ``bones``: weight of the
    error of the decoded bone image, which is what is subtracted from a radiograph (0 decodes none in
    training).
    """

    epochs: int = 2500
    rate: float = 2e-4
    milestones: tuple[int, ...] = (200, 400, 750, 1500)
    decay: float = 0.01
    average: float = 0.995
    seed: int = 1
    error: str = "l2"
    offset_noise: float = 0.1
    late: float = 0.0
    quantised: bool = True
    steps: int = 10
    bones: float = 0.0


def side_by_side(network: nn.Module, sample: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
    """The published way: both in one tensor, and of the outputs those of the sample's channels."""
    return network(torch.cat((sample, condition), dim=1), timestep)[:, : sample.shape[1]]


@dataclass(frozen=True)
class System:
    """Two networks and how they are trained. ``size``: side of the images in pixels.

    ``diffusion``: the card's table of that name; a latent_scale of 0 is measured.
    """

    name: str
    size: int
    autoencoder_shape: vqgan.Shape
    denoiser_shape: unet.Shape
    diffusion: Mapping[str, Any]
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()

    @property
    def factor(self) -> int:
        """By how much a latent's side is smaller than the image's."""
        return 2 ** len(self.autoencoder_shape.channels)

    def changed(self, settings: Iterable[str]) -> System:
        """With each ``[stage.]key=value`` set. Raises TrainingError for a key or a value that is none."""
        system = self
        for setting in settings:
            name, equals, text = setting.partition("=")
            stage, _, key = name.rpartition(".")
            if not equals:
                raise TrainingError(f"{setting!r} sets nothing; write key=value, such as batch=2")
            system = system._set(stage, key, text)
        system.check()
        return system

    def check(self) -> None:
        """Raises TrainingError for numbers that cannot be trained with."""
        levels = len(self.denoiser_shape.multipliers)
        for stage, recipe, unit in (
            ("autoencoder", self.autoencoder, self.factor),
            ("denoiser", self.denoiser, self.factor * 2 ** (levels - 1)),
        ):
            for key in ("batch", "accumulate", "epochs", "rate"):
                if getattr(recipe, key) <= 0:
                    raise TrainingError(f"{stage}.{key}={getattr(recipe, key)}: that must be more than 0")
            if recipe.crop % unit or not 0 <= recipe.crop <= self.size:
                raise TrainingError(
                    f"{stage}.crop={recipe.crop}: that must be a multiple of {unit} up to {self.size}, or 0 "
                    "for whole images"
                )

    def _set(self, stage: str, key: str, text: str) -> System:
        places: dict[str, Any] = {"autoencoder": self.autoencoder, "denoiser": self.denoiser}
        if key in NOISE and stage in ("", "diffusion", "denoiser"):
            return replace(self, diffusion={**self.diffusion, key: _value(key, text, NOISE[key])})
        meant = {
            name: recipe
            for name, recipe in places.items()
            if stage in ("", name) and key in {f.name for f in fields(recipe)}
        }
        if not meant:
            known = sorted({f.name for recipe in places.values() for f in fields(recipe)} | set(NOISE))
            raise TrainingError(
                f"{stage + '.' if stage else ''}{key} is no setting; choose among {', '.join(known)}"
            )
        return replace(
            self,
            **{
                name: replace(recipe, **{key: _value(key, text, getattr(recipe, key))})
                for name, recipe in meant.items()
            },
        )


#: What can be set of the diffusion, with an example of its kind.
NOISE: dict[str, Any] = {
    "schedule": "",
    "prediction": "",
    "train_steps": 1000,
    "beta_start": 0.1,
    "beta_end": 0.1,
    "latent_scale": 1.0,
    "clip_start": 1.4,
    "clip_slope": 0.003,
}


def _value(key: str, text: str, like: Any) -> Any:
    """``text`` as a value of the kind of ``like``."""
    if isinstance(like, str):
        return text
    try:
        value = json.loads(f"[{text}]" if isinstance(like, tuple) else text.lower())
        if isinstance(like, tuple):
            return tuple(map(int, value))
        if isinstance(value, bool) == isinstance(like, bool) and (
            isinstance(like, float) or value == int(value)
        ):
            return type(like)(value)
    except (ValueError, TypeError):
        pass
    kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(
        type(like), "numbers like 1,2"
    )
    raise TrainingError(f"{key}={text}: that must be {kind}")


def _published(name: str, published: Published, **recipes: Any) -> System:
    return System(
        name,
        1024,
        published.autoencoder,
        published.denoiser,
        {"latent_scale": 1.0, **published.diffusion},
        **recipes,
    )


#: The same path in small: 1/8 of the side, the soft tissue itself predicted as radiograph and correction.
_SMALL = System(
    "small",
    1024,
    vqgan.Shape(channels=(32, 64, 128), residual=32, code_dimension=8, decay=0.99),
    unet.Shape(
        inputs=16,
        residual=True,
        outputs=8,
        width=32,
        multipliers=(1, 2, 4, 4),
        blocks=2,
        attention=(8,),
        heads=4,
        groups=16,
    ),
    {
        "schedule": "squaredcos_cap_v2",
        "train_steps": 1000,
        "prediction": "sample",
        "latent_scale": 0.0,
        "clip_start": 4.0,
        "clip_slope": 0.002,
    },
    AutoencoderRecipe(
        batch=2,
        rate=4e-4,
        warm_up=100,
        milestones=(21, 25),
        factor=0.3,
        clip=1.0,
        average=0.998,
        crop=192,
        varied=True,
        opponent_width=24,
        opponent_from=4400,
        unquantised=250,
        revive=0.3,
        raw=0.5,
        bones=1.0,
    ),
    DenoiserRecipe(
        batch=4,
        rate=5e-4,
        warm_up=50,
        milestones=(37, 45),
        factor=0.3,
        clip=1.0,
        crop=384,
        varied=True,
        as_they_are=0.15,
        error="l1",
        late=0.9,
        quantised=False,
        steps=1,
        bones=5.0,
    ),
)

SYSTEMS = {
    "bs-ldm": _published("bs-ldm", BS_LDM),
    "gl-lcm": _published(
        "gl-lcm",
        GL_LCM,
        autoencoder=AutoencoderRecipe(epochs=300, milestones=(200,), factor=0.5, l1=0.0, l2=1.0, masked=True),
        denoiser=DenoiserRecipe(
            epochs=600, rate=1e-4, milestones=(300, 400, 500), epsilon=1e-6, average=0.0, masked=True
        ),
    ),
    "small": _SMALL,
}
ALIASES = {"published": "bs-ldm"}


def system(name: str, settings: Iterable[str] = ()) -> System:
    """The system of that name with ``settings``. Raises TrainingError."""
    name = ALIASES.get(name, name)
    if name not in SYSTEMS:
        raise TrainingError(f"there is no system {name!r}; choose among {', '.join([*ALIASES, *SYSTEMS])}")
    return SYSTEMS[name].changed(settings)


def kept(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a checkpoint keeps it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
