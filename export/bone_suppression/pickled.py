"""Reads checkpoints of others without running what they bring along.

The authors publish whole modules, ``torch.save(model)``: a pickle that names classes to be imported and may
name any function to be called. Here nothing is imported. A class that is not known becomes a record of its
state, from which a module's parameters and buffers are read; a function that is not known is never called,
its name ends the reading. Also read: plain state dicts, such dicts within ``state_dict``, ``model``,
``ema`` … of another dict, and safetensors. Weights are mapped from the file, not copied.

The format: a zip archive with everything stored, ``*/data.pkl`` and ``*/data/<key>`` (torch.serialization,
since torch 1.6); safetensors: 8 bytes length, a JSON header, the data.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from pacs_node.errors import ModelError

#: The full-size denoiser is 1.5 GB, its pickle under 1 MB. A hostile one makes 60 bytes of objects of a byte.
MAX_FILE, MAX_PICKLE, MAX_MEMBERS = 8 << 30, 16 << 20, 100_000
#: What a state dict is put into, in the order in which one is looked for: averages before the last weights.
WRAPPED = ("ema", "model_ema", "average", "state_dict", "model", "net", "network", "parts")
#: What torch's wrappers put before every name.
PREFIXES = ("module.", "_orig_mod.")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class CheckpointError(ModelError):
    """A checkpoint that cannot be taken: one sentence for each thing that is wrong, with its remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name; ``classes``: of the modules by their place, where a whole module was pickled."""

    path: Path
    weights: dict[str, Tensor]
    classes: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in the file ``path``. Raises CheckpointError if it cannot be read, or not safely."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Correct the path.")
    if path.stat().st_size > MAX_FILE:
        raise CheckpointError(
            f"{path}: larger than {MAX_FILE >> 30} GiB, which none of these models is. Give the model alone, "
            "without the optimiser's state."
        )
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"PK\x03\x04":
        content = _read_zip(path)
    elif start[8:9] == b"{":
        content = _read_safetensors(path)
    elif start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        raise CheckpointError(
            f"{path}: a bare pickle, as torch before 1.6 wrote it. Load it where it comes from, in "
            "isolation, and save its state dict with a newer torch."
        )
    else:
        raise CheckpointError(
            f"{path}: neither a torch checkpoint nor safetensors. Give the .pth or .safetensors file itself."
        )
    return _unwrap(path, content)


class _Class(type):
    """Type of the records: to call one means that the pickle wants a function called."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise _CodeError(cls.__name__)


class Record(metaclass=_Class):
    """An object of an unknown class, as its state."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Record:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _CodeError(Exception):
    """The pickle calls for a function by this name."""


class _Function:
    """One of the few functions that a pickle may call; its attributes cannot be changed by the pickle."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name!r} of a function")


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without its storage")
    return torch.as_strided(storage, tuple(size), tuple(stride), int(offset))


def _parameter(data: Tensor, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without its tensor")
    return data


KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _Function(_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Function(_parameter),
    "torch.Size": _Function(tuple),
    "torch.device": _Function(lambda *_: "cpu"),
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "builtins.frozenset": frozenset,
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    **{str(dtype): dtype for dtype in STORAGES.values()},
}


class _Unpickler(pickle.Unpickler):
    """Nothing is imported: names are looked up in KNOWN, all others become classes of records."""

    def __init__(self, file: BinaryIO, storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        return KNOWN[full] if full in KNOWN else _Class(full, (Record,), {})

    def persistent_load(self, reference: Any) -> Tensor:
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(count, int):
            raise pickle.UnpicklingError("a reference that is not to a storage")
        return self.storage(str(key), dtype, count)


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except _CodeError as error:
        raise CheckpointError(
            f"{path}: there is code in its pickle, it wants {str(error)!r} called. It was not called. Do not "
            "load this file with torch either; ask its source for a state dict."
        ) from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: the file is truncated or damaged ({error}). Download it again."
        ) from error
    # What a pickle machine meets in garbage is any of these; none of it comes from code of the file.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            RuntimeError, RecursionError, MemoryError, OverflowError, UnicodeError) as error:  # fmt: skip
        raise CheckpointError(
            f"{path}: its pickle cannot be read ({error.__class__.__name__}: {error}). Download it again, or "
            "save the module's state dict."
        ) from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(members) > MAX_MEMBERS:
        raise CheckpointError(
            f"{path}: a zip archive, but not a torch checkpoint. Give the .pth file itself."
        )
    root = pickles[0].removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise CheckpointError(
            f"{path}: its parts are compressed, which torch never does. Save it by torch again."
        )
    if members[pickles[0]].file_size > MAX_PICKLE:
        raise CheckpointError(
            f"{path}: its pickle is larger than {MAX_PICKLE >> 20} MiB. Save its state dict."
        )
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"{path}: saved on a big-endian machine. Save it on another one.")

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = members[f"{root}data/{key}"]
        size = count * dtype.itemsize
        if not 0 <= size <= info.file_size:
            raise pickle.UnpicklingError(f"storage {key} has {info.file_size} bytes, not {size}")
        return _mapped(path, _data_start(path, info), size, dtype)

    with archive.open(pickles[0]) as file:
        return _Unpickler(file, storage).load()


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header of 30 bytes, name and extra field."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a member's header is missing")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name) + int(extra)


def _mapped(path: Path, start: int, size: int, dtype: torch.dtype) -> Tensor:
    if start + size > path.stat().st_size:
        raise zipfile.BadZipFile("the data ends early")
    if size == 0:
        return torch.empty(0, dtype=dtype)
    # Mapped "copy on write": the file stays as it is whatever happens to the tensor.
    return torch.from_numpy(np.memmap(path, np.uint8, "c", start, (size,))).view(dtype)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_PICKLE:
                raise CheckpointError(f"{path}: neither a torch checkpoint nor safetensors.")
            header = json.loads(file.read(length).decode("utf-8"))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
            flat = _mapped(path, 8 + length + begin, end - begin, dtype)
            found[name] = flat.reshape([int(n) for n in entry["shape"]])
    except (zipfile.BadZipFile, UnicodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: the file is truncated or damaged ({error}). Download it again."
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its safetensors header is not in order ({error!r}). Save it again."
        ) from error
    return found


def _unwrap(path: Path, content: Any) -> Checkpoint:
    """The state dict in what was read, wherever it is."""
    for _ in range(4):
        if isinstance(content, Record):
            state = dict(_module_state(content))
            classes = dict(_module_classes(content))
            break
        if not isinstance(content, Mapping):
            raise _no_weights(path, content)
        state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        classes = {}
        inner = next(
            (content[key] for key in WRAPPED if isinstance(content.get(key), (Record, Mapping))), None
        )
        if inner is None:
            break
        content = inner
    if not state:
        raise _no_weights(path, content)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return Checkpoint(path, state, classes)


def _no_weights(path: Path, content: Any) -> CheckpointError:
    what = type(content).__name__
    return CheckpointError(
        f"{path}: there are no weights in it, but {what}. Give a module or its state dict."
    )


def _parts(record: Record, key: str) -> Iterator[tuple[str, Any]]:
    """The entries of ``_parameters``, ``_buffers`` or ``_modules`` of a pickled torch module."""
    state = record.state
    table = state.get(key) if isinstance(state, Mapping) else None
    if isinstance(table, Mapping):
        yield from ((str(name), value) for name, value in table.items() if value is not None)


def _module_state(record: Record, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """As Module.state_dict: parameters and persistent buffers, then those of the modules within."""
    if depth > 50:
        raise CheckpointError("modules nested deeper than 50. Save the module's state dict instead.")
    state = record.state if isinstance(record.state, Mapping) else {}
    fleeting = state.get("_non_persistent_buffers_set") or ()
    for key in ("_parameters", "_buffers"):
        for name, value in _parts(record, key):
            if isinstance(value, Tensor) and not (key == "_buffers" and name in fleeting):
                yield prefix + name, value
    for name, value in _parts(record, "_modules"):
        if isinstance(value, Record):
            yield from _module_state(value, f"{prefix}{name}.", depth + 1)


def _module_classes(record: Record, prefix: str = "") -> Iterator[tuple[str, str]]:
    yield prefix.removesuffix("."), type(record).__name__
    for name, value in _parts(record, "_modules"):
        if isinstance(value, Record):
            yield from _module_classes(value, f"{prefix}{name}.")
