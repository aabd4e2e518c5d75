"""One object while it arrives: a Part 10 file that grows with the network and is digested on the way."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info

from pacs_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.receive.identity import Identity

_BUFFER = 1 << 20


class TooLargeError(OSError):
    """The object is larger than the configuration allows."""


class Incoming:
    """A file being received. ``offset`` is where the data set begins, ``size`` its bytes so far, ``sha256``
    theirs.

    Lives alone in its folder, which ``discard`` removes. Constructor and ``write`` raise OSError.
    """

    def __init__(self, path: Path, identity: Identity, calling_ae: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.size = 0
        self._digest = hashlib.sha256()
        path.parent.mkdir(mode=0o700)
        try:
            self._file = path.open("xb", buffering=_BUFFER)
            self._file.write(b"\0" * 128 + b"DICM")
            self._file.write(_file_meta(identity, calling_ae))
        except BaseException:
            self.discard()
            raise
        self.offset = self._file.tell()

    @property
    def sha256(self) -> str:
        """The digest of the data set bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Append data set bytes. Raises TooLargeError past the limit, OSError if the disk is full or
        fails.
        """
        if self.size + len(data) > self.limit:
            raise TooLargeError(f"the object is larger than the {self.limit >> 20} MB that are accepted")
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def flush(self) -> None:
        """Let readers of ``path`` see everything written so far."""
        self._file.flush()

    def finish(self) -> None:
        """Make the bytes durable (their name is not yet); nothing more is written. Raises OSError."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Remove the file; harmless if it has been discarded or stored already."""
        if hasattr(self, "_file"):
            # Closing flushes; on a full disk that fails again, and the bytes are unwanted anyway.
            with suppress(OSError):
                self._file.close()
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _file_meta(identity: Identity, calling_ae: str) -> bytes:
    """File meta information (PS3.10 7.1) with the UIDs as received: a wrong one is kept, not judged here."""
    meta = FileMetaDataset()
    for tag, vr, value in (
        (0x00020000, "UL", 0),
        (0x00020001, "OB", b"\0\1"),
        (0x00020002, "UI", identity.sop_class_uid),
        (0x00020003, "UI", identity.sop_instance_uid),
        (0x00020010, "UI", identity.transfer_syntax_uid),
        (0x00020012, "UI", IMPLEMENTATION_CLASS_UID),
        (0x00020013, "SH", IMPLEMENTATION_VERSION_NAME),
        (0x00020016, "AE", calling_ae),
    ):
        meta[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=False)
    return buffer.getvalue()
