"""DICOM files of any origin, read with bounds and checked; and Part 10 files of our own."""

from __future__ import annotations

import io
import logging
import threading
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pacs_node.dicom.carried import TEXT, is_plain
from pacs_node.dicom.uids import is_uid
from pacs_node.errors import Refused
from pacs_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

# What pydicom thinks of the values of others would be a line for each of them.
logging.getLogger("pydicom").setLevel(logging.ERROR)

log = logging.getLogger(__name__)

# Python's warning filters are the whole process's: two readers must not set them at once.
_reading = threading.Lock()

_NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"})

HEADER_BYTES = 16 << 20
"""How much of a deflated data set is inflated when only the header is wanted."""

DEFERRED_BYTES = 1 << 20
"""Values longer than this are left in the file when only the header is wanted."""

_UNDEFINED_LENGTH = 0xFFFFFFFF
_NOT_DICOM = "Send a DICOM Part 10 file (a preamble of 128 bytes, then DICM)"


def open_dicom(path: Path, max_bytes: int) -> Dataset:
    """Read a whole file, at most ``max_bytes`` of it, inflated or not.

    Raises Refused: ``not-dicom``, ``file-too-large``, ``truncated``, ``unreadable``, ``no-sop-instance-uid``,
    ``missing-uid``, ``bad-uid``; OSError if the file cannot be opened.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise Refused(
            "file-too-large",
            f"the file has {size} bytes, more than the limit of {max_bytes}",
            "Raise the limit in the configuration if such files are expected",
        )
    ds = _read(path, max_bytes, header_only=False)
    check_uids(ds)
    return ds


def read_header(path: Path, *, any_uids: bool = False) -> Dataset:
    """Read everything before the pixel data; values above 1 MiB are fetched from the file when first used.

    Raises Refused as open_dicom does, but does not notice a file that breaks off in its pixel data.
    ``any_uids`` takes a header whose UIDs are missing or wrong too: such an object can still be forwarded.
    """
    ds = _read(path, HEADER_BYTES, header_only=True)
    if not any_uids:
        check_uids(ds)
    return ds


def check_uids(ds: Dataset) -> None:
    """Raise Refused unless the UIDs that name an object and its place are there and are UIDs."""
    for keyword in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
        value = ds.get(keyword)
        if not value:
            code = "no-sop-instance-uid" if keyword == "SOPInstanceUID" else "missing-uid"
            raise Refused(code, f"the data set has no {keyword}", "Correct it in the device that sends it")
        if not is_uid(value):
            shown = ascii(str(value))[:80]
            raise Refused(
                "bad-uid",
                f"{keyword} {shown} is no UID (digits and dots, at most 64 characters)",
                "Correct it in the device that sends it",
            )


def encode(ds: Dataset) -> bytes:
    """``ds`` as a Part 10 file in Explicit VR Little Endian; the same data set gives the same bytes."""
    ds.file_meta = _file_meta(ds)
    ds.preamble = bytes(128)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def _file_meta(ds: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def _read(path: Path, max_bytes: int, *, header_only: bool) -> Dataset:
    with path.open("rb") as file:
        head = file.read(132)
        bare = head[128:] != b"DICM"
        # Files from before Part 10 start with the data set itself, group 0008 (or with group 0002 and no
        # preamble).
        if bare and head[:2] not in (b"\x08\x00", b"\x02\x00"):
            raise Refused("not-dicom", "the file does not begin as a DICOM file does", _NOT_DICOM)
        file.seek(0)
        with _reading, warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                ds = _parse(path, file, max_bytes, bare=bare, header_only=header_only)
                if not header_only:
                    _check_last_element(ds)
                _drop_unusable(ds.file_meta)
                _drop_unusable(ds)
            except Refused:
                raise
            except EOFError as error:
                raise _truncated(f"the file ends within a data element ({error})") from error
            # pydicom raises whatever hostile bytes provoke (struct.error, KeyError, RecursionError,
            # zlib.error …); all of it means the same: this file cannot be read.
            except Exception as error:
                detail = f"{error.__class__.__name__}: {error}"[:200]
                raise Refused("unreadable", f"the file does not parse ({detail})", _NOT_DICOM) from error
    for warning in noted:
        if "end of file" in str(warning.message).lower() or "End of input" in str(warning.message):
            raise _truncated(f"the file ends too early ({warning.message})"[:200])
    if not len(ds):
        raise Refused("not-dicom", "the file holds no data elements", _NOT_DICOM)
    return ds


def _drop_unusable(ds: Dataset) -> None:
    """Remove elements that nobody could use: a value that does not convert, or is not of the tag's kind.

    Text that is not plain ASCII stays undecoded, so that it can be carried over byte for byte.
    """
    for tag in list(ds.keys()):
        element: object = ds.get_item(tag, keep_deferred=True)
        known = dictionary_VR(tag) if dictionary_has_tag(tag) else None
        if isinstance(element, RawDataElement):
            vr = element.VR or known
            if known is not None and vr not in (None, "UN"):
                kinds = {_kind(v) for v in known.split(" or ")}
                if _kind(str(vr)) not in kinds:
                    del ds[tag]
                    continue
                if kinds == {"text"} and vr != known:  # a device's slip: the dictionary knows better
                    element = element._replace(VR=known)
                    ds[tag] = element
                    vr = known
            if element.value is None and element.length:  # left in the file
                continue
            if vr in TEXT and not is_plain(element.value):
                continue
        try:
            value = ds[tag]
        # pydicom raises ValueError, NotImplementedError, struct.error … for whatever is wrong with the bytes.
        except Exception as error:  # noqa: BLE001
            log.debug("dropped %s, which does not parse (%s)", tag, error.__class__.__name__)
            del ds[tag]
            continue
        if value.VR == "SQ":
            for item in value.value:
                _drop_unusable(item)


def _kind(vr: str) -> str:
    if vr == "SQ" or vr.startswith("O"):
        return vr[0]
    return "number" if vr in _NUMBERS else "text"


def _parse(path: Path, file: BinaryIO, max_bytes: int, *, bare: bool, header_only: bool) -> Dataset:
    meta = FileMetaDataset() if bare else read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return _parse_deflated(file, meta, max_bytes, header_only=header_only)
    ds = dcmread(
        path if header_only else file,
        force=bare,
        stop_before_pixels=header_only,
        defer_size=DEFERRED_BYTES if header_only else None,
    )
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, _ = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return ds


def _parse_deflated(file: BinaryIO, meta: FileMetaDataset, max_bytes: int, *, header_only: bool) -> Dataset:
    """A deflated data set (PS3.5 A.5: raw deflate, no zlib header), inflated only as far as the bound."""
    file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), max_bytes + 1)
    if not header_only:
        if len(data) > max_bytes:
            raise Refused(
                "file-too-large",
                f"the deflated data set is larger than the limit of {max_bytes} bytes",
                "Raise the limit in the configuration if such files are expected",
            )
        if not inflater.eof:
            raise _truncated("the deflated data set breaks off")
    pixels = 0x7FE00008
    ds = read_dataset(
        io.BytesIO(data),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=(lambda tag, vr, length: tag >= pixels) if header_only else None,
    )
    ds.file_meta = meta
    return ds


def _check_last_element(ds: Dataset) -> None:
    """A value of defined length that the file does not hold in full is cut without a word by pydicom."""
    last: object = ds.get_item(max(ds.keys()), keep_deferred=True)
    if isinstance(last, RawDataElement) and last.length != _UNDEFINED_LENGTH:
        there = len(last.value or b"")
        if there < last.length:
            raise _truncated(f"{last.tag} should have {last.length} bytes but the file ends after {there}")


def _truncated(reason: str) -> Refused:
    return Refused(
        "truncated", reason, "Send the object again; the transfer or the disk it came from cut it short"
    )
