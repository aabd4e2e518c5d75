"""What a client wants to be answered with (PS3.18 8.7): the Accept header, or the parameter in its place."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pacs_node.dicomweb.multipart import media_type

DICOM, JSON, OCTETS = "application/dicom", "application/dicom+json", "application/octet-stream"
EXPLICIT = "1.2.840.10008.1.2.1"

_MAX_RANGES = 64


@dataclass(frozen=True)
class Wanted:
    """One acceptable form. ``kind``: the media type (of the parts, if ``multipart``), maybe with ``*``."""

    kind: str
    multipart: bool
    syntax: str = ""
    quality: float = 1.0

    def takes(self, kind: str) -> bool:
        """Whether this media type will do."""
        main = kind.partition("/")[0]
        return self.kind in (kind, "*/*", f"{main}/*")


def parse(header: str) -> list[Wanted]:
    """The acceptable forms, the most wanted first; nothing said is anything."""
    found = []
    # Not inside quotes, though RFC 2387 wants type="…" quoted and many leave the quotes out.
    for text in re.findall(r'(?:[^,"]|"[^"]*")+', header)[:_MAX_RANGES]:
        kind, parameters = _range(text.strip())
        if not kind:
            continue
        multipart = kind == "multipart/related"
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            quality = 1.0
        if quality > 0:
            inner = parameters.get("type", "*/*").lower() if multipart else kind
            found.append(Wanted(inner, multipart, parameters.get("transfer-syntax", ""), quality))
    return sorted(found or [Wanted("*/*", False)], key=lambda wanted: -wanted.quality)


def _range(text: str) -> tuple[str, dict[str, str]]:
    kind, _, rest = text.partition(";")
    kind = kind.strip().lower()
    if "/" not in kind:
        return "", {}
    # The unquoted type=application/dicom of some clients is no token of RFC 2045.
    quoted = re.sub(r"=\s*([^\";\s]+)", r'="\1"', rest)
    return kind, media_type(f"x/x; {quoted}")[1]
