"""WADO-RS (PS3.18 10.4): instances, metadata, frames, pictures and bulk data of what the index finds."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, JPEGExtended12Bit

from pacs_node.deliver.decoded import decoded
from pacs_node.deliver.objects import FileToSend, NotSendableError
from pacs_node.dicom.files import open_dicom
from pacs_node.dicomweb import pixels
from pacs_node.dicomweb.accept import DICOM, EXPLICIT, OCTETS, Wanted
from pacs_node.dicomweb.errors import RequestError, not_acceptable, not_found
from pacs_node.dicomweb.index import Instance
from pacs_node.dicomweb.metadata import PIXEL_DATA, bulk_value, instance_metadata
from pacs_node.dicomweb.multipart import Writer
from pacs_node.errors import Refused

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A body that is written as it is read, and its Content-Type."""

    content_type: str
    chunks: Iterator[bytes]


def address(root: str, instance: Instance) -> str:
    """The URL of an instance."""
    return f"{root}/studies/{instance.study}/series/{instance.series}/instances/{instance.instance}"


def metadata(instance: Instance, root: str) -> dict[str, Any] | None:
    """Its metadata; None if it has just been purged or does not parse."""
    try:
        return instance_metadata(instance.path, address(root, instance))
    except (FileNotFoundError, Refused):
        return None


# -- instances -----------------------------------------------------------------------------------------------


def instances(held: list[Instance], accepted: list[Wanted], root: str) -> Answer:
    """Whole objects, a part for each; a single one also by itself. Raises RequestError (406)."""
    wanted = next((w for w in accepted if w.takes(DICOM) and (w.multipart or w.kind in (DICOM, "*/*"))), None)
    if wanted is None:
        raise not_acceptable("instances are only given as application/dicom", _ask(DICOM))
    if wanted.syntax not in ("", "*", EXPLICIT) and any(i.syntax != wanted.syntax for i in held):
        raise not_acceptable(
            "the transfer syntax is neither that of the stored object nor Explicit VR Little Endian",
            _ask(DICOM),
        )
    # Whoever says nothing of the syntax gets the default one (PS3.18 8.7.3.5.2).
    convert = wanted.syntax in ("", EXPLICIT)
    if not wanted.multipart and wanted.kind == DICOM:
        if len(held) > 1:
            raise not_acceptable("several instances do not fit application/dicom", _ask(DICOM))
        return Answer(DICOM, _first_now(_object(held[0], convert)))
    writer = Writer(DICOM)
    if convert and len(held) == 1:
        # What does not decode is said with a status as long as there is one to give.
        return Answer(writer.content_type, _first_now(_parts(writer, held, convert, root)))
    return Answer(writer.content_type, _parts(writer, held, convert, root))


def _parts(writer: Writer, held: list[Instance], convert: bool, root: str) -> Iterator[bytes]:
    for instance in held:
        try:
            content = _first_now(_object(instance, convert))
            syntax = EXPLICIT if convert else instance.syntax
        except RequestError as error:
            if error.status == 406 and len(held) > 1:
                # One that does not decode is better had as it is than not at all.
                content, syntax = _first_now(_object(instance, convert=False)), instance.syntax
            elif error.status == 404 and len(held) > 1:
                log.info("purged while it was retrieved", extra={"study": instance.study})
                continue
            else:
                raise
        yield writer.begin(f"{DICOM}; transfer-syntax={syntax}", address(root, instance))
        yield from content
    yield writer.finish()


def _first_now(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, but what the first of them raises is raised at once."""
    first = next(chunks, b"")

    def rest() -> Iterator[bytes]:
        yield first
        yield from chunks

    return rest()


def _object(instance: Instance, convert: bool) -> Iterator[bytes]:
    try:
        if convert and instance.syntax != EXPLICIT:
            yield _in_explicit(instance)
            return
        with instance.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except FileNotFoundError:
        raise not_found("the instance has just been purged") from None


def _in_explicit(instance: Instance) -> bytes:
    dataset = _decoded(instance)
    try:
        buffer = io.BytesIO()
        dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT)
        dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    # pydicom raises whatever a value that cannot be written again provokes.
    except Exception as error:
        raise not_acceptable(
            "the object cannot be written in another transfer syntax", _ask(DICOM)
        ) from error
    return buffer.getvalue()


def _decoded(instance: Instance) -> Dataset:
    i = instance
    try:
        return decoded(FileToSend(i.path, i.sop_class, i.instance, i.study, i.syntax))
    except NotSendableError as error:
        raise not_acceptable("the pixel data does not decode", _ask(DICOM)) from error


def _ask(kind: str) -> str:
    return f'Ask for multipart/related; type="{kind}"; transfer-syntax=* to have it as it is stored'


# -- frames, pictures, bulk data -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Reads pixels within the configuration's bounds."""

    max_pixels: int
    max_bytes: int

    def frames(self, instance: Instance, numbers: list[int], accepted: list[Wanted], root: str) -> Answer:
        """Frames (numbers from 1), a part each: uncompressed, or as encapsulated where that is asked for."""
        ds = self._read(instance)
        count = pixels.shape(ds, self.max_pixels)[3]
        stored = pixels.MEDIA_TYPES.get(instance.syntax, "")
        for wanted in accepted:
            as_stored = stored and wanted.kind != "*/*" and wanted.takes(stored)
            if as_stored and wanted.syntax in ("", "*", instance.syntax):
                kind, syntax = stored, instance.syntax
                break
            if wanted.takes(OCTETS) and wanted.syntax in ("", "*", EXPLICIT, "1.2.840.10008.1.2"):
                kind, syntax = OCTETS, EXPLICIT
                break
        else:
            forms = " or ".join(filter(None, (OCTETS, stored)))
            raise not_acceptable(
                f"frames of this instance are given as {forms}",
                f'Ask for multipart/related; type="{OCTETS}"; transfer-syntax={EXPLICIT}',
            )

        if kind == OCTETS:
            ds = self._decodable(ds, instance)

        def one(number: int) -> bytes:
            if not 1 <= number <= count:
                raise not_found(f"the instance has {count} frame(s)", "Ask for frames from 1 to that number")
            if kind == OCTETS:
                return pixels.frame(ds, number, self.max_pixels)
            return pixels.compressed_frame(ds, number, count)

        form = f"{kind}; transfer-syntax={syntax}"
        if not wanted.multipart and wanted.kind == kind:
            if len(numbers) > 1:
                raise not_acceptable(
                    "several frames do not fit one part", f"Ask for multipart/related; type={kind}"
                )
            return Answer(form, iter([one(numbers[0])]))
        writer = Writer(kind)

        def parts() -> Iterator[bytes]:
            for number in numbers:
                content = one(number)
                yield writer.begin(form, f"{address(root, instance)}/frames/{number}")
                yield content
            yield writer.finish()

        return Answer(writer.content_type, _first_now(parts()))

    def picture(self, instance: Instance, number: int, view: pixels.View, accepted: list[Wanted]) -> Answer:
        """A frame as JPEG (the default) or PNG."""
        for wanted in accepted:
            kind = next((k for k in ("image/jpeg", "image/png") if wanted.takes(k)), None)
            if kind is not None:
                ds = self._decodable(self._read(instance), instance)
                found = pixels.picture(ds, number, view, kind, self.max_pixels)
                return Answer(kind, iter([found]))
        raise not_acceptable("pictures are given as image/jpeg or image/png", "Ask for one of these")

    def bulk(self, instance: Instance, steps: list[str], accepted: list[Wanted], root: str) -> Answer:
        """A binary value that the metadata left out, as octets; pixels uncompressed."""
        ds = self._decodable(self._read(instance), instance)
        if steps == [PIXEL_DATA]:
            numbers = range(1, pixels.shape(ds, self.max_pixels)[3] + 1)
            value: bytes | None = b"".join(pixels.frame(ds, number, self.max_pixels) for number in numbers)
        else:
            value = bulk_value(ds, steps)
        if value is None:
            raise not_found("the instance has no such binary value", "Take the address from its metadata")
        wanted = next((w for w in accepted if w.takes(OCTETS)), None)
        if wanted is None:
            raise not_acceptable("bulk data is given as application/octet-stream", "Ask for that")
        if not wanted.multipart:
            return Answer(OCTETS, iter([value]))
        writer = Writer(OCTETS)
        location = f"{address(root, instance)}/bulkdata/{'/'.join(steps)}"
        return Answer(writer.content_type, iter([writer.begin(OCTETS, location), value, writer.finish()]))

    def _read(self, instance: Instance) -> Dataset:
        """The object with its pixels. Raises RequestError."""
        try:
            return open_dicom(instance.path, self.max_bytes + (1 << 20))
        except FileNotFoundError:
            raise not_found("the instance has just been purged") from None
        except Refused as refused:
            raise not_acceptable(f"the object does not parse ({refused.code})", _ask(DICOM)) from refused

    def _decodable(self, ds: Dataset, instance: Instance) -> Dataset:
        """The same object in a form that pydicom decodes: of 12-bit lossy JPEG, decoded already."""
        twelve_bits = instance.syntax == JPEGExtended12Bit and ds.get("BitsAllocated") == 16
        return _decoded(instance) if twelve_bits else ds
