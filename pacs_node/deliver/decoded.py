"""An object with native pixel data in Explicit VR Little Endian: the same object, same UIDs, same values."""

from __future__ import annotations

import pydicom
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit

from pacs_node import jpeg12
from pacs_node.deliver.objects import FileToSend, NotSendableError


def decoded(file: FileToSend) -> pydicom.Dataset:
    """The data set of a file, decoded in memory. Raises NotSendableError if it does not decode, OSError."""
    try:
        dataset = pydicom.dcmread(file.path)
        if file.transfer_syntax_uid == JPEGExtended12Bit and dataset.get("BitsAllocated") == 16:
            _decode_jpeg12(dataset, file)
        elif UID(file.transfer_syntax_uid).is_encapsulated:
            dataset.decompress(as_rgb=False, generate_instance_uid=False)
        elif file.transfer_syntax_uid != ImplicitVRLittleEndian:  # deflated
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    except OSError:
        raise
    # The decoders raise whatever a broken code stream provokes; none of it goes away by trying again.
    except Exception as error:
        reason = f"the destination takes it only uncompressed, and it does not decode: {error}"
        raise NotSendableError(reason) from error
    return dataset


def _decode_jpeg12(dataset: pydicom.Dataset, file: FileToSend) -> None:
    dataset.PixelData = jpeg12.decode(file.path)
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
