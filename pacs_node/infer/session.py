"""An ONNX graph on the provider that takes it: opened, compared with its contract, and run.

``Session.run`` takes and gives arrays. ``Session.bound`` takes and gives values that stay on the device
(ONNX Runtime's IO binding), so that a loop over two sessions never brings its state to the host:

    condition = denoiser.put(latent, "condition")
    for step in plan:
        prediction = denoiser.bound(sample=state, condition=condition, timestep=t)["prediction"]
        state = update.bound(prediction=prediction, state=state, coefficients=c)["state"]
    result = update.fetch("state", state)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacs_node.errors import ModelError
from pacs_node.infer.cards import Card
from pacs_node.infer.contract import CONTRACT, Graph
from pacs_node.infer.providers import PROVIDERS, Choice, Settings, choices, threads

Array = NDArray[np.float32]
# A tensor where the session computes: ONNX Runtime's OrtValue.
Value = Any

_ON_GPU = {PROVIDERS["cuda"], PROVIDERS["tensorrt"]}
# Each CUDA graph keeps its buffers; past this many different sets of addresses the rest runs without.
_MAX_GRAPHS = 16


@dataclass
class Session:
    """An ONNX graph ready to run, made by ``open_session``. For one thread at a time.

    ``fixed``: ``bound`` gives its outputs in the same two sets of places in turn, as a CUDA graph, which
    replays its addresses, needs it. A value that ``bound`` gave is then overwritten by the next but one call.
    """

    path: Path
    graph: Graph
    choice: Choice
    runtime: Any = field(repr=False)
    fixed: bool = False

    _places: dict[object, Value] = field(default_factory=dict, repr=False)
    _outputs: dict[object, list[dict[str, Value]]] = field(default_factory=dict, repr=False)
    _graphs: dict[object, int] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> str:
        """Where its values lie, in ONNX Runtime's words: "cuda", or "cpu" for the host's memory."""
        return "cuda" if self.choice.provider in _ON_GPU else "cpu"

    def run(self, **inputs: Array) -> dict[str, Array]:
        """The outputs by name; float32 in, float32 out.

        Raises ModelError if the runtime fails or an output holds NaN or infinity.
        """
        names = list(self.graph.outputs)
        try:
            found = self.runtime.run(names, inputs, self._options(None))
        except _runtime_errors() as error:
            raise self._failed(error) from error
        for name, value in zip(names, found, strict=True):
            self._check(name, value)
        return dict(zip(names, found, strict=True))

    def put(self, array: Array, place: str | None = None) -> Value:
        """``array`` where the session computes; in the host's memory without a copy, so leave it as it is.

        ``place``: a name for where it lies, overwritten by the next ``put`` of that name and shape. What goes
        into every step of a loop needs one, or a CUDA graph is made anew for each image.
        """
        from onnxruntime import OrtValue

        array = np.ascontiguousarray(array, np.float32)
        if self.device == "cpu":
            return OrtValue.ortvalue_from_numpy(array)
        if place is None:
            return OrtValue.ortvalue_from_numpy(array, self.device, 0)
        key = (place, array.shape)
        if key in self._places:
            self._places[key].update_inplace(array)
        else:
            self._places[key] = OrtValue.ortvalue_from_numpy(array, self.device, 0)
        return self._places[key]

    def bound(self, **inputs: Value | Array) -> dict[str, Value]:
        """As ``run``, but the outputs stay on the device, and inputs that lie there are not copied.

        An input may be an array too, for what is small and new at every step: it is put in a place of its
        input's name. Does not look for NaN: ``fetch`` does. Raises ModelError if the runtime fails.
        """
        values = {
            name: self.put(value, f"input {name}") if isinstance(value, np.ndarray) else value
            for name, value in inputs.items()
        }
        binding = self.runtime.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        places, graph = self._outputs_in_turn(values) if self.fixed else (None, None)
        for name in self.graph.outputs:
            if places is None:
                binding.bind_output(name, self.device, 0)
            else:
                binding.bind_ortvalue_output(name, places[name])
        try:
            self.runtime.run_with_iobinding(binding, self._options(graph))
        except _runtime_errors() as error:
            raise self._failed(error) from error
        if places is not None:
            return places
        outputs = dict(zip(self.graph.outputs, binding.get_outputs(), strict=True))
        if self.fixed:
            self._outputs.setdefault(_shapes(values), []).append(outputs)
        return outputs

    def fetch(self, name: str, value: Value) -> Array:
        """A value of the device as an array. Raises ModelError naming ``name`` if it is not finite."""
        array: Array = np.array(value.numpy())  # of the host, numpy() is the memory itself
        self._check(name, array)
        return array

    def _outputs_in_turn(self, inputs: dict[str, Value]) -> tuple[dict[str, Value] | None, int | None]:
        """Where the outputs go, and the number of the CUDA graph for these inputs and outputs.

        None, None as long as the runtime has still to make the places: twice for each set of input shapes.
        """
        sets = self._outputs.get(_shapes(inputs), [])
        if len(sets) < 2:
            return None, None
        outputs = sets.pop(0)
        sets.append(outputs)
        addresses = tuple(value.data_ptr() for value in (*inputs.values(), *outputs.values()))
        if addresses not in self._graphs and len(self._graphs) < _MAX_GRAPHS:
            self._graphs[addresses] = len(self._graphs) + 1
        return outputs, self._graphs.get(addresses)

    def _options(self, graph: int | None) -> Any:
        """Run options that name the CUDA graph to record or replay; -1 is none."""
        if not (self.fixed and self.device == "cuda"):
            return None
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))
        return options

    def _failed(self, error: Exception) -> ModelError:
        return ModelError(f"{self.path}: {self.choice.provider} failed on it: {_brief(error)}")

    def _check(self, name: str, value: Array) -> None:
        if not np.isfinite(value).all():
            raise ModelError(
                f"{self.path}: the output {name!r} holds values that are not finite, computed in "
                f"{self.choice.precision} by {self.choice.provider}. Try infer.providers: [cpu], or "
                "another model."
            )


def _shapes(values: dict[str, Value]) -> object:
    return tuple((name, *value.shape()) for name, value in values.items())


def open_session(card: Card, role: str, settings: Settings) -> Session:
    """Load the graph of one role on the first provider that takes it, and compare it with the contract.

    Raises ModelError if no provider takes it, or it is not the graph that the card promises.
    """
    path, graph = card.path(role), CONTRACT[card.task][role]
    failures: list[str] = []
    for choice in choices(settings, exact=card.exact(role)):
        try:
            runtime = _open(path, choice, settings)
        except _NotTakenError as reason:
            failures.append(str(reason))
            continue
        if problems := _compare(runtime, graph, card.input.size):
            raise ModelError(
                "\n".join(f"{path}: {p} Export the model again, or correct its card." for p in problems)
            )
        return Session(path, graph, replace(choice, warnings=(*choice.warnings, *failures)), runtime)
    raise ModelError(f"{path}: no provider takes this model: {'; '.join(failures)}. Export or copy it again.")


def open_beside(session: Session, path: Path, graph: Graph, settings: Settings) -> Session:
    """The graph of the node itself in ``path`` (a sampler's update) on the provider of ``session``, in f32.

    Raises ModelError if that provider does not take it.
    """
    choice = replace(session.choice, precision="f32", warnings=())
    try:
        return Session(path, graph, choice, _open(path, choice, settings), session.fixed)
    except _NotTakenError as reason:
        raise ModelError(
            f"{path}: {reason}. Install pacs-node again, or correct infer.providers."
        ) from reason


class _NotTakenError(Exception):
    """A provider does not run a graph; the text says which and why."""


def _open(path: Path, choice: Choice, settings: Settings) -> Any:
    """ONNX Runtime's session on exactly the chosen provider. Raises _NotTakenError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads(settings)
    options.log_severity_level = (
        3  # what goes wrong comes as exceptions; the rest would go to stderr unbidden
    )
    word = next(w for w, name in PROVIDERS.items() if name == choice.provider)
    try:
        runtime = onnxruntime.InferenceSession(
            path, options, providers=[(choice.provider, _provider_options(word, choice, settings))]
        )
        runtime.disable_fallback()
    except _runtime_errors() as error:
        raise _NotTakenError(f"the provider {word} did not take {path.name}: {_brief(error)}") from error
    # ONNX Runtime falls back to its CPU provider by itself when, say, the CUDA libraries are not there.
    if runtime.get_providers()[0] != choice.provider:
        raise _NotTakenError(
            f"the provider {word} could not be started, its libraries or its device are missing"
        )
    return runtime


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
