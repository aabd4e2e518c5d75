"""Which sampler goes with which model, and what to do where it does not. ``check`` reads it: no numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pacs_node.infer.tables import Diffusion, Sampler

# How alpha and sigma belong together in each schedule.
FAMILIES = {
    "linear": "vp",
    "scaled_linear": "vp",
    "squaredcos_cap_v2": "vp",
    "cosine": "vp",
    "sigmoid": "vp",
    "vp": "vp",
    "sub_vp": "sub_vp",
    "ve": "ve",
    "ncsn": "ve",
}
CONTINUOUS = {"vp", "sub_vp", "ve"}

_DPM = {"dpmpp_multistep", "dpmpp_singlestep", "sde_dpmpp"}
# In the time of a stochastic differential equation.
_SDE = {"reverse_diffusion", "euler_maruyama", "ancestral", "probability_flow"}
# The keys of [sampler], besides name and steps, that each one goes by.
_LEVELS, _TIMES = ("spacing",), ("corrector_steps", "snr")
USED = {
    "ddpm": _LEVELS,
    "ddim": ("eta", *_LEVELS),
    "dpmpp_multistep": ("order", *_LEVELS, "sigmas"),
    "dpmpp_singlestep": ("order", *_LEVELS, "sigmas"),
    "sde_dpmpp": ("order", *_LEVELS, "sigmas"),
    "euler": (*_LEVELS, "sigmas"),
    "heun": (*_LEVELS, "sigmas"),
    "euler_ancestral": _LEVELS,
    "lcm": ("original_steps",),
    "langevin": ("langevin_steps", "step_size"),
    "reverse_diffusion": _TIMES,
    "euler_maruyama": _TIMES,
    "ancestral": _TIMES,
    "probability_flow": (),
}
_SPACED_ANEW = {"euler", "heun"} | _DPM  # those that diffusers has Karras spacing for


class Trouble(NamedTuple):
    """Why a model cannot be sampled so, and the remedy; sentences without their full stops."""

    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}."


def trouble(diffusion: Diffusion, sampler: Sampler, steps: int) -> Trouble | None:
    """What stands against sampling a model of ``diffusion`` with ``sampler`` in ``steps`` steps."""
    return _model(diffusion) or _match(diffusion, sampler) or _count(diffusion, sampler, steps)


def fewest_steps(sampler: Sampler, diffusion: Diffusion) -> int:
    """A small number of steps that the sampler can do, for a trial; its own if it is none of them."""
    few = (count for count in range(2, sampler.steps) if trouble(diffusion, sampler, count) is None)
    return next(few, sampler.steps)


def _model(diffusion: Diffusion) -> Trouble | None:
    schedule, prediction = diffusion.schedule, diffusion.prediction
    if prediction == "v_prediction" and FAMILIES[schedule] != "vp":
        return Trouble(
            f'v_prediction is defined for variance-preserving noise, not for the schedule "{schedule}"',
            'Export the model with prediction "epsilon", "score" or "sample"',
        )
    if not diffusion.zero_terminal_snr:
        return None
    if schedule in CONTINUOUS or FAMILIES[schedule] != "vp":
        return Trouble(
            f'zero_terminal_snr rescales betas, and the schedule "{schedule}" has none to rescale',
            "Leave zero_terminal_snr out",
        )
    if prediction in ("epsilon", "score"):
        return Trouble(
            f'with zero_terminal_snr the last level is noise alone, of which "{prediction}" tells nothing',
            'It takes a model with prediction "v_prediction" or "sample"; else leave zero_terminal_snr out',
        )
    return None


def _match(diffusion: Diffusion, sampler: Sampler) -> Trouble | None:
    name, schedule = sampler.name, diffusion.schedule
    family = FAMILIES[schedule]
    if name in ("ddpm", "lcm") and family != "vp":
        other = "ancestral" if schedule == "ve" else "euler_ancestral"
        return Trouble(
            f'the sampler "{name}" walks variance-preserving noise, not that of the schedule "{schedule}"',
            f'Use the sampler "{other}"',
        )
    if name == "lcm" and schedule in CONTINUOUS:
        return Trouble(
            f'the sampler "lcm" needs numbered noise levels, but the model\'s schedule is "{schedule}"',
            'Use the sampler "ddim"',
        )
    if name in _SDE and schedule not in CONTINUOUS:
        return Trouble(
            f'the sampler "{name}" solves an equation in continuous time, but the model\'s schedule '
            f'"{schedule}" has numbered levels only',
            'Use the sampler "ddpm" or "ddim"' if family == "vp" else 'Use the sampler "langevin" or "ddim"',
        )
    if name == "ancestral" and family == "sub_vp":
        return Trouble(
            'the sampler "ancestral" is not defined for sub-VP noise', 'Use the sampler "reverse_diffusion"'
        )
    if name == "langevin" and family != "ve":
        return Trouble(
            f'the sampler "langevin" walks the noise levels of a score network, but the model\'s schedule is '
            f'"{schedule}"',
            'Use the sampler "ddpm" or "ddim"'
            if schedule not in CONTINUOUS
            else 'Use the sampler "reverse_diffusion" with corrector_steps',
        )
    if sampler.sigmas != "spaced" and name not in _SPACED_ANEW:
        return Trouble(
            f'the sampler "{name}" has no {sampler.sigmas} spacing',
            f'Write sigmas = "spaced", or use one of the samplers {", ".join(sorted(_SPACED_ANEW))}',
        )
    return None


def _count(diffusion: Diffusion, sampler: Sampler, steps: int) -> Trouble | None:
    name, trained = sampler.name, diffusion.train_steps
    if steps > trained and name not in _SDE:
        return Trouble(
            f"{steps} sampling steps are asked for, but the model was trained with {trained}", "Ask for fewer"
        )
    if name in _DPM:
        if sampler.order > steps:
            return Trouble(
                f"{name} of order {sampler.order} needs at least {sampler.order} steps, not {steps}",
                f"Ask for more steps, or for order {steps}",
            )
        if steps >= trained and sampler.spacing != "trailing" and sampler.sigmas == "spaced":
            return Trouble(
                f"{name} with {sampler.spacing} spacing needs fewer steps than the model's {trained} levels",
                'Ask for fewer, or for "trailing" spacing',
            )
    elif name == "lcm":
        if sampler.original_steps > trained:
            return Trouble(
                f"lcm's original_steps is {sampler.original_steps}, more than the model's {trained} levels",
                f"Write at most {trained}",
            )
        if steps > sampler.original_steps:
            return Trouble(
                f"lcm can take {sampler.original_steps} steps at most (original_steps), not {steps}",
                "Ask for fewer",
            )
    elif name in _SDE or name == "langevin":
        if steps < 2:
            return Trouble(f"{name} needs at least 2 steps", "Ask for more")
        # They take 1 - beta of a Markov chain of so many steps.
        chain = name == "ancestral" or (name == "reverse_diffusion" and diffusion.schedule == "vp")
        corrected = name != "probability_flow" and sampler.corrector_steps
        if diffusion.schedule in ("vp", "sub_vp") and (chain or corrected) and steps <= diffusion.beta_max:
            return Trouble(
                f"{name} needs more than {diffusion.beta_max:g} steps (beta_max), not {steps}",
                'Ask for more, or use the sampler "ddim"',
            )
    elif steps == 1 and sampler.spacing != "trailing":
        return Trouble(
            f"one step with {sampler.spacing} spacing would start from the level of least noise",
            'Ask for more steps, or for "trailing" spacing',
        )
    return None
