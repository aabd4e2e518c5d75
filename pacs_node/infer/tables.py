"""The tables of a card that say how a diffusion model is sampled; sampling/ has the equations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pacs_node.infer.sampling.rules import USED, trouble
from pacs_node.tasks import SamplerName

ScheduleName = Literal[
    "linear", "scaled_linear", "squaredcos_cap_v2", "cosine", "sigmoid", "ncsn", "vp", "sub_vp", "ve"
]


class Part(BaseModel):
    """Base of the card and its tables: unknown keys and inexact types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Diffusion(Part):
    """[diffusion]: the noise that the model was trained against."""

    schedule: ScheduleName = Field(
        description='the noise schedule: "linear", "scaled_linear", "squaredcos_cap_v2" (or "cosine"), '
        '"sigmoid", "ncsn", "vp", "sub_vp" or "ve"'
    )
    train_steps: int = Field(
        ge=2, le=100_000, description="the number of noise levels in training, such as 1000"
    )
    prediction: Literal["epsilon", "v_prediction", "sample", "score"] = Field(
        description='what the network predicts: "epsilon", "v_prediction", "sample" or "score"'
    )
    beta_start: float = Field(1e-4, gt=0, lt=1, description="the first beta, between 0 and 1")
    beta_end: float = Field(0.02, gt=0, lt=1, description="the last beta, between 0 and 1")
    zero_terminal_snr: bool = Field(False, description="true if the last level is noise alone, else false")
    beta_min: float = Field(0.1, gt=0, description='beta at time 0 of "vp" and "sub_vp", positive')
    beta_max: float = Field(20.0, gt=0, description='beta at time 1 of "vp" and "sub_vp", above beta_min')
    sigma_min: float = Field(0.01, gt=0, description='the least noise of "ve" and "ncsn", positive')
    sigma_max: float = Field(50.0, gt=0, description='the most noise of "ve" and "ncsn", above sigma_min')
    sampling_eps: float | None = Field(
        None, gt=0, lt=0.1, description='where "vp", "sub_vp" and "ve" end, between 0 and 0.1'
    )
    latent_scale: float = Field(1.0, gt=0, description="a positive factor on the latent")
    clip_start: float | None = Field(
        None, gt=0, description="the limit of the clean estimate at the noisiest level, positive"
    )
    clip_slope: float = Field(
        0.0, ge=0, description="by how much the limit grows with each training step walked, 0 or more"
    )
    deep_reach: float | None = Field(
        None,
        gt=0,
        description="for how many time steps the shallow graph may use again what lies deeper, positive",
    )

    @model_validator(mode="after")
    def _rising(self) -> Diffusion:
        for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(f"{low} must be less than {high}")
        return self


class Sampler(Part):
    """[sampler]: how the model samples unless the configuration says otherwise."""

    name: SamplerName = Field(description='the sampler, such as "ddim"')
    steps: int = Field(ge=1, description="the number of sampling steps, 1 or more")
    eta: float = Field(0.0, ge=0, le=1, description="DDIM's noise, 0 (none) to 1 (as DDPM)")
    spacing: Literal["leading", "trailing", "linspace"] = Field(
        "trailing", description='"leading", "trailing" or "linspace"'
    )
    sigmas: Literal["spaced", "karras", "exponential"] = Field(
        "spaced", description='"spaced" (as spacing says), "karras" or "exponential"'
    )
    order: Literal[1, 2, 3] = Field(2, description="the order of DPM-Solver++, 1 to 3")
    original_steps: int = Field(50, ge=1, description="the steps that a consistency model was distilled on")
    corrector_steps: int = Field(
        0, ge=0, le=100, description="Langevin steps before each predictor's, 0 to 100"
    )
    snr: float = Field(0.16, gt=0, description="the corrector's signal-to-noise ratio, positive")
    langevin_steps: int = Field(100, ge=1, le=10_000, description="Langevin steps at each level, 1 to 10000")
    step_size: float = Field(2e-5, gt=0, description="the size of a Langevin step, positive")

    @model_validator(mode="after")
    def _possible(self) -> Sampler:
        if self.name == "sde_dpmpp" and self.order == 3:
            raise ValueError("sde_dpmpp is of order 1 or 2. Write order = 2")
        return self

    def details(self) -> dict[str, Any]:
        """What, besides name and steps, decides this sampler's samples.

        Its own keys, as far as it has them.
        """
        own = {key: getattr(self, key) for key in USED[self.name]}
        if self.name == "ddpm":
            own["eta"] = 1.0  # DDPM is DDIM with all of its noise
        if own.get("sigmas") == "spaced":
            del own["sigmas"]
        if not own.get("corrector_steps", 1):
            del own["corrector_steps"], own["snr"]
        return own


class Local(Part):
    """[local]: GL-LCM's second path, which sees the lungs alone; [files] then has the role ``lungs``."""

    clip_start: float | None = Field(
        None, gt=0, description="the local path's clip_start, positive; left out: the global path's"
    )
    guidance: float = Field(3.0, gt=0, description="the weight of Local-Enhanced Guidance; 1 is none")


def asked_for(card: Sampler, name: str | None, steps: int | None) -> Sampler:
    """The card's sampler, or the one of another ``name``, in ``steps`` steps if they are said.

    Another one has its own usual settings, but the card's spacing: it says where the model is good.
    """
    if name is not None and name != card.name:
        card = Sampler.model_validate({"name": name, "steps": card.steps, "spacing": card.spacing})
    return card if steps is None else card.model_copy(update={"steps": steps})


def check_sampling(diffusion: Diffusion, sampler: Sampler) -> None:
    """Raises ValueError with the sentence if the sampler and its steps do not go with the model."""
    if found := trouble(diffusion, sampler, sampler.steps):
        raise ValueError(str(found).rstrip("."))
