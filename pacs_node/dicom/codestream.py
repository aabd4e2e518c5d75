"""What a compressed frame says of itself, read from its first bytes before any decoder sees it.

A decoder allocates what the codestream announces, whatever Rows and Columns say, so the two are compared
first. JPEG and JPEG-LS: the frame header SOFn (ITU-T T.81 B.2.2, T.87 C.2.2); JPEG 2000: SIZ (ITU-T T.800
A.5.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}) | {0xF7}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG = b"\xff\xd8"
_JPEG_2000 = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000


@dataclass(frozen=True)
class Codestream:
    """Size in pixels, components and bits per sample, and whether the end marker is there."""

    rows: int
    columns: int
    components: int
    precision: int
    complete: bool


def inspect(frame: bytes) -> Codestream | None:
    """The frame's own header, or None if it is no JPEG, JPEG-LS or JPEG 2000 codestream (or has no such
    header).
    """
    complete = _END in frame[-16:]  # some encoders pad after the end marker
    if frame.startswith(_JPEG):
        return _jpeg(frame, complete)
    start = frame.find(_JPEG_2000, 0, 4096)  # a JP2 file's boxes may come first
    if start >= 0 and len(frame) >= start + 43:
        width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
        components, precision = struct.unpack_from(">HB", frame, start + 40)
        return Codestream(height - top, width - left, components, (precision & 0x7F) + 1, complete)
    return None


def _jpeg(frame: bytes, complete: bool) -> Codestream | None:
    position = 2
    while position + 4 <= len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF or marker in _STANDALONE:  # a fill byte, or a marker without a segment
            position += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack_from(">H", frame, position + 2)[0]
        if marker in _SOF and position + 10 <= len(frame):
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            return Codestream(rows, columns, components, precision, complete)
        position += 2 + max(length, 2)
    return None
