"""Which sampler goes with which model: each can be done, or is refused in a sentence with the remedy."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_reference import diffusion, gaussian, make, normal, walk

from pacs_node.infer.sampling.rules import FAMILIES, USED, fewest_steps, trouble
from pacs_node.infer.tables import Sampler, ScheduleName, asked_for
from pacs_node.tasks import SamplerName

SCHEDULES, SAMPLERS = get_args(ScheduleName), get_args(SamplerName)


@settings(max_examples=300, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample", "score"]),
    name=st.sampled_from(SAMPLERS),
    steps=st.integers(1, 70),
    train_steps=st.sampled_from([2, 3, 20, 50, 64]),
    zero=st.booleans(),
    keys=st.fixed_dictionaries(
        {
            "spacing": st.sampled_from(["leading", "trailing", "linspace"]),
            "sigmas": st.sampled_from(["spaced", "karras", "exponential"]),
            "order": st.sampled_from([1, 2, 3]),
            "eta": st.sampled_from([0.0, 0.5, 1.0]),
            "original_steps": st.sampled_from([1, 20, 50]),
            "corrector_steps": st.sampled_from([0, 2]),
            "langevin_steps": st.just(2),
        }
    ),
)
def test_a_sampler_can_be_done_or_it_is_told_why_not(
    schedule: str, prediction: str, name: str, steps: int, train_steps: int, zero: bool, keys: dict
) -> None:
    """Every combination: a sentence with a remedy, or a plan whose numbers are finite and whose walk ends."""
    table = {"train_steps": train_steps, "zero_terminal_snr": zero, "sigma_max": 5.0}
    model = diffusion(schedule, prediction=prediction, **table)
    if name == "sde_dpmpp":
        keys = keys | {"order": min(keys["order"], 2)}
    if found := trouble(model, Sampler(name=name, steps=steps, **keys), steps):
        assert found.message
        assert found.remedy
        assert not str(found).endswith("..")
        return
    _, plan, _ = make(name, steps, schedule, prediction, **table, **keys)
    assert len(plan) >= steps
    ts = [step.level.t for step in plan]
    assert all(-1e-9 <= t <= train_steps - 1 + 1e-9 for t in ts)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(ts))
    for step in plan:
        assert np.isfinite(step.coefficients(prediction).astype(np.float32)).all()
    shape = (1, 1, 3, 3)
    draws = normal(shape, 1, len(plan))
    assert np.isfinite(walk(plan, prediction, gaussian(prediction), normal(shape, 0), draws)).all()


def test_every_sampler_has_its_rules() -> None:
    assert set(USED) == set(SAMPLERS)
    assert set(FAMILIES) == set(SCHEDULES)
    assert {key for keys in USED.values() for key in keys} <= set(Sampler.model_fields)


def test_troubles_told() -> None:
    def told(
        name: str, steps: int, schedule: str = "linear", prediction: str = "epsilon", **keys: object
    ) -> str:
        own = {k: v for k, v in keys.items() if k in Sampler.model_fields}
        model = diffusion(schedule, prediction=prediction, **{k: v for k, v in keys.items() if k not in own})
        return str(trouble(model, Sampler(name=name, steps=steps, **own), steps))

    assert "1001 sampling steps are asked for, but the model was trained with 1000. Ask" in told("ddim", 1001)
    third = told("dpmpp_multistep", 2, order=3)
    assert "needs at least 3 steps, not 2. Ask for more steps, or for order 2." in third
    assert "lcm can take 50 steps at most (original_steps), not 51. Ask for fewer." in told("lcm", 51)
    assert 'Use the sampler "ancestral".' in told("ddpm", 20, "ve")
    assert 'Use the sampler "ddpm" or "ddim".' in told("langevin", 20)
    assert "the last level is noise alone" in told("ddim", 20, zero_terminal_snr=True)
    assert "numbered levels only" in told("euler_maruyama", 20)
    assert "v_prediction is defined for variance-preserving noise" in told("ddim", 20, "ve", "v_prediction")
    assert 'the sampler "ddpm" has no karras spacing' in told("ddpm", 20, sigmas="karras")
    assert "least noise" in told("ddim", 1, spacing="leading")
    assert "needs more than 20 steps (beta_max), not 20." in told("reverse_diffusion", 20, "vp")
    assert trouble(diffusion("linear"), Sampler(name="ddim", steps=20), 20) is None


def test_another_sampler_keeps_the_cards_spacing_and_steps() -> None:
    card = Sampler(name="ddim", steps=7, eta=0.5, spacing="leading")
    assert asked_for(card, None, None) is card
    assert asked_for(card, "ddim", 3) == card.model_copy(update={"steps": 3})
    other = asked_for(card, "dpmpp_multistep", None)
    assert (other.name, other.steps, other.spacing) == ("dpmpp_multistep", 7, "leading")
    assert (other.order, other.eta) == (2, 0.0)
    assert other.details() == {"order": 2, "spacing": "leading"}
    assert asked_for(card, "ddpm", 9).details() == {"spacing": "leading", "eta": 1.0}


def test_the_details_name_what_decides_the_samples() -> None:
    corrected = Sampler(name="reverse_diffusion", steps=30, corrector_steps=1, snr=0.2)
    assert corrected.details() == {"corrector_steps": 1, "snr": 0.2}
    assert Sampler(name="ancestral", steps=30).details() == {}
    karras = Sampler(name="heun", steps=30, sigmas="karras").details()
    assert karras == {"spacing": "trailing", "sigmas": "karras"}
    assert Sampler(name="langevin", steps=10).details() == {
        "langevin_steps": 100,
        "step_size": pytest.approx(2e-5),
    }


def test_the_fewest_steps_of_a_trial() -> None:
    linear, vp = diffusion("linear"), diffusion("vp")
    assert fewest_steps(Sampler(name="heun", steps=20), linear) == 2
    assert fewest_steps(Sampler(name="ddim", steps=1), linear) == 1
    assert fewest_steps(Sampler(name="dpmpp_singlestep", steps=9, order=3), linear) == 3
    assert fewest_steps(Sampler(name="reverse_diffusion", steps=100), vp) == 21
    assert fewest_steps(Sampler(name="dpmpp_multistep", steps=1), linear) == 1  # loading tells that it cannot
