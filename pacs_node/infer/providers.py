"""Which hardware a model runs on, why, and the ONNX Runtime session that runs it.

A *provider* is ONNX Runtime's word for a backend: CUDA, TensorRT, OpenVINO, CPU. The configuration gives an
order; the first that is there and takes the model is used. One that was asked for and is not there, or does
not take the model, is passed over with a warning that goes to the log and into the parameters of every
result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pacs_node.errors import ModelError
from pacs_node.infer.cards import Card
from pacs_node.infer.contract import CONTRACT, Graph
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


@dataclass
class Session:
    """An ONNX graph ready to run, made by ``open_session``."""

    path: Path
    graph: Graph
    choice: Choice
    runtime: Any = field(repr=False)

    def run(self, **inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The outputs by name; float32 in, float32 out.

        Raises ModelError if the runtime fails or an output holds NaN or infinity.
        """
        names = list(self.graph.outputs)
        try:
            outputs = dict(zip(names, self.runtime.run(names, inputs), strict=True))
        except _runtime_errors() as error:
            raise ModelError(f"{self.path}: {self.choice.provider} failed on it: {_brief(error)}") from error
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ModelError(
                    f"{self.path}: the output {name!r} holds values that are not finite, computed in "
                    f"{self.choice.precision} by {self.choice.provider}. Try infer.providers: [cpu], or "
                    "another model."
                )
        return outputs


def open_session(card: Card, role: str, settings: Settings) -> Session:
    """Load the graph of one role on the first provider that takes it, and compare it with the contract.

    Raises ModelError if no provider takes it, or it is not the graph that the card promises.
    """
    import onnxruntime

    path, graph = card.path(role), CONTRACT[card.task][role]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads(settings)
    options.log_severity_level = (
        3  # what goes wrong comes as exceptions; the rest would go to stderr unbidden
    )
    failures: list[str] = []
    for choice in choices(settings, exact=card.exact(role)):
        word = next(w for w, name in PROVIDERS.items() if name == choice.provider)
        try:
            runtime = onnxruntime.InferenceSession(
                path, options, providers=[(choice.provider, _provider_options(word, choice, settings))]
            )
            runtime.disable_fallback()
        except _runtime_errors() as error:
            failures.append(f"the provider {word} did not take {path.name}: {_brief(error)}")
            continue
        # ONNX Runtime falls back to its CPU provider by itself when, say, the CUDA libraries are not there.
        if runtime.get_providers()[0] != choice.provider:
            failures.append(
                f"the provider {word} could not be started, its libraries or its device are missing"
            )
            continue
        warnings = (*choice.warnings, *failures)
        if problems := _compare(runtime, graph, card.input.size):
            raise ModelError(
                "\n".join(f"{path}: {p} Export the model again, or correct its card." for p in problems)
            )
        return Session(
            path, graph, Choice(choice.provider, choice.precision, choice.reason, warnings), runtime
        )
    raise ModelError(f"{path}: no provider takes this model: {'; '.join(failures)}. Export or copy it again.")


def _provider_options(word: str, choice: Choice, settings: Settings) -> dict[str, str]:
    if word != "openvino":
        return {}
    plugin = {"INFERENCE_PRECISION_HINT": choice.precision, "INFERENCE_NUM_THREADS": threads(settings)}
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": plugin})}


def _compare(runtime: Any, graph: Graph, size: int) -> list[str]:
    """What differs between the graph as it is and as it should be."""
    problems = []
    for kind, expected, present in (
        ("input", graph.inputs, {i.name: i for i in runtime.get_inputs()}),
        ("output", graph.outputs, {o.name: o for o in runtime.get_outputs()}),
    ):
        if set(expected) != set(present):
            problems.append(f"its {kind}s are {', '.join(present)}, but must be {', '.join(expected)}.")
            continue
        for name, dimensions in expected.items():
            shape = present[name].shape
            wanted = [size if d == "S" else int(d) if d.isdigit() else d for d in dimensions]
            # A free dimension (a name) fits anything; a fixed one must be what is wanted, N being 1 at most.
            fits = len(shape) == len(wanted) and all(
                not isinstance(have, int) or have == (1 if want == "N" else want) or want in ("C", "h", "w")
                for have, want in zip(shape, wanted, strict=True)
            )
            if not fits or present[name].type != "tensor(float)":
                problems.append(
                    f"its {kind} {name!r} is {present[name].type} of {shape}, "
                    f"but must be tensor(float) of {wanted}."
                )
    return problems


def _runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (
        value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)
    )
    # RuntimeError and ValueError come from its Python layer, such as for a provider's wrong option.
    return (*own, RuntimeError, ValueError)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
