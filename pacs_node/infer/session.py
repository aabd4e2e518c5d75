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

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacs_node.errors import ModelError
from pacs_node.infer import contract
from pacs_node.infer.cards import Card
from pacs_node.infer.contract import Graph
from pacs_node.infer.providers import PROVIDERS, Choice, Settings, choices_for
from pacs_node.infer.starting import (
    ON_GPU,
    NotTakenError,
    ProviderError,
    brief,
    is_memory,
    open_on,
    provider_options,
    runtime_errors,
    start,
)

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
# A tensor where the session computes: ONNX Runtime's OrtValue.
Value = Any

# Dimensions that a graph may have as it likes.
_FREE = ("C", "D", "h", "w")
# Each CUDA graph keeps its buffers; past this many different sets of addresses the rest runs without.
_MAX_GRAPHS = 16


@dataclass
class Session:
    """An ONNX graph ready to run, made by ``open_session``. For one thread at a time.

    ``single``: whatever comes in, the graph is run on one image at a time, by way of the host. On OpenVINO
    that is always so.
    ``fixed``: ``bound`` gives its outputs in the same two sets of places in turn, as a CUDA graph, which
    replays its addresses, needs it. A value that ``bound`` gave is then overwritten by the next but one call.
    """

    path: Path
    graph: Graph
    choice: Choice
    runtime: Any = field(repr=False)
    fixed: bool = False
    single: bool = False

    _places: dict[object, Value] = field(default_factory=dict, repr=False)
    _outputs: dict[object, list[dict[str, Value]]] = field(default_factory=dict, repr=False)
    _graphs: dict[object, int] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> str:
        """Where its values lie, in ONNX Runtime's words: "cuda", or "cpu" for the host's memory."""
        return "cuda" if self.choice.word in ON_GPU else "cpu"

    def run(self, **inputs: Array) -> dict[str, Array]:
        """The outputs by name; float32 in, float32 out.

        Raises ProviderError if the runtime fails, ModelError if an output holds NaN or infinity.
        """
        names = list(self.graph.outputs)
        count = self._count({name: array.shape for name, array in inputs.items()})
        if self.single and count > 1:
            parts = [self.run(**{n: a[i : i + 1] for n, a in inputs.items()}) for i in range(count)]
            return {name: np.concatenate([part[name] for part in parts]) for name in names}
        with self._telling(count):
            found = self.runtime.run(names, inputs, self._options(None))
        self._complete({n: value.shape for n, value in zip(names, found, strict=True)}, count)
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
        input's name. Does not look for NaN: ``fetch`` does. Raises ProviderError if the runtime fails.
        """
        values = {
            name: self.put(value, f"input {name}") if isinstance(value, np.ndarray) else value
            for name, value in inputs.items()
        }
        count = self._count({name: value.shape() for name, value in values.items()})
        if self.single and count > 1:
            arrays = {name: np.array(value.numpy()) for name, value in values.items()}
            return {name: self.put(array) for name, array in self.run(**arrays).items()}
        binding = self.runtime.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        places, graph = self._outputs_in_turn(values) if self.fixed else (None, None)
        for name in self.graph.outputs:
            if places is None:
                binding.bind_output(name, self.device, 0)
            else:
                binding.bind_ortvalue_output(name, places[name])
        with self._telling(count):
            self.runtime.run_with_iobinding(binding, self._options(graph))
        if places is not None:
            return places
        outputs = dict(zip(self.graph.outputs, binding.get_outputs(), strict=True))
        self._complete({name: value.shape() for name, value in outputs.items()}, count)
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

    @contextlib.contextmanager
    def _telling(self, batch: int) -> Iterator[None]:
        try:
            yield
        except runtime_errors() as error:
            raise ProviderError(
                f"{self.path}: {self.choice.provider} failed on it: {brief(error)}",
                self.choice.word,
                batch,
                out_of_memory=is_memory(error),
            ) from error

    def _count(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """N, the number of images, of the inputs."""
        return next((shapes[name][0] for name, dims in self.graph.inputs.items() if dims[0] == "N"), 1)

    def _complete(self, shapes: Mapping[str, Sequence[int]], count: int) -> None:
        """Raise ProviderError if an output is not as long as the inputs.

        Of memory that it cannot get, the OpenVINO provider (1.24) says nothing: it gives no image at all.
        """
        for name, dims in self.graph.outputs.items():
            if dims[0] == "N" and shapes[name][0] != count:
                raise ProviderError(
                    f"{self.path}: {self.choice.provider} gave {shapes[name][0]} of {count} images as "
                    f"{name!r}, as it does when it runs out of memory",
                    self.choice.word,
                    count,
                    out_of_memory=True,
                )

    def _check(self, name: str, value: Array) -> None:
        if not np.isfinite(value).all():
            raise ModelError(
                f"{self.path}: the output {name!r} holds values that are not finite, computed in "
                f"{self.choice.precision} by {self.choice.provider}. Try infer.providers: [cpu], or "
                "another model."
            )


def _shapes(values: dict[str, Value]) -> object:
    return tuple((name, *value.shape()) for name, value in values.items())


def open_session(
    card: Card, role: str, settings: Settings, choices: Sequence[Choice] | None = None
) -> Session:
    """Load the graph of one role on the first provider that takes it, and compare it with the contract.

    ``choices``: the providers to try, if not those that the settings have for this role.
    The file is compared with its digest first. Raises ModelError if no provider takes it, or it is not the
    graph that the card promises; ProviderError if there is not the memory for it.
    """
    failures: list[str] = []
    for choice in choices or choices_for(card, role, settings):
        roles = card.variants[choice.variant] if choice.variant else card.files
        graph = contract.graph(card.task, role, roles)
        path = card.path(role, choice.variant)
        card.verify(path.name)
        try:
            runtime, fixed, warnings = open_on(path, choice, settings, card, role)
        except NotTakenError as reason:
            failures.append(str(reason))
            continue
        if problems := _compare(runtime, graph, card.input.size):
            raise ModelError(
                "\n".join(f"{path}: {p} Export the model again, or correct its card." for p in problems)
            )
        choice = replace(choice, warnings=(*choice.warnings, *failures, *warnings))
        log.info("%s: %s runs on %s: %s", card.name, path.name, choice.provider, choice.reason)
        return Session(path, graph, choice, runtime, fixed, single=choice.word == "openvino")
    raise ModelError(f"{path}: no provider takes this model: {'; '.join(failures)}. Export or copy it again.")


def open_shallow(card: Card, denoiser: Session, settings: Settings) -> Session | None:
    """The shallow graph beside the variant of the denoiser that was taken, on its provider; None without one.

    Raises as open_session does.
    """
    variant = denoiser.choice.variant
    if variant is None or not card.has("shallow", variant):
        return None
    return open_session(card, "shallow", settings, [denoiser.choice])


def open_beside(session: Session, path: Path, graph: Graph, settings: Settings) -> Session:
    """The graph of the node itself in ``path`` (a sampler's update) on the provider of ``session``, in f32.

    Where that is TensorRT, on CUDA: the graph is small, and its values lie on the same device. Raises
    ModelError if the provider does not take it.
    """
    provider = PROVIDERS["cuda"] if session.device == "cuda" else session.choice.provider
    choice = replace(session.choice, provider=provider, precision="f32", warnings=(), variant=None)
    failures: list[str] = []
    for fixed in sorted({session.fixed, False}, reverse=True):  # a CUDA graph, if it can be
        try:
            runtime = start(path, choice, settings, provider_options(choice, settings, fixed))
        except NotTakenError as reason:
            failures.append(str(reason))
            continue
        return Session(path, graph, choice, runtime, fixed)
    raise ModelError(f"{path}: {'; '.join(failures)}. Install pacs-node again.")


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
                not isinstance(have, int) or have == (1 if want == "N" else want) or want in _FREE
                for have, want in zip(shape, wanted, strict=True)
            )
            if not fits or present[name].type != "tensor(float)":
                problems.append(
                    f"its {kind} {name!r} is {present[name].type} of {shape}, "
                    f"but must be tensor(float) of {wanted}."
                )
    return problems
