"""What every training here shares: moving average, checkpoints, a budget of minutes, progress lines."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from export.devices import HERE, Place
from pacs_node.errors import PacsNodeError

Shape = TypeVar("Shape")
Sample = TypeVar("Sample")
Terms = dict[str, Tensor]


class TrainingError(PacsNodeError):
    """Training cannot begin, go on or be used as it was asked."""


class Part:
    """A network that learns: its optimiser, and what it is called through so that gradients are averaged."""

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        place: Place,
        clip: float | None = None,
        through: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.module, self.optimiser, self.clip = module, optimiser, clip
        self.call = place.spread(through(module) if through else module)

    def portion(self, *, last: bool) -> AbstractContextManager[None]:
        """Within, gradients add up; the last portion of a batch averages them over the processes."""
        if isinstance(self.call, DistributedDataParallel) and not last:
            return self.call.no_sync()
        return nullcontext()

    def advance(self, rate: float) -> None:
        """One step down the gradients gathered, which are forgotten."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


class Trainer:
    """Weights, their moving average and optimiser; iteration ``i`` draws from the seed ``(seed, i)``.

    That makes a resumed run the same as one that never stopped. ``make`` builds the model, which keeps its
    ``shape`` (a dataclass); the sum of the loss's terms is minimised by AdamW, at ``rate`` after ``warm_up``
    iterations and at the rate of each milestone (iteration, rate) from there on. ``average``: how much of the
    moving average an update leaves; None keeps none. ``opponent`` builds an adversary with a rate of its
    own, kept in the same checkpoint; ``settings`` is kept there, and what one must not go on with is fixed.
    ``through`` wraps the model for training, where it is called in another way than later.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        *,
        rate: float,
        warm_up: int = 0,
        decay: float = 0.01,
        clip: float | None = None,
        average: float | None = 0.998,
        seed: int = 0,
        milestones: Sequence[tuple[int, float]] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        opponent: Callable[[], nn.Module] | None = None,
        opponent_rate: float = 0.0,
        settings: dict[str, Any] | None = None,
        fixed: Sequence[str] = (),
        through: Callable[[nn.Module], nn.Module] | None = None,
        place: Place = HERE,
    ) -> None:
        torch.manual_seed(seed)
        self.seed, self.rate, self.warm_up, self.average_rate = seed, rate, warm_up, average
        self.milestones, self.opponent_rate, self.place = sorted(milestones), opponent_rate, place
        self.settings, self.fixed = settings or {}, fixed

        def part(made: nn.Module, *more: Any) -> Part:
            module = made.to(place.device, memory_format=torch.channels_last)
            learning = [p for p in module.parameters() if p.requires_grad]
            optimiser = torch.optim.AdamW(learning, rate, betas, epsilon, decay)
            return Part(module, optimiser, place, clip, *more)

        self.parts = {"model": part(make(), through)}
        if opponent:
            self.parts["opponent"] = part(opponent())
        self.average = self.model if average is None else copy.deepcopy(self.model).requires_grad_(False)
        self.iteration = 0

    @property
    def model(self) -> nn.Module:
        """The model itself, not its average."""
        return self.parts["model"].module

    def rng(self) -> np.random.Generator:
        """The random numbers of this iteration; also seeds torch's for it."""
        torch.manual_seed(self.seed * 1_000_003 + self.iteration)
        return np.random.default_rng((self.seed, self.iteration))

    def current_rate(self) -> float:
        """The model's rate at this iteration."""
        reached = [rate for iteration, rate in self.milestones if self.iteration >= iteration]
        if reached:
            return reached[-1]
        return self.rate * (min(1.0, (self.iteration + 1) / self.warm_up) if self.warm_up else 1.0)

    def update(self, terms: Terms) -> dict[str, float]:
        """One step down the sum of ``terms``; returns it and them."""
        report = learn(terms)
        self.advance()
        return report

    def advance(self) -> None:
        """All parts take their step down the gradients gathered; then the average follows."""
        rate = self.current_rate()
        for name, part in self.parts.items():
            part.advance(rate if name == "model" else rate * self.opponent_rate / self.rate)
        self.iteration += 1
        if self.average_rate is None:
            return
        share = min(self.average_rate, (self.iteration + 1) / (self.iteration + 10))
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
            for mean, new in pairs:
                if mean.is_floating_point():
                    mean.lerp_(new, 1 - share)
                else:
                    mean.copy_(new)

    def save(self, path: Path) -> None:
        """Everything needed to go on, written aside and renamed."""
        state = {
            "shape": asdict(self.model.shape),  # type: ignore[call-overload]
            "settings": self.settings,
            "iteration": self.iteration,
            "parts": {name: part.module.state_dict() for name, part in self.parts.items()},
            "optimisers": {name: part.optimiser.state_dict() for name, part in self.parts.items()},
        }
        if self.average_rate is not None:
            state["average"] = self.average.state_dict()
        write(state, path)

    def load(self, path: Path) -> None:
        """Goes on where :meth:`save` left off. Raises TrainingError if that was another model."""
        state = read(path, self.place.device)
        shape: dict[str, Any] = asdict(self.model.shape)  # type: ignore[call-overload]
        for what, before, now in (
            ("shape", state["shape"], shape),
            *((key, state["settings"].get(key), self.settings.get(key)) for key in self.fixed),
        ):
            if before != now:
                raise TrainingError(
                    f"{path} was trained with {what} {before}, not {now}; go on with that, or train in "
                    "another folder (--runs)"
                )
        if state["settings"] != self.settings and self.place.first:
            changed = [k for k, v in self.settings.items() if state["settings"].get(k) != v]
            print(f"goes on with other settings: {', '.join(changed)}", flush=True)
        for name, part in self.parts.items():
            part.module.load_state_dict(state["parts"][name])
            part.optimiser.load_state_dict(state["optimisers"][name])
        if self.average_rate is not None:
            self.average.load_state_dict(state["average"])
        self.iteration = state["iteration"]

    def start_from(self, weights: dict[str, Tensor], origin: Path) -> None:
        """Other weights of this shape, to begin with; ``origin`` for the TrainingError if they do not fit."""
        try:
            self.model.load_state_dict(weights)
            self.average.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()[:120]
            raise TrainingError(
                f"{origin} holds another network or shape ({first} …); choose its system by --shape"
            ) from error


def learn(terms: Terms, share: float = 1.0) -> dict[str, float]:
    """Gradients of ``share`` of the sum of ``terms``; returns that share of it and of them.

    Raises TrainingError if it is no number.
    """
    total = torch.stack(list(terms.values())).sum()
    value = total.item()
    if not math.isfinite(value):
        found = ", ".join(f"{name} {term.item():.3g}" for name, term in terms.items())
        raise TrainingError(
            f"the loss is no finite number ({found}); the last checkpoint is kept: go on from it with "
            "a lower rate, with clipping, or with --precision fp32"
        )
    (share * total).backward()
    return {"loss": share * value, **{name: share * term.item() for name, term in terms.items()}}


def write(state: dict[str, Any], path: Path) -> None:
    """A checkpoint, written aside and renamed."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint of ours. Raises TrainingError if there is none or it is something else."""
    if not path.exists():
        raise TrainingError(f"{path}: no checkpoint; run `python -m export train …` first")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=True)
    # torch raises UnpicklingError, RuntimeError, EOFError, KeyError … by what is wrong with the file.
    except Exception as error:
        raise TrainingError(
            f"{path} is no checkpoint of this project ({error.__class__.__name__}); remove it, or convert it "
            "first if it was published by others"
        ) from error
    if not {"shape", "settings", "iteration", "parts"} <= state.keys():
        raise TrainingError(
            f"{path} is a checkpoint of an older version; remove it or train in another folder (--runs)"
        )
    return state


def averaged(path: Path, shape: type[Shape]) -> tuple[Shape, dict[str, Any]]:
    """Shape and averaged weights of a checkpoint (the last ones if none were averaged)."""
    state = read(path)
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in state["shape"].items()}
    return shape(**kept), state.get("average", state["parts"]["model"])


class Feed(Generic[Sample]):
    """Samples ``make(iteration, index)`` of this process's part of each batch, drawn ahead by threads.

    Which sample it is depends on those two numbers alone: not on the number of processes, and not on when
    training was stopped.
    """

    def __init__(
        self, make: Callable[[int, int], Sample], batch: int, place: Place, *, portions: int = 1, workers: int
    ) -> None:
        indices = list(place.part(batch))
        if len(indices) % portions:
            raise TrainingError(
                f"a batch of {batch} on {place.world} processes leaves {len(indices)} a process, which "
                f"cannot be taken in {portions} equal portions; choose another batch or accumulate"
            )
        size = len(indices) // portions
        self.make = make
        self.portions = [indices[i : i + size] for i in range(0, len(indices), size)]
        self.pool = ThreadPoolExecutor(workers) if workers else None
        self.ahead: dict[int, list[list[Future[Sample]]]] = {}

    def __call__(self, iteration: int) -> Iterator[list[Sample]]:
        """The portions of this iteration."""
        if self.pool is None:
            for indices in self.portions:
                yield [self.make(iteration, index) for index in indices]
            return
        self.ahead = {i: futures for i, futures in self.ahead.items() if i in (iteration, iteration + 1)}
        for i in (iteration, iteration + 1):
            if i not in self.ahead:
                self.ahead[i] = [[self.pool.submit(self.make, i, n) for n in p] for p in self.portions]
        for futures in self.ahead.pop(iteration):
            yield [future.result() for future in futures]

    def close(self) -> None:
        """Ends the threads."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def run(
    trainer: Trainer,
    step: Callable[[], dict[str, float]],
    checkpoint: Path,
    *,
    minutes: float,
    iterations: int | None = None,
    every: int = 20,
    look: Callable[[], None] | None = None,
    look_every: int = 0,
) -> None:
    """Steps until ``minutes`` are spent or ``iterations`` reached; goes on from ``checkpoint`` if there.

    A checkpoint each minute (less often where writing it takes long) and at the end; a line of mean losses
    each ``every`` iterations; ``look`` each ``look_every`` iterations and at the end, in the first process.
    """
    place = trainer.place
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        trainer.load(checkpoint)
        say(place, f"goes on at iteration {trainer.iteration}")
    start = saved = printed = time.monotonic()
    sums: dict[str, float] = {}
    steps = looked = 0
    pause = 60.0
    while trainer.iteration != iterations and place.decide(time.monotonic() - start < minutes * 60):
        for name, value in step().items():
            sums[name] = sums.get(name, 0.0) + value
        steps += 1
        if trainer.iteration % every == 0:
            means = place.mean({name: value / steps for name, value in sums.items()})
            now = time.monotonic()
            terms = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
            each = (now - printed) / steps
            goal = f"/{iterations}" if iterations else ""
            say(place, f"{trainer.iteration:6d}{goal}  {now - start:6.0f} s  {each:.2f} s each  {terms}")
            sums, steps, printed = {}, 0, now
        if look and look_every and trainer.iteration % look_every == 0:
            looked = trainer.iteration
            if place.first:
                look()
        if time.monotonic() - saved > pause:
            began = time.monotonic()
            if place.first:
                trainer.save(checkpoint)
            saved = time.monotonic()
            pause = max(60.0, 20 * (saved - began))
    if place.first:
        trainer.save(checkpoint)
        if look and looked != trainer.iteration:
            look()


def say(place: Place, line: str) -> None:
    """Prints a line of progress, once for all processes."""
    if place.first:
        print(line, flush=True)
