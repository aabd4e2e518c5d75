"""Which hardware a model runs on, in which arithmetic, and why; session.py runs it there.

A *provider* is ONNX Runtime's word for a backend. The order, unless the configuration gives another:

1. TensorRT, where the engines of this model were built for this device and version (``pacs-node models
   verify --build``), or where the configuration asks for it;
2. CUDA, with the card's f16 graphs;
3. OpenVINO, in bf16 or with the card's int8 graphs where the processor is faster so (``_on_processor``);
4. ONNX Runtime's own CPU provider.

One that was asked for and is not there, or does not take the model, is passed over with a warning that goes
to the log and into the parameters of every result.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pacs_node.errors import ModelError
from pacs_node.infer import nvidia
from pacs_node.infer.cards import Card, Variant
from pacs_node.tasks import Task

if TYPE_CHECKING:
    from pacs_node.config.model import Config

Precision = Literal["f32", "bf16", "f16", "int8"]

# The configuration's words and ONNX Runtime's, in the default order.
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# What each can compute in, besides f32; f16 and int8 by the card's graphs.
_ARITHMETIC: dict[str, tuple[Precision, ...]] = {
    "tensorrt": ("f16",),
    "cuda": ("f16",),
    "openvino": ("bf16", "int8"),
    "cpu": ("int8",),
}


#: Bytes of a model from which memory comes before time: the full-size BS-LDM (1.7 GB) peaks at 3.9 GB in
#: bf16, at 5.3 in f32.
LARGE = 1 << 30


@dataclass(frozen=True)
class Settings:
    """How models are run.

    ``providers``: the order asked for, words of PROVIDERS; None takes that of PROVIDERS, where an absent one
    is no warning. ``threads``: 0 for one per core that the process may use. ``precision``: "auto" takes the
    fastest arithmetic that the card and the provider have (a model of over LARGE bytes takes bf16 even where
    f32 is faster), "f32" never any but f32. ``steps``: sampling steps, None for the card's; ``sampler``: its
    name, likewise. ``cache``: a folder for what providers compile; None keeps nothing. ``without``: providers
    that are passed over, as they failed on an image.
    """

    providers: tuple[str, ...] | None = None
    threads: int = 0
    precision: Literal["auto", "f32", "bf16", "f16", "int8"] = "auto"
    steps: int | None = None
    sampler: str | None = None
    cache: Path | None = None
    without: tuple[str, ...] = ()

    @classmethod
    def configured(cls, config: Config, task: Task) -> Settings:
        """What the configuration says for one task; its default order is not one that was asked for."""
        infer = config.infer
        return cls(
            providers=tuple(infer.providers) if "providers" in infer.model_fields_set else None,
            threads=infer.threads,
            precision=infer.precision,
            steps=getattr(infer.steps, task, None),
            sampler=getattr(infer.samplers, task, None),
            cache=config.node.state_dir / "compiled",
        )


@dataclass(frozen=True)
class Choice:
    """One provider to try and why; ``warnings`` tells of those before it and of what it cannot do.

    ``variant``: which of the card's graphs it runs; None is the f32 one, which a provider may run in bf16.
    """

    provider: str
    precision: Precision
    reason: str
    warnings: tuple[str, ...] = ()
    variant: Variant | None = None

    @property
    def word(self) -> str:
        """The configuration's word for the provider."""
        return next(word for word, name in PROVIDERS.items() if name == self.provider)


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
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets in Linux's words; empty where that cannot be told."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:  # not Linux
        return frozenset()


def bf16_products() -> str | None:
    """The processor's instruction set for bf16 products, or None."""
    return next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in processor_flags()), None)


def native_bf16() -> str | None:
    """The same, but None where f32 is as fast.

    Measured on two cores each, OpenVINO, a diffusion U-Net in bf16 and in f32: with AMX bf16 is about 5 times
    as fast, with AVX-512 BF16 on AMD's processors 1.7 to 2.9 times. On Intel's without AMX, or where the
    virtual machine hides it, it takes 1.3 to 1.7 times as long.
    """
    flag = bf16_products()
    return flag if flag != "avx512_bf16" or "AuthenticAMD" in processor_flags() else None


def choices(
    settings: Settings,
    *,
    exact: bool = False,
    variants: Collection[Variant] = (),
    built: bool = False,
    large: bool = False,
    there: Sequence[str] | None = None,
) -> list[Choice]:
    """The providers to try, best first; never empty.

    ``exact``: f32 unless the configuration forces another (Card.exact). ``variants``: the graphs that the
    card has beside the f32 one. ``built``: there is a TensorRT engine. ``large``: f32 takes much memory.
    ``there`` replaces available().
    Raises ModelError if nothing asked for is there, or on an unknown word.
    """
    there = available() if there is None else there
    asked = settings.providers or tuple(word for word in PROVIDERS if built or word != "tensorrt")
    found: list[Choice] = []
    passed: list[str] = []
    for word in asked:
        if word not in PROVIDERS:
            raise ModelError(f"There is no provider {word!r}. Known: {', '.join(PROVIDERS)}.")
        if word in settings.without:
            continue
        if word not in there:
            if settings.providers:
                passed.append(
                    f"the provider {word} was asked for, but the installed ONNX Runtime does not have it"
                )
            continue
        if word in ("cuda", "tensorrt") and (missing := nvidia.missing(word)):
            passed.append(f"the provider {word} cannot start: {missing}")
            continue
        first = not (found or passed or settings.without)
        if settings.providers:
            reason = "the configuration's first choice" if first else "the next in the configured order"
        else:
            reason = "the fastest that is there" if first else "the next fastest that is there"
        precision, why, warning = _precision(word, settings, exact, variants, large)
        if word == "tensorrt" and not built:
            why += "; its engines are built when it first runs (minutes; before: models verify --build)"
        found.append(
            Choice(
                PROVIDERS[word],
                precision,
                f"{reason}; {why}",
                (*passed, *warning),
                "f16" if precision == "f16" else "int8" if precision == "int8" else None,
            )
        )
    if not found:
        told = f" ({'; '.join(passed)})" if passed else ""
        raise ModelError(
            f"None of the providers asked for ({', '.join(asked)}) can run here{told}; the installed ONNX "
            f"Runtime has {', '.join(there)}. Correct infer.providers, or install pacs-node[cpu] or "
            "pacs-node[gpu]."
        )
    return found


def choices_for(card: Card, role: str, settings: Settings) -> list[Choice]:
    """The providers to try for one graph of a model."""
    variants = [variant for variant in card.variants if card.has(role, variant)]
    return choices(
        settings,
        exact=card.exact(role),
        variants=variants,
        built=nvidia.is_built(settings.cache, card),
        large=card.size > LARGE,
    )


def _precision(
    word: str, settings: Settings, exact: bool, variants: Collection[Variant], large: bool
) -> tuple[Precision, str, tuple[str, ...]]:
    """The arithmetic, why, and what of the configuration's wish cannot be had."""
    wish = settings.precision
    if wish == "f32":
        return "f32", "f32 as configured", ()
    if wish != "auto":
        if wish not in _ARITHMETIC[word]:
            return "f32", "f32", (f"{wish} was asked for, which the provider {word} does not compute in",)
        if wish != "bf16" and wish not in variants:
            return "f32", "f32", (f"{wish} was asked for, but the model has no {wish} graph",)
        return wish, f"{wish} as configured", ()
    if exact:
        return "f32", "f32, as its card or its threshold wants", ()
    if word in ("cuda", "tensorrt"):
        return ("f16", "f16, as the card has it", ()) if "f16" in variants else ("f32", "f32", ())
    return *_on_processor(word, variants, large), ()


def native_int8() -> str | None:
    """The processor's instruction set for int8 products, or None."""
    flags = ("amx_int8", "avx512_vnni", "avx_vnni")
    return next((flag for flag in flags if flag in processor_flags()), None)


def _on_processor(word: str, variants: Collection[Variant], large: bool) -> tuple[Precision, str]:
    """The rule for processors, from the full-size BS-LDM on two cores with AVX-512 VNNI and BF16.

    OpenVINO, seconds in f32, bf16 and int8 (the rest of it in bf16), on an AMD EPYC: U-Net step 2.4, 1.3,
    0.7; encoder 18, 5.9, 2.9; decoder 11, 5.7, 2.8; on an Intel Xeon without AMX: 2.0, 2.7, 0.5; 10.6, 14.2,
    1.7; 8.7, 15.1, 1.9. ONNX Runtime's own CPU provider runs the int8 U-Net slower (3.1) than OpenVINO the
    f32 one, and the encoder hardly faster (9.3, from 10.9): it takes the f32 graphs.
    """
    if word == "openvino":
        if "int8" in variants and (flag := native_int8()):
            return "int8", f"int8, as the card has it and the processor has {flag}"
        if flag := native_bf16():
            return "bf16", f"bf16, as the processor has {flag}"
        if not (flag := bf16_products()):
            return "f32", "f32, as the processor has no bf16"
        where = f"by {flag} on this maker's processors"
        if large:
            return "bf16", f"bf16, slower than f32 {where}, as the model is large"
        return "f32", f"f32, as it is faster than bf16 {where}"
    return "f32", "f32"


def threads(settings: Settings) -> int:
    """How many threads a session computes with: what is set, or one per core that this process may use."""
    return settings.threads or len(os.sched_getaffinity(0))
