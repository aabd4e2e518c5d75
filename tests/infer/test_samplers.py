"""Samplers, against a distribution whose solution is known and against diffusers' schedulers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pacs_node.infer import samplers
from pacs_node.infer.samplers import alpha_bar, ddim, ddpm, plan, sample, timesteps

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "cosine"]
MEAN, STD = 0.7, 0.3


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def gaussian_network(levels: np.ndarray, kind: str) -> samplers.Callable:
    """The exact prediction for x_0 ~ N(MEAN, STD^2): E[x_0 | x_t] weighs prior and observation."""

    def network(x: np.ndarray, t: int) -> np.ndarray:
        alpha, sigma = math.sqrt(levels[t]), math.sqrt(1 - levels[t])
        clean = MEAN + STD**2 * alpha / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        epsilon = (x - alpha * clean) / sigma
        return {"sample": clean, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * clean}[kind]

    return network


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_nearly_one(schedule: str) -> None:
    levels = alpha_bar(schedule, 1000, 0.00085, 0.012)
    assert levels.shape == (1000,)
    assert levels.dtype == np.float64
    assert (np.diff(levels) < 0).all()
    assert 0 < levels[-1] < 0.01
    assert 0.99 < levels[0] < 1


def test_schedules_by_hand() -> None:
    assert alpha_bar("linear", 3, 0.1, 0.3) == pytest.approx([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    assert alpha_bar("scaled_linear", 3, 0.04, 0.16) == pytest.approx([0.96, 0.96 * 0.91, 0.96 * 0.91 * 0.84])
    # abar_t telescopes to f(t + 1) / f(0) until the cap of 0.999 bites, at the last of 1000 steps.
    f = [math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, 500, 999)]
    levels = alpha_bar("squaredcos_cap_v2", 1000)
    assert levels[[499, 998]] == pytest.approx([f[1] / f[0], f[2] / f[0]])
    assert levels[999] == pytest.approx(levels[998] * 0.001)
    assert (alpha_bar("cosine", 1000) == levels).all()
    with pytest.raises(ValueError, match="unknown noise schedule"):
        alpha_bar("sigmoid", 1000)  # type: ignore[arg-type]


def test_timesteps() -> None:
    assert timesteps(1000, 4, "trailing") == [999, 749, 499, 249]
    assert timesteps(1000, 4, "leading") == [750, 500, 250, 0]
    assert timesteps(1000, 3, "trailing") == [999, 666, 332]
    assert timesteps(1000, 1000, "trailing") == timesteps(1000, 1000, "leading") == list(range(999, -1, -1))
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps must be 1 to 1000"):
            timesteps(1000, steps, "trailing")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_many_steps_draw_the_gaussian(schedule: str, kind: str) -> None:
    """With the exact network both samplers must end in N(MEAN, STD^2)."""
    levels = alpha_bar(schedule, 1000)
    for name, number, eta in (("ddim", 250, 0.0), ("ddim", 1000, 0.5), ("ddpm", 1000, 0.0)):
        steps = plan(levels, name, number, eta, "trailing")
        x = sample(gaussian_network(levels, kind), (150, 150), steps, kind, generator())
        # 22,500 samples: the standard error of the mean is 0.002, of the deviation 0.0014.
        assert x.mean() == pytest.approx(MEAN, abs=0.01), (name, eta)
        assert x.std() == pytest.approx(STD, abs=0.01), (name, eta)


def test_ddim_follows_the_exact_flow() -> None:
    """eta = 0 approximates the probability-flow ODE (Song et al. 2011.13456, section 4.3).

    Its map of a Gaussian is x_0 = MEAN + (x_T - alpha_T MEAN) STD / sqrt(alpha_T^2 STD^2 + sigma_T^2). The
    error must fall at first order in the number of steps.
    """
    levels = alpha_bar("linear", 1000)
    start = generator(3).standard_normal((50, 50), dtype=np.float32)
    alpha = math.sqrt(levels[-1])
    exact = MEAN + (start - alpha * MEAN) * STD / math.sqrt(levels[-1] * STD**2 + 1 - levels[-1])
    errors = []
    for steps in (50, 100, 200):
        x = sample(
            gaussian_network(levels, "epsilon"),
            (50, 50),
            plan(levels, "ddim", steps, 0, "trailing"),
            "epsilon",
            generator(3),
        )
        errors.append(float(np.abs(x - exact).max()))
    assert errors[2] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_the_predictions_are_one_thing_told_in_three_ways() -> None:
    levels = alpha_bar("scaled_linear", 1000)
    steps = plan(levels, "ddpm", 20, 0.0, "trailing")
    ends = [
        sample(gaussian_network(levels, kind), (30, 30), steps, kind, generator(1))
        for kind in ("epsilon", "v_prediction", "sample")
    ]
    np.testing.assert_allclose(ends[1], ends[0], atol=2e-5)
    np.testing.assert_allclose(ends[2], ends[0], atol=2e-5)


def test_ddpm_is_the_posterior_of_the_paper() -> None:
    """Ho et al. 2006.11239, equation 7, over all levels: its coefficients and beta-tilde."""
    levels = alpha_bar("linear", 1000)
    for step in ddpm(levels, timesteps(1000, 1000, "trailing"))[:-1]:
        bar, before = levels[step.t], levels[step.t - 1]
        beta = 1 - bar / before
        assert step.clean == pytest.approx(math.sqrt(before) * beta / (1 - bar), rel=1e-9)
        assert step.noisy == pytest.approx(math.sqrt(bar / before) * (1 - before) / (1 - bar), rel=1e-9)
        assert step.noise**2 == pytest.approx((1 - before) / (1 - bar) * beta, rel=1e-9)


def test_eta_scales_the_noise_and_keeps_the_variance() -> None:
    """DDIM's sigma is proportional to eta; what it adds, the direction to x_t gives up (equation 16)."""
    levels = alpha_bar("linear", 1000)
    visited = timesteps(1000, 10, "trailing")
    for part, whole in zip(ddim(levels, visited, 0.25), ddim(levels, visited, 1.0), strict=True):
        assert part.noise == pytest.approx(0.25 * whole.noise)
        bar_s = (part.clean + part.alpha * part.noisy) ** 2
        assert (part.noisy * part.sigma) ** 2 + part.noise**2 == pytest.approx(1 - bar_s, abs=1e-12)


def test_the_last_step_is_the_clean_estimate() -> None:
    for eta in (0.0, 0.3, 1.0):
        last = ddim(alpha_bar("cosine", 1000), [999, 499], eta)[-1]
        assert (last.clean, last.noisy, last.noise) == (1.0, 0.0, 0.0)


def test_the_clean_estimate_alone_is_limited() -> None:
    levels = alpha_bar("linear", 1000)
    seen: list[int] = []

    def network(x: np.ndarray, t: int) -> np.ndarray:
        seen.append(t)
        return np.full_like(x, 9.0)

    steps = plan(levels, "ddim", 2, 0.0, "trailing")
    limits = {999: 5.0, 499: 2.0}
    x = sample(network, (3, 3), steps, "sample", generator(), limit=limits.__getitem__)
    assert seen == [999, 499]
    assert (x == 2.0).all()


def test_same_seed_same_bits() -> None:
    levels = alpha_bar("cosine", 1000)
    steps = plan(levels, "ddpm", 10, 0.0, "trailing")
    first, again, other = (
        sample(gaussian_network(levels, "sample"), (1, 4, 8, 8), steps, "sample", generator(seed))
        for seed in (5, 5, 6)
    )
    assert first.dtype == np.float32
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_unknown_sampler() -> None:
    with pytest.raises(ValueError, match="unknown sampler"):
        plan(alpha_bar("cosine", 10), "plms", 5, 0.0, "leading")


@pytest.mark.torch
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.6, None])
def test_whole_trajectories_as_diffusers(schedule: str, kind: str, spacing: str, eta: float | None) -> None:
    """Every x_t of a walk against diffusers' DDIMScheduler, or DDPMScheduler where eta is None, to 1e-5.

    Both walk with the same network and the same noise, limited to +-1.2. Their schedule is taken in double
    precision: in single precision diffusers itself is off by more than this where abar_t is small.
    """
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    options = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": schedule,
        "prediction_type": kind,
        "timestep_spacing": spacing,
        "clip_sample": True,
        "clip_sample_range": 1.2,
    }
    if eta is None:
        theirs = diffusers.DDPMScheduler(**options)
    else:
        theirs = diffusers.DDIMScheduler(**options, set_alpha_to_one=True)
    levels = alpha_bar(schedule, 1000, 0.00085, 0.012)
    # Single precision sums up to 1e-5 over 1000 factors; the last cosine level is 1e-9, so relative there.
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), levels, rtol=2e-3, atol=1e-6)
    theirs.alphas_cumprod = torch.from_numpy(levels)
    theirs.set_timesteps(25)
    network = gaussian_network(levels, kind)

    draws = generator(11)
    x = torch.from_numpy(draws.standard_normal((1, 4, 8, 8), dtype=np.float32)).double()
    expected = []
    for t in theirs.timesteps.tolist():
        prediction = torch.from_numpy(network(x.numpy(), t))
        last = t == theirs.timesteps[-1]
        if eta is None:
            # diffusers draws the noise itself: without it first, then ours with the variance it names.
            zero = _without_noise(theirs, prediction, t, x)
            noise = 0.0 if last else draws.standard_normal((1, 4, 8, 8), dtype=np.float32)
            x = zero if last else zero + theirs._get_variance(t) ** 0.5 * torch.from_numpy(noise)
        else:
            noise = None
            if eta and not last:
                noise = torch.from_numpy(draws.standard_normal((1, 4, 8, 8), dtype=np.float32))
            x = theirs.step(
                prediction,
                t,
                x,
                eta=eta,
                use_clipped_model_output=True,
                variance_noise=noise if noise is not None else torch.zeros_like(x),
            ).prev_sample
        expected.append(x.numpy())

    ours: list[np.ndarray] = []
    steps = plan(levels, "ddim" if eta is not None else "ddpm", 25, eta or 0.0, spacing)
    assert [step.t for step in steps] == theirs.timesteps.tolist()

    def watching(x: np.ndarray, t: int) -> np.ndarray:
        ours.append(x)
        return network(x, t)

    # From noise at the last cosine level, epsilon is divided by alpha = 5e-5: single precision has no more
    # there.
    tolerance = 2e-4 if (schedule, kind, spacing) == ("squaredcos_cap_v2", "epsilon", "trailing") else 1e-5
    end = sample(watching, (1, 4, 8, 8), steps, kind, generator(11), limit=lambda _: 1.2)
    for mine, their in zip([*ours[1:], end], expected, strict=True):
        np.testing.assert_allclose(mine, their, atol=tolerance, rtol=0)


def _without_noise(scheduler, prediction, t, x):
    """DDPMScheduler's mean: its step with a variance of nothing."""
    variance = scheduler._get_variance
    scheduler._get_variance = lambda *a, **k: 0.0 * variance(*a, **k)
    try:
        return scheduler.step(prediction, t, x).prev_sample
    finally:
        scheduler._get_variance = variance
