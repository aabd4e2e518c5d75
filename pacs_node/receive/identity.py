"""What a data set that has just arrived says it is, read from its first elements and nothing more.

The bytes come from outside: nothing is read past Series Instance UID (0020,000E), a deflated data set is
inflated only as far as a fixed bound, and values are taken as bytes, without validation or conversion.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E

#: How much of a deflated data set is inflated to find the UIDs (they lie within the first few kilobytes).
MAX_INFLATED = 4 << 20

_UID_CHARACTERS = re.compile(r"[0-9.]{1,64}\Z")


class UnreadableError(ValueError):
    """The bytes are not a data set in the transfer syntax that was negotiated for them."""


@dataclass(frozen=True)
class Identity:
    """The UIDs of an object as received, without padding; an absent one is the empty string."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str

    def doubts(self) -> list[str]:
        """What is wrong with the UIDs, in words that fit an Error Comment (64 characters, PS3.7 C)."""
        found = []
        for name, uid in asdict(self).items():
            if not uid:
                found.append(f"{name} is missing")
            elif not _UID_CHARACTERS.match(uid):
                found.append(f"{name} is not a valid UID")
        return found


def read_identity(path: Path, offset: int, transfer_syntax_uid: str) -> Identity:
    """Read the identity of the data set that starts at byte ``offset`` of the file.

    Raises UnreadableError if the bytes do not parse or hold neither a SOP Class nor a SOP Instance UID.
    """
    syntax = UID(transfer_syntax_uid)
    with path.open("rb") as file:
        file.seek(offset)
        source: io.BufferedIOBase = file
        try:
            if syntax == DeflatedExplicitVRLittleEndian:
                # Raw deflate, no zlib header: PS3.5 A.5.
                source = io.BytesIO(
                    zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(MAX_INFLATED), MAX_INFLATED)
                )
            header = read_dataset(
                source,  # type: ignore[arg-type]  # a buffered binary stream is what it reads
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                stop_when=lambda tag, vr, length: tag > SERIES_INSTANCE_UID,
                specific_tags=[SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID],
            )
        # pydicom raises whatever the bytes provoke (struct.error, KeyError, RecursionError, zlib.error …);
        # all of it means the same here, and the sender is told.
        except Exception as error:
            raise UnreadableError(
                f"the data set does not parse: {error.__class__.__name__}: {error}"
            ) from error
    identity = Identity(
        sop_class_uid=_text(header, SOP_CLASS_UID),
        sop_instance_uid=_text(header, SOP_INSTANCE_UID),
        study_instance_uid=_text(header, STUDY_INSTANCE_UID),
        series_instance_uid=_text(header, SERIES_INSTANCE_UID),
        transfer_syntax_uid=str(syntax),
    )
    if not identity.sop_class_uid and not identity.sop_instance_uid:
        raise UnreadableError(
            "no SOP Class UID and no SOP Instance UID where the negotiated encoding has them"
        )
    return identity


def _text(header: Dataset, tag: int) -> str:
    if tag not in header:
        return ""
    value = header.get_item(tag).value
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value or "")
    return text.rstrip("\0 ").lstrip(" ")
