"""Where training runs: the processor, a GPU, or several processes (torchrun) that average their gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from pacs_node.errors import PacsNodeError
from pacs_node.infer.providers import native_bf16

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")
#: Others wait at the next step while the first process validates and writes.
PATIENCE = timedelta(hours=2)


class DeviceError(PacsNodeError):
    """The device, precision or number of processes asked for cannot be had here."""


@dataclass(frozen=True)
class Place:
    """This process's device, its number among ``world`` processes, and what its layers compute in."""

    device: torch.device = CPU
    precision: torch.dtype = torch.float32
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Layers that bear it compute in ``precision`` within; weights and sums stay float32."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def spread(self, module: nn.Module) -> nn.Module:
        """``module``, whose backward pass averages the gradients of all processes if there are several."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=devices, forward_sync_buffers=False)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the processes."""
        if self.world == 1:
            return values
        row = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(row)
        return dict(zip(values, (row / self.world).tolist(), strict=True))

    def decide(self, wish: bool) -> bool:
        """The first process's wish, in all of them: clocks differ, and none may go on alone."""
        if self.world == 1:
            return wish
        flag = torch.tensor(int(wish), device=self.device)
        distributed.broadcast(flag, 0)
        return bool(flag)

    def part(self, count: int) -> range:
        """Which of ``count`` samples are this process's. Raises DeviceError if they cannot be shared out."""
        if count % self.world:
            raise DeviceError(
                f"{count} samples cannot be shared out evenly to {self.world} processes; choose a batch that "
                f"is a multiple of {self.world}"
            )
        share = count // self.world
        return range(self.rank * share, (self.rank + 1) * share)


HERE = Place()


def summed(tensor: Tensor) -> Tensor:
    """Its sum over all processes, in place; itself if there is one process alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, one after the other: as many each; itself if there is one process alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    everyones = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyones, rows.contiguous())
    return torch.cat(everyones)


@contextmanager
def place(device: str = "auto", precision: str = "auto") -> Iterator[Place]:
    """The place that is asked for, or the best there is. Raises DeviceError.

    ``device``: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1". ``precision``: "auto" (bf16 where
    the device is faster so), "bf16" or "fp32". Under ``torchrun`` each process takes the GPU of its
    LOCAL_RANK, and they talk by NCCL; without GPUs by gloo.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, world)
    if precision not in ("auto", *PRECISIONS):
        raise DeviceError(
            f"precision {precision!r} is not known; choose one of auto, {', '.join(PRECISIONS)}"
        )
    kind = (torch.bfloat16 if _has_bf16(chosen) else torch.float32) if precision == "auto" else None
    settings: dict[str, Any] = {"device": chosen, "precision": kind or PRECISIONS[precision]}
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.deterministic = True  # a resumed run is the same bit by bit
    if world == 1:
        yield Place(**settings)
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Place(**settings, rank=distributed.get_rank(), world=world)
    finally:
        distributed.destroy_process_group()


def _device(wish: str, world: int) -> torch.device:
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
    except RuntimeError as error:
        raise DeviceError(f"device {wish!r} is not known; choose auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {wish!r} cannot be trained on here; choose auto, cpu or cuda")
    if device.type == "cpu":
        return device
    there = torch.cuda.device_count()
    if device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if world > 1 else 0)
    if not torch.cuda.is_available() or device.index >= there:
        why = (
            "this torch was built without CUDA" if torch.version.cuda is None else f"torch sees {there} GPUs"
        )
        raise DeviceError(f"{device} is not there ({why}); train with --device cpu, or fewer processes")
    return device


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and native_bf16() is not None
