"""What every training here shares: moving average, checkpoints, a budget of minutes, progress lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Shape = TypeVar("Shape")
Terms = dict[str, Tensor]


class Trainer:
    """Weights, their moving average and optimiser; iteration ``i`` draws from the seed ``(seed, i)``.

    That makes a resumed run the same as one that never stopped. ``make`` builds the model, which keeps its
    ``shape`` (a dataclass); the sum of the loss's terms is minimised by AdamW, at ``rate`` after ``warm_up``
    iterations and from iteration ``later[0]`` at the rate ``later[1]``.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        *,
        rate: float,
        warm_up: int,
        decay: float,
        clip: float,
        average: float = 0.998,
        seed: int = 0,
        later: tuple[int, float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        torch.manual_seed(seed)
        self.seed, self.rate, self.warm_up, self.clip, self.average_rate = seed, rate, warm_up, clip, average
        self.later = later
        self.model = make().to(memory_format=torch.channels_last)
        self.average = make().to(memory_format=torch.channels_last)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), rate, betas, weight_decay=decay)
        self.iteration = 0

    def rng(self) -> np.random.Generator:
        """The random numbers of this iteration; also seeds torch's for it."""
        torch.manual_seed(self.seed * 1_000_003 + self.iteration)
        return np.random.default_rng((self.seed, self.iteration))

    def update(self, terms: Terms) -> dict[str, float]:
        """One step down the sum of ``terms``; returns it and them."""
        rate = self.rate * min(1.0, (self.iteration + 1) / self.warm_up)
        if self.later and self.iteration >= self.later[0]:
            rate = self.later[1]
        self.optimiser.param_groups[0]["lr"] = rate
        total = torch.stack(list(terms.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        self.iteration += 1
        share = min(self.average_rate, self.iteration / (self.iteration + 10))
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
            for mean, new in pairs:
                if mean.is_floating_point():
                    mean.lerp_(new, 1 - share)
        return {"loss": total.item(), **{name: term.item() for name, term in terms.items()}}

    def save(self, path: Path) -> None:
        """Everything needed to go on, written aside and renamed."""
        temporary = path.with_suffix(".part")
        torch.save(
            {
                "shape": asdict(self.model.shape),  # type: ignore[call-overload]
                "iteration": self.iteration,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
            temporary,
        )
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Goes on where :meth:`save` left off."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.iteration = state["iteration"]


def averaged(path: Path, shape: type[Shape]) -> tuple[Shape, dict[str, Any]]:
    """Shape and averaged weights of a checkpoint, for evaluation and export."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no checkpoint; run `python -m export train …` first")
    state = torch.load(path, weights_only=True)
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in state["shape"].items()}
    return shape(**kept), state["average"]


def run(
    trainer: Trainer,
    step: Callable[[], dict[str, float]],
    checkpoint: Path,
    *,
    minutes: float,
    iterations: int | None = None,
    every: int = 20,
) -> None:
    """Steps until ``minutes`` are spent or ``iterations`` reached; goes on from ``checkpoint`` if there.

    A checkpoint each minute and at the end; a line of mean losses each ``every`` iterations.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"goes on at iteration {trainer.iteration}", flush=True)
    start = saved = time.monotonic()
    sums: dict[str, float] = {}
    while time.monotonic() - start < minutes * 60 and trainer.iteration != iterations:
        for name, value in step().items():
            sums[name] = sums.get(name, 0.0) + value
        if trainer.iteration % every == 0:
            terms = "  ".join(f"{name} {value / every:.4f}" for name, value in sums.items())
            print(f"{trainer.iteration:6d}  {time.monotonic() - start:6.0f} s  {terms}", flush=True)
            sums = {}
        if time.monotonic() - saved > 60:
            trainer.save(checkpoint)
            saved = time.monotonic()
    trainer.save(checkpoint)
