"""multipart/related (RFC 2387, RFC 2046 5.1), taken apart as it arrives with bounded memory; and written."""

from __future__ import annotations

import re
import secrets
from email.message import Message
from email.parser import HeaderParser
from typing import Protocol

#: What one part's headers, and what stands before the first delimiter, may take.
MAX_PART_HEADERS, MAX_PREAMBLE = 8 << 10, 64 << 10
#: PS3.18 puts no bound on the parts of a request; this one does.
MAX_PARTS = 10_000
_MAX_BOUNDARY = 70  # RFC 2046 5.1.1
_MAX_HEADER = 1024


class MultipartError(ValueError):
    """The body is not what its Content-Type says."""


class TooManyPartsError(MultipartError):
    """More than MAX_PARTS."""


class Parts(Protocol):
    """Takes the parts one after the other."""

    def begin(self, content_type: str) -> None:
        """A part begins; ``content_type`` is its media type in lower case, without parameters."""

    def data(self, data: bytes) -> None:
        """More bytes of it."""

    def end(self) -> None:
        """It was whole."""


def media_type(header: str) -> tuple[str, dict[str, str]]:
    """A media type in lower case and its parameters (names in lower case, values unquoted)."""
    message = Message()
    message["content-type"] = re.sub(r"[\r\n]", "", header[:_MAX_HEADER])
    parameters = message.get_params(failobj=[])[1:]
    return message.get_content_type() if "/" in header else "", {
        name.lower(): value.strip() for name, value in parameters if isinstance(value, str)
    }


class Parser:
    """Feed it the body in pieces of any size. Raises MultipartError."""

    def __init__(self, boundary: str, parts: Parts) -> None:
        if not 1 <= len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
            raise MultipartError(f"the boundary must have 1 to {_MAX_BOUNDARY} ASCII characters")
        self._parts = parts
        self._delimiter = b"\r\n--" + boundary.encode()
        # The first delimiter may stand at the very beginning, without a line end before it.
        self._buffer = bytearray(b"\r\n")
        self._state = self._preamble
        self._count = 0
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Take more of the body."""
        self._buffer += data
        while self._state():
            pass

    def finish(self) -> None:
        """The body has ended. Raises MultipartError unless its closing delimiter was there."""
        if not self.complete:
            raise MultipartError("the body ends without the closing delimiter")

    def _preamble(self) -> bool:
        found = self._buffer.find(self._delimiter)
        if found < 0:
            if len(self._buffer) > MAX_PREAMBLE:
                raise MultipartError("no delimiter where the first part should begin")
            return False
        del self._buffer[: found + len(self._delimiter)]
        self._state = self._after_delimiter
        return True

    def _after_delimiter(self) -> bool:
        if self._buffer.startswith(b"--"):
            self.complete, self._state = True, self._epilogue
            return True
        end = self._buffer.find(b"\r\n")
        if end < 0 and len(self._buffer) <= MAX_PART_HEADERS:
            return False
        if end < 0 or self._buffer[:end].strip(b" \t"):
            raise MultipartError("a delimiter is followed by something else than a line end")
        # The line end stays: it also ends headers of which there are none.
        del self._buffer[:end]
        self._state = self._headers
        return True

    def _headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_PART_HEADERS:
            if len(self._buffer) > MAX_PART_HEADERS:
                raise MultipartError(f"the headers of a part are longer than {MAX_PART_HEADERS} bytes")
            return False
        self._count += 1
        if self._count > MAX_PARTS:
            raise TooManyPartsError(f"more than {MAX_PARTS} parts")
        headers = HeaderParser().parsestr(self._buffer[2 : end + 2].decode("latin-1"))
        del self._buffer[: end + 4]
        self._parts.begin(media_type(str(headers.get("content-type", "")))[0])
        self._state = self._body
        return True

    def _body(self) -> bool:
        found = self._buffer.find(self._delimiter)
        if found >= 0:
            self._parts.data(bytes(self._buffer[:found]))
            self._parts.end()
            del self._buffer[: found + len(self._delimiter)]
            self._state = self._after_delimiter
            return True
        # The end of what is here may be the beginning of a delimiter.
        ready = len(self._buffer) - len(self._delimiter) + 1
        if ready > 0:
            self._parts.data(bytes(self._buffer[:ready]))
            del self._buffer[:ready]
        return False

    def _epilogue(self) -> bool:
        self._buffer.clear()
        return False


class Writer:
    """The pieces of a multipart/related answer."""

    def __init__(self, root_type: str) -> None:
        self._boundary = secrets.token_hex(16)
        self.content_type = f'multipart/related; type="{root_type}"; boundary={self._boundary}'

    def begin(self, content_type: str, location: str = "") -> bytes:
        """What goes before the bytes of a part; ``finish`` must follow after the last."""
        where = f"\r\nContent-Location: {location}" if location else ""
        return f"\r\n--{self._boundary}\r\nContent-Type: {content_type}{where}\r\n\r\n".encode()

    def finish(self) -> bytes:
        """What goes after the last part."""
        return f"\r\n--{self._boundary}--\r\n".encode()
