"""ONNX Runtime's own session on one provider: the options it gets, and how its failures are told."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pacs_node.errors import ModelError
from pacs_node.infer import nvidia
from pacs_node.infer.cards import Card
from pacs_node.infer.providers import PROVIDERS, Choice, Settings, bf16_products, threads

ON_GPU = ("cuda", "tensorrt")
# The role whose graph runs at every step: what it saves by a CUDA graph is saved as often.
_LOOPED = "denoiser"
# How memory that cannot be had is told: by ONNX Runtime's arena and CUDA provider, CUDA, cuBLAS, cuDNN,
# TensorRT, C++ and OpenVINO.
_NO_MEMORY = re.compile(
    r"out of memory|outofmemory|bad_alloc|alloc_failed|failed to allocate (memory|\d+ bytes)"
    r"|available memory of|memory allocation failed|cudaMalloc\w* failed|could not allocate"
    r"|cannot allocate memory",
    re.IGNORECASE,
)


class ProviderError(ModelError):
    """A provider failed on a graph that it had taken; another provider, or fewer images at once, may not.

    ``provider`` is the configuration's word; ``batch``, how many images went in at once.
    """

    def __init__(self, text: str, provider: str, batch: int, *, out_of_memory: bool) -> None:
        super().__init__(text)
        self.provider, self.batch, self.out_of_memory = provider, batch, out_of_memory


class NotTakenError(Exception):
    """A provider does not run a graph; the text says which and why."""


def open_on(
    path: Path, choice: Choice, settings: Settings, card: Card, role: str
) -> tuple[Any, bool, tuple[str, ...]]:
    """ONNX Runtime's session on the chosen provider, whether it uses CUDA graphs, and what it cannot do."""
    if choice.word == "tensorrt":
        folder = nvidia.engines(settings.cache, card)
        place = folder / f"{role}-{choice.precision}" if folder else None
        return start(path, choice, settings, provider_options(choice, settings, engines=place)), False, ()
    if choice.word != "cuda" or role != _LOOPED:
        one = choice.word == "openvino"
        return start(path, choice, settings, provider_options(choice, settings), one=one), False, ()
    try:
        return start(path, choice, settings, provider_options(choice, settings, fixed=True)), True, ()
    except NotTakenError as reason:
        # A graph with a part that only the host computes cannot be recorded, but can be run.
        runtime = start(path, choice, settings, provider_options(choice, settings))
        return runtime, False, (f"CUDA graphs are not used, so it is slower: {reason}",)


def start(
    path: Path, choice: Choice, settings: Settings, options: dict[str, str], *, one: bool = False
) -> Any:
    """ONNX Runtime's session on exactly the chosen provider; ``one``: for one image at a time.

    Raises NotTakenError or ProviderError.
    """
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = threads(settings)
    session.use_deterministic_compute = True
    if one:
        # With a free N, OpenVINO is 7 % slower, and silent where it gets no memory (Session._complete).
        session.add_free_dimension_override_by_name("N", 1)
    # What goes wrong comes as exceptions; the rest would go to stderr unbidden.
    session.log_severity_level = 3
    providers: list[tuple[str, dict[str, str]]] = [(choice.provider, options)]
    if choice.word == "tensorrt":  # what it does not take itself then stays on the device
        providers.append(
            (
                PROVIDERS["cuda"],
                provider_options(replace(choice, provider=PROVIDERS["cuda"]), settings),
            )
        )
    noise = io.StringIO()
    try:
        # Its Python layer prints to stdout, which belongs to the command's own answer.
        with contextlib.redirect_stdout(noise):
            if choice.word in ON_GPU:
                onnxruntime.preload_dlls()  # CUDA's libraries as Python packages, which nothing else finds
            runtime = onnxruntime.InferenceSession(path, session, providers=providers)
            runtime.disable_fallback()
    except runtime_errors() as error:
        if is_memory(error):
            raise ProviderError(
                f"{path}: {choice.provider} has not the memory to load it: {brief(error)}",
                choice.word,
                1,
                out_of_memory=True,
            ) from error
        raise NotTakenError(f"the provider {choice.word} did not take {path.name}: {brief(error)}") from error
    # ONNX Runtime falls back to its CPU provider by itself when, say, the CUDA libraries are not there.
    if runtime.get_providers()[0] != choice.provider:
        told = " ".join(noise.getvalue().split())
        raise NotTakenError(
            f"the provider {choice.word} could not be started, its libraries or its device are missing"
            + (f": {told[:300]}" if told else "")
        )
    return runtime


def provider_options(
    choice: Choice, settings: Settings, fixed: bool = False, engines: Path | None = None
) -> dict[str, str]:
    """By the documentation of ONNX Runtime 1.31 (onnxruntime.ai/docs/execution-providers)."""
    match choice.word:
        case "openvino":
            # What an int8 graph leaves in floating point waits for memory, of which bf16 moves half.
            bf16 = choice.precision == "bf16" or (choice.precision == "int8" and bf16_products())
            plugin = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
            plugin |= {"INFERENCE_NUM_THREADS": str(threads(settings)), "PERFORMANCE_HINT": "LATENCY"}
            return {"device_type": "CPU", "load_config": json.dumps({"CPU": plugin})}
        case "cuda":
            return {
                # The default, EXHAUSTIVE, takes whatever convolution was fastest in a trial: another one, and
                # so other last bits, each time the node starts.
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
                "use_tf32": "0" if choice.precision == "f32" else "1",
                "enable_cuda_graph": "1" if fixed else "0",
            }
        case "tensorrt":
            options = {"trt_fp16_enable": "1" if choice.precision == "f16" else "0"}
            if engines is not None:
                engines.mkdir(parents=True, exist_ok=True)
                options |= {
                    "trt_engine_cache_enable": "1",
                    "trt_engine_cache_path": str(engines),
                    "trt_timing_cache_enable": "1",
                    "trt_timing_cache_path": str(engines.parent),
                }
            return options
    return {}


def runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (
        value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)
    )
    # RuntimeError and ValueError come from its Python layer, such as for a provider's wrong option.
    return (*own, RuntimeError, ValueError, MemoryError)


def is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    # The reason stands at the end, behind the places in the source where it was passed on.
    return text if len(text) <= 300 else f"{text[:99]} … {text[-198:]}"
