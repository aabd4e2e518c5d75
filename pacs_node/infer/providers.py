"""Which hardware a model runs on, and why; session.py runs it there.

A *provider* is ONNX Runtime's word for a backend: CUDA, TensorRT, OpenVINO, CPU. The configuration gives an
order; the first that is there and takes the model is used. One that was asked for and is not there, or does
not take the model, is passed over with a warning that goes to the log and into the parameters of every
result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pacs_node.errors import ModelError
from pacs_node.tasks import Task

if TYPE_CHECKING:
    from pacs_node.config.model import Infer

Precision = Literal["f32", "bf16"]

# The configuration's words and ONNX Runtime's.
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
DEFAULT_ORDER = ("cuda", "openvino", "cpu")


@dataclass(frozen=True)
class Settings:
    """How models are run.

    ``providers``: the order asked for, words of PROVIDERS; None takes DEFAULT_ORDER, where an absent one is
    no warning. ``threads``: 0 for one per core that the process may use. ``precision``: "auto" lets image
    models run in bf16 where the processor multiplies bf16 natively, "f32" never does. ``steps``: sampling
    steps, None for the card's.
    """

    providers: tuple[str, ...] | None = None
    threads: int = 0
    precision: Literal["auto", "f32", "bf16"] = "auto"
    steps: int | None = None

    @classmethod
    def configured(cls, infer: Infer, task: Task) -> Settings:
        """What the configuration says for one task; its default order is not one that was asked for."""
        return cls(
            providers=tuple(infer.providers) if "providers" in infer.model_fields_set else None,
            threads=infer.threads,
            precision=infer.precision,
            steps=getattr(infer.steps, task, None),
        )


@dataclass(frozen=True)
class Choice:
    """One provider to try and why; ``warnings`` tells of those that were asked for before it."""

    provider: str
    precision: Precision
    reason: str
    warnings: tuple[str, ...] = ()


def available() -> tuple[str, ...]:
    """The words of PROVIDERS that the installed ONNX Runtime has. Raises ModelError if none is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "ONNX Runtime is not installed, so no model can run. Install pacs-node[cpu] or pacs-node[gpu]."
        ) from error
    there = onnxruntime.get_available_providers()
    return tuple(word for word, name in PROVIDERS.items() if name in there)


@cache
def native_bf16() -> str | None:
    """The processor's instruction set for bf16 products, or None.

    With AMX, OpenVINO runs a diffusion U-Net about 5 times as fast in bf16 as in f32; with AVX-512 BF16
    alone, 1.7 to 2.9 times (measured on two cores each).
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:  # not Linux: we cannot tell, so we do not
        return None
    return next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)


def choices(settings: Settings, *, exact: bool = False, there: Sequence[str] | None = None) -> list[Choice]:
    """The providers to try, best first; never empty.

    ``exact``: f32 whatever the processor has (Card.exact). ``there`` replaces available().
    Raises ModelError if nothing asked for is there, or on an unknown word.
    """
    there = available() if there is None else there
    asked = settings.providers or DEFAULT_ORDER
    found: list[Choice] = []
    warnings: list[str] = []
    for word in asked:
        if word not in PROVIDERS:
            raise ModelError(f"There is no provider {word!r}. Known: {', '.join(PROVIDERS)}.")
        if word not in there:
            if settings.providers:
                warnings.append(
                    f"the provider {word} was asked for, but the installed ONNX Runtime does not have it"
                )
            continue
        reason = "the configuration's first choice" if settings.providers else "the fastest that is there"
        if found or warnings:
            reason = (
                "the next in the configured order" if settings.providers else "the next fastest that is there"
            )
        precision, why = _precision(word, settings, exact)
        found.append(Choice(PROVIDERS[word], precision, f"{reason}; {why}", tuple(warnings)))
    if not found:
        raise ModelError(
            f"None of the providers asked for ({', '.join(asked)}) is in the installed ONNX Runtime: "
            f"{', '.join(there)}. Correct infer.providers, or install pacs-node[cpu] or pacs-node[gpu]."
        )
    return found


def _precision(word: str, settings: Settings, exact: bool) -> tuple[Precision, str]:
    if word != "openvino":
        return "f32", "f32"
    if settings.precision != "auto":
        return settings.precision, f"{settings.precision} as configured"
    if exact:
        return "f32", "f32, as its card or its threshold wants"
    if flag := native_bf16():
        return "bf16", f"bf16, as the processor has {flag}"
    return "f32", "f32, as the processor has no bf16"


def threads(settings: Settings) -> int:
    """How many threads a session computes with: what is set, or one per core that this process may use."""
    return settings.threads or len(os.sched_getaffinity(0))
