"""What must be known of a file to send it, read from its header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")


class NotSendableError(ValueError):
    """The file is not a DICOM object; the text says why."""


@dataclass(frozen=True)
class FileToSend:
    """A Part 10 file and its UIDs (``study_instance_uid`` may be empty)."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size


def read_file(path: Path) -> FileToSend:
    """Read the UIDs of a Part 10 file. Raises NotSendableError; OSError if it cannot be read."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_UIDS))
        sop_class, sop_instance, study = (str(header.get(keyword) or "") for keyword in _UIDS)
        syntax = str(header.file_meta.get("TransferSyntaxUID") or "")
    except InvalidDicomError as error:
        raise NotSendableError("not a DICOM file (no DICM prefix)") from error
    except OSError:
        raise
    # The file may come from anywhere (pacs-node send), and pydicom raises whatever broken bytes provoke.
    except Exception as error:
        raise NotSendableError(f"the header does not parse: {error}") from error
    if not (sop_class and sop_instance and syntax):
        raise NotSendableError("no SOP Class UID, SOP Instance UID or Transfer Syntax UID")
    return FileToSend(path, sop_class, sop_instance, study, syntax)
