"""The one loop of all samplers: the network and the update in turn, everything on their device.

Up go the coefficients of each step and, where a plan draws it, seeded noise; nothing comes down before the
end. Arithmetic is float32, whatever the network computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pacs_node.infer.contract import Graph
from pacs_node.infer.sampling.step import COEFFICIENTS, Plan, Step, limit

if TYPE_CHECKING:
    from pacs_node.infer.tables import Diffusion

Array = NDArray[np.float32]
# A tensor on the device; see session.py.
Value = Any
# What the network predicts at x, told the time step.
Network = Callable[[Value, float], Value]
# The update: its inputs by name to its outputs by name.
Update = Callable[..., dict[str, Value]]

UPDATE = Path(__file__).parent / "update.onnx"
# L, not the N of the models' graphs: sessions may run those one image at a time, but lanes stay together.
_LATENT = ("L", "C", "h", "w")
_PATHS = ("P", "1", "1", "1")
UPDATE_GRAPH = Graph(
    {
        "prediction": _LATENT,
        "x": _LATENT,
        "base": _LATENT,
        "last": _LATENT,
        "before": _LATENT,
        "noise": ("Nn", "Cn", "hn", "wn"),
        "guidance_noise": ("Ng", "Cg", "hg", "wg"),
        "guidance": _PATHS,
        "limit": _PATHS,
        "coefficients": (str(len(COEFFICIENTS)),),
    },
    {"x_next": _LATENT, "base_next": _LATENT, "clean_next": _LATENT, "before_next": _LATENT},
)
# Stands for noise where none is drawn: it broadcasts.
_NONE = np.zeros((1, 1, 1, 1), np.float32)
_UNLIMITED = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Lane:
    """One of the images that are sampled together: where its limit starts, and its guidance.

    ``clip_start``: see ``step.limit``. ``guidance`` g other than 1 is Local-Enhanced Guidance [13]: the
    prediction p becomes g p + (1 - g) z / std(p), z ~ N(0, 1). The authors take the deviation over the
    network's eight outputs, of which four are not trained; here it is of the latent's own.
    """

    clip_start: float | None = None
    guidance: float = 1.0


def walk(
    plan: Plan,
    diffusion: Diffusion,
    network: Network,
    update: Update,
    shape: tuple[int, int, int],
    generator: np.random.Generator,
    lanes: Sequence[Lane],
    on_step: Callable[[], None] | None = None,
) -> Value:
    """Walk a plan from noise to a sample (lanes, *shape); the same bits for the same ``generator``.

    ``network(x, told)`` predicts as ``diffusion`` says. All lanes start from the same noise, as [13] has it.
    ``on_step`` is called after each step.
    """

    def draw(count: int) -> Array:
        return generator.standard_normal((count, *shape), dtype=np.float32)

    x: Value = np.float32(plan.start) * np.repeat(draw(1), len(lanes), axis=0)
    base = last = before = x
    guidance = _by_lane([lane.guidance for lane in lanes])
    # The graph divides by the deviation with n below the root; the authors' has n - 1.
    scatter = (1 - guidance) * np.float32(math.sqrt(1 - 1 / math.prod(shape)))
    for step in plan:
        after = update(
            prediction=network(x, step.level.told),
            x=x,
            base=base,
            last=last,
            before=before,
            guidance=guidance,
            guidance_noise=scatter * draw(len(lanes)) if scatter.any() else _NONE,
            noise=draw(len(lanes)) if step.random else _NONE,
            limit=_by_lane([_bound(step, diffusion, lane) for lane in lanes]),
            coefficients=step.coefficients(diffusion.prediction).astype(np.float32),
        )
        x, base, last, before = (after[f"{name}_next"] for name in ("x", "base", "clean", "before"))
        if on_step is not None:
            on_step()
    return x


def _by_lane(values: Sequence[float]) -> Array:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def _bound(step: Step, diffusion: Diffusion, lane: Lane) -> float:
    return min(limit(step, diffusion.train_steps, lane.clip_start, diffusion.clip_slope), _UNLIMITED)
