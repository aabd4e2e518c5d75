"""A data set as DICOM JSON (PS3.18 F.2): long values and pixels are left to a BulkDataURI."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pacs_node.dicom.files import read_header

#: Bytes of a binary value that still stands in the JSON itself.
INLINE_BYTES = 1024
PIXEL_DATA = "7FE00010"
_CHARACTER_SET = "00080005"
_GROUP_LENGTH = 0x0000


def to_json(ds: Dataset, only: Collection[str] | None = None, bulk_uri: str = "") -> dict[str, Any]:
    """``ds`` as DICOM JSON, in Unicode whatever its character set is; an element that does not convert is
    left out.

    ``only``: the tags (8 hexadecimal digits) that are wanted. ``bulk_uri``: where long values can be had; if
    empty, they are left out.
    """
    result: dict[str, Any] = {}
    for tag in sorted(ds.keys()):
        name = f"{int(tag):08X}"
        if (only is not None and name not in only) or tag.element == _GROUP_LENGTH:
            continue
        try:
            value = _element(ds, Tag(tag), f"{bulk_uri}/{name}" if bulk_uri else "")
        # pydicom raises ValueError, TypeError, struct.error … for whatever is wrong with a value; the reader
        # gets what can be had.
        except Exception:  # noqa: BLE001, S112
            continue
        if value is not None:
            result[name] = value
    if _CHARACTER_SET in result:
        result[_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return result


def _element(ds: Dataset, tag: Any, uri: str) -> dict[str, Any] | None:
    element = ds[tag]
    if element.VR == "SQ":
        items = [to_json(item, None, f"{uri}/{n}" if uri else "") for n, item in enumerate(element.value)]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if isinstance(element.value, bytes) and len(element.value) > INLINE_BYTES:
        return {"vr": element.VR, "BulkDataURI": uri} if uri else None
    return dict(element.to_json_dict(None, INLINE_BYTES))


def instance_metadata(path: Path, address: str) -> dict[str, Any]:
    """The metadata of an instance; ``address`` is its own. Raises Refused, OSError."""
    header = read_header(path)
    result = to_json(header, bulk_uri=f"{address}/bulkdata")
    if header.get("Rows") and header.get("BitsAllocated"):
        vr = "OW" if header.BitsAllocated > 8 else "OB"
        result[PIXEL_DATA] = {"vr": vr, "BulkDataURI": f"{address}/bulkdata/{PIXEL_DATA}"}
    return result


def bulk_value(ds: Dataset, steps: list[str]) -> bytes | None:
    """The bytes of a value by its path (tag, or tag/item/tag …); None if there is no such binary value."""
    for tag, item in zip(steps[:-1:2], steps[1::2], strict=True):
        element = ds.get(Tag(int(tag, 16)))
        if element is None or element.VR != "SQ" or int(item) >= len(element.value):
            return None
        ds = element.value[int(item)]
    element = ds.get(Tag(int(steps[-1], 16)))
    return element.value if element is not None and isinstance(element.value, bytes) else None
