"""The update and the loop once more, in double precision and plain numpy.

And networks whose answer is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pacs_node.infer.sampling.noise import Level, Noise
from pacs_node.infer.sampling.plans import plan
from pacs_node.infer.sampling.step import COEFFICIENTS, Plan, Step
from pacs_node.infer.tables import Diffusion, Sampler

MEAN, STD = 0.7, 0.3
Network = Callable[[np.ndarray, Level], np.ndarray]


def norm(values: np.ndarray) -> float:
    """The mean over the images of their norms."""
    return float(np.sqrt(np.square(values).sum(axis=(1, 2, 3))).mean())


def update(
    registers: Sequence[np.ndarray],
    prediction: np.ndarray,
    noise: np.ndarray,
    step: Step,
    kind: str,
    bound: float,
) -> list[np.ndarray]:
    """The equations of the package's docstring, told by hand: x, base, last and before to the next."""
    x, base, last, before = registers
    c = dict(zip(COEFFICIENTS, step.coefficients(kind), strict=True))
    clean = np.clip(c["gain"] * (c["point"] * x + c["prediction"] * prediction), -bound, bound)
    base = x if step.keep else base
    after = c["clean"] * clean + c["last"] * last + c["before"] * before
    after = after + c["noisy"] * x + c["base"] * base + c["noise"] * noise
    if step.langevin:
        score = (step.level.alpha * clean - x) / step.level.sigma**2
        length = step.langevin * (norm(noise) / norm(score)) ** 2
        after = after + length * score + math.sqrt(2 * length) * noise
    return [after, base, clean, last]


def walk(
    steps: Plan,
    kind: str,
    network: Network,
    start: np.ndarray,
    draws: Sequence[np.ndarray] = (),
    bound: Callable[[Step], float] = lambda step: math.inf,
) -> list[np.ndarray]:
    """Every x of a walk in double precision, from the start to the sample."""
    x = steps.start * start.astype(np.float64)
    registers = [x, x, x, x]
    remaining = iter(draws)
    seen = [x]
    for step in steps:
        noise = next(remaining) if step.random else np.zeros(())
        registers = update(registers, network(registers[0], step.level), noise, step, kind, bound(step))
        seen.append(registers[0])
    return seen


def diffusion(schedule: str, **keys: object) -> Diffusion:
    """A model of 1000 levels that predicts epsilon, unless said otherwise."""
    return Diffusion(**{"schedule": schedule, "train_steps": 1000, "prediction": "epsilon", **keys})


def make(
    sampler: str, steps: int, schedule: str = "linear", prediction: str = "epsilon", **keys: object
) -> tuple[Noise, Plan, Diffusion]:
    """A model's noise and a sampler's plan; ``keys`` go to the table that has them."""
    diffusion_keys = {key: value for key, value in keys.items() if key in Diffusion.model_fields}
    sampler_keys = {key: value for key, value in keys.items() if key in Sampler.model_fields}
    assert len(diffusion_keys) + len(sampler_keys) == len(keys)
    table = diffusion(schedule, prediction=prediction, **diffusion_keys)
    noise = Noise(table)
    return noise, plan(noise, Sampler(name=sampler, steps=steps, **sampler_keys), steps), table


def tell(clean: np.ndarray, x: np.ndarray, level: Level, kind: str) -> np.ndarray:
    """A clean estimate in the words of a network that predicts ``kind``."""
    if kind == "sample":
        return clean
    epsilon = (x - level.alpha * clean) / level.sigma
    return {
        "epsilon": epsilon,
        "score": -epsilon / level.sigma,
        "v_prediction": level.alpha * epsilon - level.sigma * clean,
    }[kind]


def gaussian(kind: str) -> Network:
    """The exact prediction for x_0 ~ N(MEAN, STD^2): E[x_0 | x_t] weighs prior and observation."""

    def network(x: np.ndarray, level: Level) -> np.ndarray:
        alpha, sigma = level.alpha, level.sigma
        clean = MEAN + STD**2 * alpha / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        return tell(clean, x, level, kind)

    return network


def normal(shape: tuple[int, ...], seed: int, count: int | None = None) -> np.ndarray:
    """Standard normal noise, double precision."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape if count is None else (count, *shape))
