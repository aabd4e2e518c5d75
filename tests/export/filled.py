"""Weights that anyone can make again from the parameters' names alone; outputs brought down to a few numbers.

The golden values of fixtures/published.json were made with these functions outside the project, on the
authors' modules.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of ``shape``: uniform, with the variance that keeps activations sane; about 1 for factors."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = np.random.Generator(np.random.PCG64(seed)).random(shape, np.float32) * 2 - 1
    if len(shape) > 1:
        return drawn * np.float32(np.sqrt(3 * shape[0] / np.prod(shape)))
    return 0.1 * drawn if name.endswith("bias") else 1 + 0.1 * drawn


def fill(module: nn.Module) -> nn.Module:
    """The module with all of its parameters and buffers filled by ``values``, ready to infer."""
    import torch

    state = {name: torch.from_numpy(values(name, tuple(t.shape))) for name, t in module.state_dict().items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def names(module: nn.Module) -> str:
    """Digest of all names and shapes of a module's state, in order of their names."""
    lines = sorted(f"{name} {tuple(t.shape)}\n" for name, t in module.state_dict().items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def summary(output: Tensor) -> dict[str, Any]:
    """Shape, 32 values, and 8 sums with random signs over all values, divided by the root of their number."""
    flat = output.detach().double().numpy().reshape(-1)
    signs = np.random.Generator(np.random.PCG64(flat.size)).integers(0, 2, (8, flat.size)) * 2 - 1
    return {
        "shape": list(output.shape),
        "values": flat[:: max(1, flat.size // 32)][:32].tolist(),
        "sums": (signs @ flat / np.sqrt(flat.size)).tolist(),
        "largest": float(np.abs(flat).max()),
    }
