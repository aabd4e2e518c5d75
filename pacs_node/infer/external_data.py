"""Which other files an ONNX file draws its weights from, read without the onnx package.

An ONNX tensor may say that its bytes lie in another file (``external_data`` in onnx.proto, entries
``location``, ``offset``, ``length``). Such a file is part of the model and must be covered by the card's
digests; a location such as ``../../etc/passwd`` must not be read at all. So the locations are found before
any runtime opens the file: a walk over the protocol buffer's wire format
(protobuf.dev/programming-guides/encoding), entering only the messages that can lead to a tensor. Weights
stored inside are stepped over, never copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from pacs_node.errors import ModelError

# Message -> field number -> message, from onnx.proto (IR version 13). Anything else is stepped over.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64


def external_files(path: Path) -> list[str]:
    """The locations of all external data of the ONNX file ``path``, as written there, sorted.

    Raises ModelError if the file is empty, cut off, or no ONNX file at all.
    """
    if path.stat().st_size == 0:
        raise NotWholeError(f"{path}: the file is empty. Copy it again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return sorted(set(_locations(data, 0, len(data), "Model", 0)))
        except (IndexError, ValueError) as error:
            if data[0] != 1 << 3 | _VARINT:  # every writer begins with field 1, the version
                told = f"not an ONNX file ({error}). Export or copy it again."
                raise NotWholeError(f"{path}: {told}") from error
            if isinstance(error, _CutOffError):
                raise NotWholeError(f"{path}: the file is cut off ({error}). Copy it again.") from error
            raise ModelError(f"{path}: not an ONNX file ({error}). Export or copy it again.") from error


class NotWholeError(ModelError):
    """The file is cut off, or was never an ONNX file."""


class _CutOffError(ValueError):
    """A field is longer than what is left of the file or of the message around it."""


def _locations(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages nested deeper than {_MAX_DEPTH}")
    entered = _FIELDS[message]
    for number, begin, stop in _length_delimited(data, start, end):
        child = entered.get(number)
        if child == "Entry":
            # StringStringEntryProto: key = 1, value = 2.
            entry = {n: data[b:s].decode("utf-8") for n, b, s in _length_delimited(data, begin, stop)}
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif child:
            yield from _locations(data, begin, stop, child, depth + 1)


def _length_delimited(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of each length-delimited field of the message at data[position:end]."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {position}")
        if wire_type == _VARINT:
            _, position = _varint(data, position, end)
        elif wire_type == _FIXED64:
            position += 8
        elif wire_type == _FIXED32:
            position += 4
        elif wire_type == _BYTES:
            length, position = _varint(data, position, end)
            if position + length > end:
                raise _CutOffError(f"a field at byte {position} runs past its end")
            yield number, position, position + length
            position += length
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
    if position != end:
        raise _CutOffError(f"a field runs past byte {end}")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _CutOffError(f"cut off at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number longer than 10 bytes at byte {position}")
