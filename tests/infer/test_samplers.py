"""Samplers against distributions whose solution is known; test_samplers_diffusers.py has the other oracle."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
from sampling_reference import MEAN, STD, diffusion, gaussian, make, normal, tell, walk

from pacs_node.infer.sampling import spacing
from pacs_node.infer.sampling.noise import Level, Noise, alpha_bar
from pacs_node.infer.sampling.rules import FAMILIES, trouble
from pacs_node.infer.sampling.step import Plan, limit
from pacs_node.infer.tables import Diffusion, Sampler, ScheduleName
from pacs_node.tasks import SamplerName

SCHEDULES, SAMPLERS = get_args(ScheduleName), get_args(SamplerName)
#: VE wide enough that the start forgets the data; NCSN with small steps from level to level.
WIDE = {"sigma_min": 0.01, "sigma_max": 20.0}


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "cosine", "sigmoid"])
def test_schedules_fall_from_nearly_one(schedule: str) -> None:
    levels = alpha_bar(diffusion(schedule, beta_start=0.00085, beta_end=0.012))
    assert levels.shape == (1000,)
    assert levels.dtype == np.float64
    assert (np.diff(levels) < 0).all()
    assert 0 < levels[-1] < 0.01
    assert 0.99 < levels[0] < 1
    rescaled = alpha_bar(diffusion(schedule, prediction="sample", zero_terminal_snr=True))
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(alpha_bar(diffusion(schedule))[0])


def test_schedules_by_hand() -> None:
    def bars(schedule: str, start: float, end: float) -> np.ndarray:
        return alpha_bar(diffusion(schedule, train_steps=3, beta_start=start, beta_end=end))

    assert bars("linear", 0.1, 0.3) == pytest.approx([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    assert bars("scaled_linear", 0.04, 0.16) == pytest.approx([0.96, 0.96 * 0.91, 0.96 * 0.91 * 0.84])
    edge = 0.2 / (1 + math.exp(6))
    assert bars("sigmoid", 0.1, 0.3) == pytest.approx(
        [0.9 - edge, (0.9 - edge) * 0.8, (0.9 - edge) * 0.8 * (0.7 + edge)]
    )
    # abar_t telescopes to f(t + 1) / f(0) until the cap of 0.999 bites, at the last of 1000 steps.
    f = [math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, 500, 999)]
    levels = alpha_bar(diffusion("squaredcos_cap_v2"))
    assert levels[[499, 998]] == pytest.approx([f[1] / f[0], f[2] / f[0]])
    assert levels[999] == pytest.approx(levels[998] * 0.001)
    assert (alpha_bar(diffusion("cosine")) == levels).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_of_every_family(schedule: str) -> None:
    """More noise with every level, alpha and sigma as the family has them, and back from the ratio."""
    noise = Noise(diffusion(schedule, **WIDE))
    levels = [noise.at(t) for t in (0, 0.5, 1, 333, 998.25, 999)]
    assert all(a.ratio < b.ratio for a, b in itertools.pairwise(levels))
    for level in levels:
        kept = {
            "vp": level.alpha**2 + level.sigma**2,
            "sub_vp": level.alpha**2 + level.sigma,
            "ve": level.alpha,
        }[FAMILIES[schedule]]
        assert kept == pytest.approx(1, rel=1e-12)
        # A known level again, from its ratio alone.
        place = noise.place(level.ratio)
        again = noise.of_ratio(level.ratio, place)
        assert (again.alpha, again.sigma) == pytest.approx((level.alpha, level.sigma), rel=1e-9)
        assert place == pytest.approx(level.t, abs=0.5)
    if schedule in ("ve", "ncsn"):
        assert (levels[0].sigma, levels[-1].sigma) == pytest.approx((0.01, 20), rel=1e-3)
    assert levels[-1].told == pytest.approx(levels[-1].sigma if schedule == "ve" else 999)


def test_the_sdes_have_the_marginals_that_they_say() -> None:
    """d(alpha)/dt = f alpha and d(sigma^2)/dt = 2 f sigma^2 + g^2, of every continuous family."""
    for schedule in ("vp", "sub_vp", "ve"):
        noise, h = Noise(diffusion(schedule, **WIDE)), 1e-5
        for time in (0.01, 0.3, 0.9):
            before, here, after = (noise.at_time(time + k * h) for k in (-1, 0, 1))
            drift, squared = noise.drift(time), noise.diffusion_squared(time)
            assert (after.alpha - before.alpha) / (2 * h) == pytest.approx(
                drift * here.alpha, rel=1e-6, abs=1e-9
            )
            slope = (after.sigma**2 - before.sigma**2) / (2 * h)
            assert slope == pytest.approx(2 * drift * here.sigma**2 + squared, rel=1e-6)


def test_timesteps() -> None:
    assert spacing.timesteps(1000, 4, "trailing") == [999, 749, 499, 249]
    assert spacing.timesteps(1000, 4, "leading") == [750, 500, 250, 0]
    assert spacing.timesteps(1000, 4, "linspace") == [999, 666, 333, 0]
    assert spacing.timesteps(1000, 3, "trailing") == [999, 666, 332]
    for way in ("trailing", "leading", "linspace"):
        assert spacing.timesteps(1000, 1000, way) == list(range(999, -1, -1))
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps must be 1 to 1000"):
            spacing.timesteps(1000, steps, "trailing")


def exact(x: np.ndarray, start: Level, end: Level) -> np.ndarray:
    """The probability-flow ODE's map of a Gaussian: the same quantile of x_t at either level."""

    def spread(level: Level) -> float:
        return math.hypot(level.alpha * STD, level.sigma)

    return end.alpha * MEAN + (x - start.alpha * MEAN) * spread(end) / spread(start)


def flow_error(name: str, schedule: str, steps: int, **keys: object) -> float:
    _noise, plan, _ = make(name, steps, schedule, "epsilon", **WIDE, **keys)
    xs = walk(plan, "epsilon", gaussian("epsilon"), normal((40, 1, 5, 5), 3))
    # Up to the last level visited: from there to noise-free is one step whatever the order.
    last = plan.steps[-1].level
    assert plan.steps[-1].clean == 1
    return float(np.abs(xs[-2] - exact(xs[0], plan.steps[0].level, last)).max() / np.abs(xs[-2]).max())


FLOWS = [
    ("ddim", 1),
    ("euler", 1),
    ("heun", 2),
    ("dpmpp_multistep", 1),
    ("dpmpp_multistep", 2),
    ("dpmpp_multistep", 3),  # of order 2 as a whole: its first step has one estimate only
]


@pytest.mark.parametrize(
    ("name", "order", "schedule"),
    [(*flow, schedule) for flow in FLOWS for schedule in ("scaled_linear", "vp", "sub_vp", "ve", "ncsn")]
    + [("probability_flow", 2, schedule) for schedule in ("vp", "sub_vp", "ve")],
)
def test_ode_samplers_follow_the_exact_flow(name: str, order: int, schedule: str) -> None:
    """With the exact network each ends on the flow's map; twice the steps cut the error by its order.

    Song et al. 2011.13456, section 4.3; where the ratios are spaced evenly (exponential), so that halving the
    strides halves them all.
    """
    keys: dict[str, object] = {"order": order} if name == "dpmpp_multistep" else {}
    if name not in ("ddim", "probability_flow"):
        keys["sigmas"] = "exponential"
    counts = (40, 80, 160)
    errors = [flow_error(name, schedule, steps, **keys) for steps in counts]
    assert errors[-1] < {1: 0.06, 2: 4e-3, 3: 4e-4}[order]
    if name == "ddim":  # its levels are even in t, and so not in the ratio
        assert errors[0] > 1.6 * errors[1] > 2.5 * errors[2]
        return
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert measured[-1] > min(order, 2) - 0.35, (errors, measured)


def test_a_higher_order_is_nearer() -> None:
    for schedule in ("scaled_linear", "sub_vp", "ve"):
        errors = [
            flow_error("dpmpp_multistep", schedule, 30, order=order, sigmas="exponential")
            for order in (1, 2, 3)
        ]
        assert errors[0] > 5 * errors[1] > 7 * errors[2], errors


def test_single_step_solvers_have_their_order() -> None:
    """Over whole groups of levels: the last is cut short for the noise-free end."""
    for order in (2, 3):
        errors = []
        for groups in (10, 20, 40):
            steps = order * groups + 1
            _, plan, _ = make("dpmpp_singlestep", steps, "vp", "epsilon", order=order, sigmas="exponential")
            xs = walk(plan, "epsilon", gaussian("epsilon"), normal((40, 1, 5, 5), 3))
            whole = order * (groups - 1)
            expected = exact(xs[0], plan.steps[0].level, plan.steps[whole].level)
            errors.append(float(np.abs(xs[whole] - expected).max()))
        assert math.log2(errors[1] / errors[2]) > order - 0.35, errors


STOCHASTIC = [
    ("ddim", "linear", {"eta": 0.5}),
    ("ddpm", "linear", {}),
    ("ddpm", "scaled_linear", {}),
    ("ddpm", "cosine", {}),
    ("ddpm", "sigmoid", {}),
    ("ddpm", "vp", {}),
    ("euler_ancestral", "ve", {}),
    ("euler_ancestral", "sub_vp", {}),
    ("sde_dpmpp", "linear", {"order": 2}),
    ("sde_dpmpp", "ve", {"order": 2, "sigmas": "karras"}),
    ("reverse_diffusion", "vp", {}),
    ("reverse_diffusion", "ve", {}),
    ("euler_maruyama", "vp", {}),
    ("euler_maruyama", "sub_vp", {}),
    ("euler_maruyama", "ve", {}),
    ("ancestral", "vp", {}),
    ("ancestral", "ve", {}),
]


def moments(plan: Plan, diffusion: Diffusion) -> tuple[float, float]:
    """Mean and deviation of what a plan draws with the exact network, without drawing.

    Every step is affine in x and in its noise. So one image without any noise, one with 1 to start from, and
    one for each step with 1 for its noise tell all coefficients of the sample.
    """
    rows = len(plan) + 2
    unit = np.eye(rows).reshape(rows, rows, 1, 1, 1)
    x = walk(plan, diffusion.prediction, gaussian(diffusion.prediction), unit[1], unit[2:])[-1].ravel()
    return x[0], float(np.linalg.norm(x[1:] - x[0]))


@pytest.mark.parametrize(("name", "schedule", "keys"), STOCHASTIC)
def test_stochastic_samplers_tend_to_the_gaussian(name: str, schedule: str, keys: dict) -> None:
    """With the exact network the moments go to those of N(MEAN, STD^2), by twice the steps nearer."""
    errors = []
    for steps in (100, 200, 400):
        _, plan, table = make(name, steps, schedule, "epsilon", **WIDE, **keys)
        mean, deviation = moments(plan, table)
        errors.append(max(abs(mean - MEAN), abs(deviation - STD)))
    assert errors[2] < 0.02, errors
    # What noise sampling_eps or level 0 leaves, and the prior's distance from the last level, do not shrink.
    assert errors[1] < 0.75 * errors[0] + 2e-3, errors
    assert errors[2] < 0.75 * errors[1] + 2e-3, errors


def test_consistency_sampling_keeps_the_mean() -> None:
    """Every step begins anew from a clean estimate: so of the exact (not distilled) network no spread."""
    _, plan, table = make("lcm", 50, "scaled_linear", "epsilon")
    mean, deviation = moments(plan, table)
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert deviation < STD


def test_annealed_langevin_dynamics_tend_to_the_gaussian() -> None:
    """Song and Ermon's dynamics: more and smaller steps at each level come nearer to the data."""
    errors = []
    for factor in (1, 2, 4):
        keys = {
            "langevin_steps": 100 * factor,
            "step_size": 12e-3 / factor,
            "sigma_min": 0.1,
            "sigma_max": 3.0,
        }
        _, plan, table = make("langevin", 5, "ncsn", "score", train_steps=5, **keys)
        assert len(plan) == 5 * 100 * factor + 1
        x = moments(plan, table)
        # The last clean estimate: of N(MEAN, STD^2 + sigma_min^2) it makes the posterior mean.
        shrunk = STD**2 / math.hypot(STD, 0.1)
        errors.append(max(abs(x[0] - MEAN), abs(x[1] - shrunk)))
    assert errors[2] < 2e-3, errors
    assert errors[0] > 1.7 * errors[1] > 2.5 * errors[2], errors


@pytest.mark.parametrize(
    ("name", "schedule"), [("reverse_diffusion", "ve"), ("reverse_diffusion", "sub_vp"), ("ancestral", "vp")]
)
def test_correctors_draw_the_gaussian(name: str, schedule: str) -> None:
    """Their stride goes by norms, so they are drawn; 90,000 samples: standard error of the mean 0.001."""
    _, plan, _ = make(name, 150, schedule, "epsilon", corrector_steps=1, snr=0.05, **WIDE)
    shape = (1, 1, 300, 300)
    draws = (normal(shape, 100 + i) for i in range(len(plan)))
    x = walk(plan, "epsilon", gaussian("epsilon"), normal(shape, 1), draws)[-1]
    assert x.mean() == pytest.approx(MEAN, abs=0.01)
    assert x.std() == pytest.approx(STD, rel=0.06)


def test_a_corrector_takes_out_what_a_coarse_predictor_leaves() -> None:
    """Song et al., figure 4: in few steps the predictor alone is off, with correctors it is less."""
    errors = []
    for corrector_steps in (0, 2):
        _, plan, _ = make(
            "reverse_diffusion", 30, "ve", "score", corrector_steps=corrector_steps, snr=0.1, **WIDE
        )
        shape = (1, 1, 200, 200)
        draws = (normal(shape, 100 + i) for i in range(len(plan)))
        errors.append(abs(walk(plan, "score", gaussian("score"), normal(shape, 1), draws)[-1].std() - STD))
    assert errors[1] < 0.5 * errors[0], errors


def test_the_limit_grows_on_the_way_to_the_clean_end() -> None:
    """BS-LDM's 1.4 + 0.003 j at the j-th of 1000 steps; GL-LCM's 2 + 0.025 j at the j-th of 50."""
    _, plan, table = make("ddpm", 1000, "cosine", clip_start=1.4, clip_slope=0.003)
    bounds = [limit(step, 1000, table.clip_start, table.clip_slope) for step in plan]
    assert bounds == pytest.approx([1.4 + 0.003 * j for j in range(1000)])
    _, plan, table = make("lcm", 50, "scaled_linear", clip_start=2.0, clip_slope=0.025 / 20)
    bounds = [limit(step, 1000, table.clip_start, table.clip_slope) for step in plan]
    assert bounds == pytest.approx([2 + 0.025 * j for j in range(50)])
    assert limit(plan.steps[0], 1000, None, 1.0) == math.inf
    # In continuous time too: from its start at 1 to sampling_eps, as far as the levels.
    _, plan, _ = make("euler_maruyama", 100, "vp")
    assert [limit(plan.steps[i], 1000, 1.0, 0.001) for i in (0, -1)] == pytest.approx([1.0, 1.999])


def test_the_last_step_is_the_clean_estimate() -> None:
    """Whatever the sampler: no noise is left, and none is added."""
    for schedule, name in itertools.product(("linear", "vp", "sub_vp", "ve", "ncsn"), SAMPLERS):
        model = diffusion(schedule, train_steps=50, **WIDE)
        table = Sampler(name=name, steps=6, langevin_steps=2)
        if trouble(model, table, 6):
            continue
        _, plan, _ = make(name, 6, schedule, train_steps=50, langevin_steps=2, **WIDE)
        last = plan.steps[-1]
        assert not last.random
        if name in ("euler_maruyama", "reverse_diffusion", "ancestral", "lcm"):
            # The mean of a step as small as the discretisation has it; the boundary's skip, 1e-8.
            assert last.clean * MEAN + last.noisy * MEAN == pytest.approx(MEAN, rel=0.02)
        else:
            assert (last.clean, last.noisy, last.base, last.last) == pytest.approx((1, 0, 0, 0), abs=1e-12)


def test_the_predictions_are_one_thing_told_in_four_ways() -> None:
    ends = []
    for kind in ("epsilon", "v_prediction", "sample", "score"):
        _, plan, _ = make("dpmpp_multistep", 20, "scaled_linear", kind, order=3)
        ends.append(walk(plan, kind, gaussian(kind), normal((1, 1, 5, 5), 1))[-1])
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=1e-10)
    level = Level(3, 3, 0.6, 0.8)
    assert tell(np.float64(2.0), np.float64(2.0), level, "v_prediction") == pytest.approx(
        0.6 * 1.0 - 0.8 * 2.0
    )
