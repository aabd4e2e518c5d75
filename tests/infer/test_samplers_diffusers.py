"""Whole walks of every sampler against diffusers' scheduler of that name, both in double precision.

diffusers computes its schedules and steps in single precision, which leaves it up to 1e-2 off where abar is
small. So its modules are given a numpy and a torch whose float32 is double precision, and its schedule ours,
after theirs was compared with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sampling_reference import diffusion, make, normal, walk

from pacs_node.infer.sampling.noise import Noise, alpha_bar
from pacs_node.infer.sampling.spacing import consistency, dpm, interpolated, numbered
from pacs_node.infer.tables import Sampler

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
diffusers = pytest.importorskip("diffusers", reason="the oracles (make test-all)")
# Of torch tensors that diffusers makes arrays of.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")]

SHAPE = (2, 3, 4, 4)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
KINDS = ("epsilon", "v_prediction", "sample")
CLIP = 1.2


class Double:
    """A module whose float32 is float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``theirs("DDIMScheduler", noise, steps, draws, **options)``.

    A scheduler in double precision, set to steps.
    """

    def scheduler(name: str, noise: Noise, steps: int, draws: np.ndarray, **options: Any) -> Any:
        kind = getattr(diffusers, name)
        module = importlib.import_module(kind.__module__)
        remaining = [torch.from_numpy(draw) for draw in draws]
        monkeypatch.setattr(
            module,
            "randn_tensor",
            lambda shape, **_: remaining.pop(0) if remaining else torch.zeros(*shape, dtype=torch.float64),
            raising=False,
        )
        for word, replaced in (("np", np), ("torch", torch)):
            if getattr(module, word, None) is replaced:
                monkeypatch.setattr(module, word, Double(replaced))
        table = noise.diffusion
        made = kind(
            num_train_timesteps=noise.train_steps,
            beta_schedule=table.schedule,
            beta_start=table.beta_start,
            beta_end=table.beta_end,
            prediction_type=table.prediction,
            **options,
        )
        bars = alpha_bar(table)
        if table.zero_terminal_snr and hasattr(made, "sigmas"):
            bars[-1] = 2.0**-24
        # Single precision sums up to 1e-5 over 1000 factors; the last cosine level is 1e-9.
        np.testing.assert_allclose(made.alphas_cumprod.numpy(), bars, rtol=2e-3, atol=1e-6)
        made.alphas_cumprod = torch.from_numpy(bars)
        if hasattr(made, "final_alpha_cumprod"):
            made.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
        made.set_timesteps(steps)
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(0)  # else one of two equal first time steps is left out
        return made

    return scheduler


def network(x: np.ndarray, told: float) -> np.ndarray:
    """Nothing that a sampler could be exact for, and another at every time step."""
    return np.tanh(x * (1 + 0.3 * np.sin(told / 200))) + 0.1 * np.cos(told / 90)


def their_walk(scheduler: Any, start: np.ndarray, **step_options: Any) -> list[np.ndarray]:
    """What their network is asked at, each time, and the sample."""
    x = torch.from_numpy(start) * scheduler.init_noise_sigma
    asked = []
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        asked.append(scaled.numpy())
        prediction = torch.from_numpy(network(scaled.numpy(), float(t)))
        x = scheduler.step(prediction, t, x, **{k: v(i, t) for k, v in step_options.items()}).prev_sample
    return [*asked, x.numpy()]


def compare(ours: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-8) -> None:
    assert len(ours) == len(expected)
    for mine, their in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, their, rtol=0, atol=tolerance * max(1.0, float(np.abs(their).max())))


def ours(
    plan: Any, kind: str, start: np.ndarray, draws: np.ndarray, bound: float | None = None
) -> list[np.ndarray]:
    return walk(
        plan,
        kind,
        lambda x, level: network(x, level.told),
        start,
        list(draws),
        (lambda step: np.inf) if bound is None else (lambda step: bound),
    )


class Stride(int):
    """A number of steps whose stride is what is said: diffusers' DDIM takes train_steps // steps."""

    stride = 0

    def __rfloordiv__(self, other: int) -> int:
        return self.stride


def test_the_levels_of_every_number_of_steps() -> None:
    """In every spacing, ties of rounding too: those that DDIM, Euler's, DPM-Solver++ and LCM visit."""
    noise = Noise(diffusion("linear"))
    for way in ("leading", "trailing", "linspace"):
        pairs = (
            (diffusers.DDIMScheduler(timestep_spacing=way), numbered),
            (diffusers.EulerDiscreteScheduler(timestep_spacing=way), interpolated),
            (diffusers.DPMSolverMultistepScheduler(timestep_spacing=way), dpm),
        )
        for steps in (*range(1, 60), 96, 112, 144, 192, 333, 500, 999):
            ours = Sampler(name="ddim", steps=steps, spacing=way)
            for scheduler, visited in pairs:
                if way == "trailing" and len(np.arange(1000, 0, -1000 / steps)) > steps:
                    continue  # there theirs has one step more, to level -1
                scheduler.set_timesteps(steps)
                told = [level.t for level in visited(noise, ours, steps)]
                np.testing.assert_allclose(told, scheduler.timesteps.numpy(), rtol=0, atol=1e-4)
    lcm = diffusers.LCMScheduler()
    for steps in range(1, 51):
        lcm.set_timesteps(steps)
        visited = consistency(noise, Sampler(name="lcm", steps=steps), steps)
        assert [level.t for level in visited] == lcm.timesteps.tolist()


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim(theirs: Any, schedule: str, spacing: str) -> None:
    start, draws = normal(SHAPE, 1), normal(SHAPE, 2, 60)
    for kind in KINDS:
        for steps, eta, zero, clip in (
            (25, 0.0, False, True),
            (30, 0.7, False, True),
            (7, 1.0, False, False),
            (10, 0.4, kind != "epsilon", True),
        ):
            noise, plan, _ = make(
                "ddim", steps, schedule, kind, eta=eta, spacing=spacing, zero_terminal_snr=zero, **BETAS
            )
            scheduler = theirs(
                "DDIMScheduler",
                noise,
                steps,
                draws,
                timestep_spacing=spacing,
                clip_sample=clip,
                clip_sample_range=CLIP,
                rescale_betas_zero_snr=zero,
            )
            visited = [*scheduler.timesteps.tolist(), -1]
            scheduler.num_inference_steps = Stride(steps)

            def told(i: int, t: Any, visited: list[int] = visited, scheduler: Any = scheduler) -> bool:
                # The next level visited is the next; theirs is train_steps // steps below, which may be none.
                scheduler.num_inference_steps.stride = visited[i] - visited[i + 1]
                return True

            expected = their_walk(
                scheduler, start, eta=lambda i, t, eta=eta: eta, use_clipped_model_output=told
            )
            compare(ours(plan, kind, start, draws, CLIP if clip else None), expected)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm(theirs: Any, schedule: str, spacing: str) -> None:
    start, draws = normal(SHAPE, 1), normal(SHAPE, 2, 60)
    for kind in KINDS:
        for steps, zero, clip in ((25, False, True), (30, kind != "epsilon", True), (7, False, False)):
            noise, plan, _ = make(
                "ddpm", steps, schedule, kind, spacing=spacing, zero_terminal_snr=zero, **BETAS
            )
            scheduler = theirs(
                "DDPMScheduler",
                noise,
                steps,
                draws,
                timestep_spacing=spacing,
                clip_sample=clip,
                clip_sample_range=CLIP,
                rescale_betas_zero_snr=zero,
            )
            # Their last step keeps a variance of 1e-20.
            compare(ours(plan, kind, start, draws, CLIP if clip else None), their_walk(scheduler, start))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_lcm(theirs: Any, schedule: str) -> None:
    start, draws = normal(SHAPE, 1), normal(SHAPE, 2, 60)
    for kind in KINDS:
        for steps, original, zero in (
            (4, 50, False),
            (50, 50, False),
            (7, 30, kind != "epsilon"),
            (1, 50, False),
        ):
            noise, plan, _ = make(
                "lcm", steps, schedule, kind, original_steps=original, zero_terminal_snr=zero, **BETAS
            )
            options = {"clip_sample": True, "clip_sample_range": CLIP, "original_inference_steps": original}
            scheduler = theirs("LCMScheduler", noise, steps, draws, rescale_betas_zero_snr=zero, **options)
            compare(ours(plan, kind, start, draws, CLIP), their_walk(scheduler, start))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "heun"])
def test_euler_and_heun(theirs: Any, name: str, schedule: str, spacing: str) -> None:
    start, draws = normal(SHAPE, 1), normal(SHAPE, 2, 60)
    kinds = KINDS[:2] if name == "euler_ancestral" else KINDS  # diffusers' has no "sample" there
    for kind in kinds:
        for steps, zero, sigmas in (
            (25, False, "spaced"),
            (7, name != "heun" and kind != "epsilon", "spaced"),
            (12, False, "karras"),
            (9, False, "exponential"),
        ):
            if name == "euler_ancestral" and sigmas != "spaced":
                continue
            noise, plan, _ = make(
                name, steps, schedule, kind, spacing=spacing, sigmas=sigmas, zero_terminal_snr=zero, **BETAS
            )
            options: dict[str, Any] = {"timestep_spacing": spacing}
            if sigmas != "spaced":
                options[f"use_{sigmas}_sigmas"] = True
            if name == "heun":
                options |= {"clip_sample": True, "clip_sample_range": CLIP}
            else:
                options["rescale_betas_zero_snr"] = zero
            scheduler = theirs(
                {
                    "euler": "EulerDiscreteScheduler",
                    "euler_ancestral": "EulerAncestralDiscreteScheduler",
                    "heun": "HeunDiscreteScheduler",
                }[name],
                noise,
                steps,
                draws,
                **options,
            )
            mine = ours(plan, kind, start, draws, CLIP if name == "heun" else None)
            compare(mine, their_walk(scheduler, start))


def dpm_cases() -> list[tuple[str, str, int]]:
    orders = {"dpmpp_multistep": (1, 2, 3), "dpmpp_singlestep": (1, 2, 3), "sde_dpmpp": (1, 2)}
    schedules = ("linear", "scaled_linear", "squaredcos_cap_v2")
    return [(name, schedule, order) for name in orders for schedule in schedules for order in orders[name]]


@pytest.mark.parametrize(("name", "schedule", "order"), dpm_cases())
def test_dpm_solver(theirs: Any, name: str, schedule: str, order: int) -> None:
    start, draws = normal(SHAPE, 1), normal(SHAPE, 2, 60)
    single = name == "dpmpp_singlestep"
    for kind in KINDS:
        for steps, spacing, sigmas, zero in (
            (20, "linspace", "spaced", False),
            (14, "trailing", "spaced", kind != "epsilon"),
            (9, "leading", "spaced", False),
            (3, "linspace", "spaced", False),
            (21, "linspace", "karras", False),
            (10, "linspace", "exponential", False),
        ):
            if single and spacing != "linspace":
                continue  # diffusers' has no other
            noise, plan, _ = make(
                name,
                steps,
                schedule,
                kind,
                order=order,
                spacing=spacing,
                sigmas=sigmas,
                zero_terminal_snr=zero,
                **BETAS,
            )
            options: dict[str, Any] = {"solver_order": order}
            if sigmas != "spaced":
                options[f"use_{sigmas}_sigmas"] = True
            if single:
                options["lower_order_final"] = True
            else:
                options |= {"timestep_spacing": spacing, "rescale_betas_zero_snr": zero}
                options["algorithm_type"] = "sde-dpmsolver++" if name == "sde_dpmpp" else "dpmsolver++"
            scheduler = theirs(
                f"DPMSolver{'Singlestep' if single else 'Multistep'}Scheduler", noise, steps, draws, **options
            )
            expected = their_walk(scheduler, start)
            compare(ours(plan, kind, start, draws), expected)


@pytest.mark.parametrize("corrector_steps", [0, 1, 2])
@pytest.mark.parametrize("kind", ["score", "epsilon", "sample"])
def test_ve_predictor_and_corrector(monkeypatch: pytest.MonkeyPatch, kind: str, corrector_steps: int) -> None:
    """ScoreSdeVeScheduler, walked as its pipeline does: told sigma, corrected, then predicted."""
    steps, snr = 40, 0.17
    _noise, plan, _ = make(
        "reverse_diffusion",
        steps,
        "ve",
        kind,
        corrector_steps=corrector_steps,
        snr=snr,
        sigma_min=0.01,
        sigma_max=50.0,
    )
    start, draws = normal(SHAPE, 1), normal(SHAPE, 2, steps * (corrector_steps + 1))
    module = importlib.import_module("diffusers.schedulers.scheduling_sde_ve")
    remaining = [torch.from_numpy(draw) for draw in draws]
    last = torch.zeros(SHAPE)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: remaining.pop(0) if remaining else last)
    scheduler = diffusers.ScoreSdeVeScheduler(steps, snr, sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)

    def told(x: Any, sigma: float) -> Any:
        """Their network gives the score; ours, in the same words, whatever it predicts."""
        p = network(x.numpy(), sigma)
        score = {"score": p, "epsilon": -p / sigma, "sample": (p - x.numpy()) / sigma**2}[kind]
        return torch.from_numpy(score)

    x, expected = torch.from_numpy(start) * scheduler.init_noise_sigma, []
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        for _ in range(corrector_steps):
            expected.append(x.numpy())
            x = scheduler.step_correct(told(x, sigma), x).prev_sample
        expected.append(x.numpy())
        step = scheduler.step_pred(told(x, sigma), t, x)
        x = step.prev_sample
    compare(ours(plan, kind, start, draws), [*expected, step.prev_sample_mean.numpy()])


def test_vp_euler_maruyama(monkeypatch: pytest.MonkeyPatch) -> None:
    """ScoreSdeVpScheduler: its network predicts the noise, told the time."""
    steps = 50
    noise, plan, _ = make("euler_maruyama", steps, "vp", "epsilon")
    start, draws = normal(SHAPE, 1), normal(SHAPE, 2, steps)
    module = importlib.import_module("diffusers.schedulers.deprecated.scheduling_sde_vp")
    remaining = [torch.from_numpy(draw) for draw in draws]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: remaining.pop(0))
    scheduler = module.ScoreSdeVpScheduler()
    scheduler.set_timesteps(steps)
    x, expected = torch.from_numpy(start), []
    for t in scheduler.timesteps:
        expected.append(x.numpy())
        prediction = torch.from_numpy(network(x.numpy(), float(t) * (noise.train_steps - 1)))
        x, mean = scheduler.step_pred(prediction, x, t)
    compare(ours(plan, "epsilon", start, draws), [*expected, mean.numpy()])
