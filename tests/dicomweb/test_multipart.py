"""multipart/related in pieces of any size, and what is not multipart."""

from __future__ import annotations

import email
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacs_node.dicomweb import accept
from pacs_node.dicomweb.multipart import (
    MAX_PARTS,
    MultipartError,
    Parser,
    TooManyPartsError,
    Writer,
    media_type,
)


class Collected:
    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.whole = 0

    def begin(self, content_type: str) -> None:
        self.parts.append((content_type, b""))

    def data(self, data: bytes) -> None:
        self.parts[-1] = (self.parts[-1][0], self.parts[-1][1] + data)

    def end(self) -> None:
        self.whole += 1


def fed(content: bytes, boundary: str = "b", piece: int = 1 << 20) -> Collected:
    collected = Collected()
    parser = Parser(boundary, collected)
    for start in range(0, len(content), piece):
        parser.feed(content[start : start + piece])
    parser.finish()
    return collected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.binary(max_size=80) | st.sampled_from([b"\r\n--", b"--b", b"\r\n", b"\r\n--c--"]), max_size=5
    ),
    st.integers(1, 40),
    st.sampled_from([b"", b"preamble\r\n"]),
)
def test_every_part_comes_out_as_it_went_in(parts: list[bytes], piece: int, preamble: bytes) -> None:
    parts = [part for part in parts if b"--b" not in part]
    content = preamble + b"".join(
        b"--b \r\nContent-Type: Application/DICOM; x=y\r\n\r\n" + part + b"\r\n" for part in parts
    )
    collected = fed(content + b"--b--\r\nepilogue", piece=piece)
    assert [data for _, data in collected.parts] == parts
    assert {kind for kind, _ in collected.parts} <= {"application/dicom"}
    assert collected.whole == len(parts)


def test_a_part_without_headers() -> None:
    assert fed(b"--b\r\n\r\nbytes\r\n--b--").parts == [("", b"bytes")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--b",
        b"--b\r\n",
        b"--b\r\nContent-Type: application/dicom\r\n\r\nbytes",
        b"--b\r\nContent-Type: application/dicom\r\n\r\nbytes\r\n--b",
        b"--bX\r\n\r\nbytes\r\n--b--",
        b"--b\r\n" + b"X: y\r\n" * 5000 + b"\r\n\r\n--b--",
        b"x" * (1 << 17),
    ],
)
def test_what_is_broken_is_said(content: bytes) -> None:
    with pytest.raises(MultipartError):
        fed(content)


def test_parts_and_memory_are_bounded() -> None:
    with pytest.raises(TooManyPartsError):
        fed(b"--b\r\n\r\nx\r\n" * (MAX_PARTS + 1) + b"--b--")
    parser = Parser("b", Collected())
    parser.feed(b"--b\r\n\r\n")
    noise = random.Random(1)
    for _ in range(50):
        parser.feed(noise.randbytes(1 << 16))
        assert len(parser._buffer) < 1 << 10


@pytest.mark.parametrize("boundary", ["", "x" * 71, "ü"])
def test_a_boundary_that_is_none(boundary: str) -> None:
    with pytest.raises(MultipartError):
        Parser(boundary, Collected())


def test_what_is_written_another_parser_reads() -> None:
    writer = Writer("application/dicom")
    content = writer.begin("application/dicom; transfer-syntax=1.2", "http://x/1") + b"one"
    content += writer.begin("application/dicom") + b"two" + writer.finish()
    message = email.message_from_bytes(
        b"Content-Type: " + writer.content_type.encode() + b"\r\n\r\n" + content
    )
    first, second = message.get_payload()
    assert (first.get_payload(), second.get_payload()) == ("one", "two")
    assert first["Content-Location"] == "http://x/1"


def test_media_types_and_accept_as_clients_write_them() -> None:
    assert media_type('multipart/related; type="application/dicom"; boundary=x') == (
        "multipart/related",
        {"type": "application/dicom", "boundary": "x"},
    )
    assert media_type("nonsense")[0] == ""
    unquoted = accept.parse("multipart/related; type=application/octet-stream; transfer-syntax=*")
    assert unquoted == [accept.Wanted("application/octet-stream", True, "*")]
    ranked = accept.parse('image/png;q=0.5, multipart/related; type="image/jls, x"; q=0.7, image/jpeg')
    assert [wanted.kind for wanted in ranked] == ["image/jpeg", "image/jls, x", "image/png"]
    assert accept.parse("") == accept.parse("*/*") == [accept.Wanted("*/*", False)]
    assert accept.parse('"' * 5000 + ",") == [accept.Wanted("*/*", False)]
