"""Whole walks of the loop against what BS-LDM's and GL-LCM's evaluation scripts do, told anew here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling_reference import make
from tiny_models import TINY

from pacs_node.infer import Settings, read_card
from pacs_node.infer.sampling.loop import UPDATE, UPDATE_GRAPH, Lane, walk
from pacs_node.infer.sampling.noise import alpha_bar
from pacs_node.infer.session import open_beside, open_session

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
diffusers = pytest.importorskip("diffusers", reason="the oracles (make test-all)")
pytestmark = pytest.mark.torch

SHAPE = (4, 6, 6)


def network(x: np.ndarray, condition: np.ndarray, t: float) -> np.ndarray:
    """Predicts about the noise, large enough for the limits to bite."""
    return (1.2 * np.tanh(x + condition) + 0.2 * np.cos(t / 90)).astype(np.float32)


def ours(plan: Any, table: Any, conditions: np.ndarray, lanes: list[Lane], seed: int) -> np.ndarray:
    chosen = Settings(("cpu",), threads=1)
    denoiser = open_session(read_card(TINY / "tiny-bone"), "denoiser", chosen)
    update = open_beside(denoiser, UPDATE, UPDATE_GRAPH, chosen)

    def asked(x: Any, told: float) -> np.ndarray:
        return network(x if isinstance(x, np.ndarray) else x.numpy(), conditions, told)

    return np.array(walk(plan, table, asked, update.bound, SHAPE, np.random.default_rng(seed), lanes).numpy())


def test_bs_ldm(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 DDPM steps, the j-th limited to 1.4 + 0.003 j."""
    settings = {"clip_start": 1.4, "clip_slope": 0.003}
    _, plan, table = make("ddpm", 1000, "squaredcos_cap_v2", "epsilon", **settings)
    condition = np.random.default_rng(1).standard_normal((1, *SHAPE), dtype=np.float32)
    found = ours(plan, table, condition, [Lane(table.clip_start)], 3)

    rng = np.random.default_rng(3)

    def noise(*_: object, **__: object) -> Any:
        return torch.from_numpy(rng.standard_normal((1, *SHAPE), dtype=np.float32))

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample_range=1.4)
    # In single precision theirs has 1 - abar, 4e-5 at the clean end, to 1e-3 only.
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bar(table))
    x = noise()
    for j, t in enumerate(scheduler.timesteps):
        residual = torch.from_numpy(network(x.numpy(), condition, float(t)))
        scheduler.register_to_config(clip_sample_range=1.4 + 0.003 * j)
        x = scheduler.step(residual, t, x).prev_sample
    np.testing.assert_allclose(found, x.numpy(), atol=2e-5)


def test_gl_lcm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths from the same noise, each with its own limit, the local one with Local-Enhanced Guidance."""
    settings = {"clip_start": 2.0, "clip_slope": 0.025 / 20, "beta_start": 0.00085, "beta_end": 0.012}
    _, plan, table = make("lcm", 50, "scaled_linear", "epsilon", **settings)
    conditions = np.random.default_rng(1).standard_normal((2, *SHAPE), dtype=np.float32)
    found = ours(plan, table, conditions, [Lane(2.0), Lane(3.5, guidance=3.0)], 3)

    rng = np.random.default_rng(3)
    start = torch.from_numpy(rng.standard_normal((1, *SHAPE), dtype=np.float32))
    drawn: list[Any] = []
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: drawn.pop(0))
    whole, local = start, start
    timesteps = diffusers.LCMScheduler()
    timesteps.set_timesteps(50)
    for j, t in enumerate(timesteps.timesteps):
        residual, masked = (
            torch.from_numpy(network(x.numpy(), condition[None], float(t)))
            for x, condition in zip((whole, local), conditions, strict=True)
        )
        # Our one draw for both paths, theirs for the local one; then noise for each, but after the last step.
        scatter = torch.from_numpy(rng.standard_normal((2, *SHAPE), dtype=np.float32))[1:]
        masked = 3 * masked + (1 - 3) * scatter / torch.std(masked)
        if j < 49:
            drawn[:] = torch.from_numpy(rng.standard_normal((2, *SHAPE), dtype=np.float32)).split(1)
        ends = []
        for x, predicted, limit in ((whole, residual, 2.0), (local, masked, 3.5)):
            scheduler = diffusers.LCMScheduler(clip_sample=True, clip_sample_range=limit + 0.025 * j)
            scheduler.set_timesteps(50)
            ends.append(scheduler.step(predicted, t, x).prev_sample)
        whole, local = ends
    np.testing.assert_allclose(found, torch.cat([whole, local]).numpy(), atol=1e-4)
    assert np.abs(found[1] - found[0]).max() > 0.1
