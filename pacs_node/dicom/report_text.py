"""A Structured Report as plain text, for a terminal or a page."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

# Concepts whose items are for machines: the outline for viewers, and what every line would repeat.
_HIDDEN = {"112039", "112040", "121049", "121005", "121012", "121112"}
_INDENT = "  "


def report_text(ds: Dataset) -> str:
    """The content tree of any SR, an item a line, indented by its depth; references as UIDs.

    Tracking identifiers, coordinates and what else only machines read are left out.
    """
    lines = [_meaning(ds.get("ConceptNameCodeSequence")) or "Structured Report"]
    flags = [
        str(ds.get(k) or "").lower() for k in ("CompletionFlag", "VerificationFlag", "ContentQualification")
    ]
    lines.append(f"({', '.join(flag for flag in flags if flag)})")
    for item in ds.get("ContentSequence") or []:
        lines.extend(_lines(item, 0))
    return "\n".join(lines) + "\n"


def _lines(item: Dataset, depth: int) -> Iterator[str]:
    name = item.get("ConceptNameCodeSequence")
    if item.get("ValueType") == "SCOORD" or (name and str(name[0].get("CodeValue")) in _HIDDEN):
        return
    label, value = _meaning(name), _value(item)
    yield _INDENT * depth + ": ".join(part for part in (label, value) if part)
    for child in item.get("ContentSequence") or []:
        yield from _lines(child, depth + 1)


def _value(item: Dataset) -> str:
    kind = item.get("ValueType")
    if kind == "TEXT":
        return str(item.get("TextValue") or "")
    if kind == "CODE":
        return _meaning(item.get("ConceptCodeSequence"))
    if kind == "NUM":
        return _number(item)
    if kind == "UIDREF":
        return str(item.get("UID") or "")
    if kind in ("IMAGE", "COMPOSITE"):
        references = item.get("ReferencedSOPSequence") or []
        return ", ".join(f"image {r.ReferencedSOPInstanceUID}" for r in references)
    return ""


def _number(item: Dataset) -> str:
    values = item.get("MeasuredValueSequence") or []
    if not values:
        return f"no value ({_meaning(item.get('NumericValueQualifierCodeSequence')) or 'no reason given'})"
    units = values[0].get("MeasurementUnitsCodeSequence")
    code = str(units[0].get("CodeValue")) if units else "1"
    value = values[0].get("FloatingPointValue") or values[0].get("NumericValue")
    shown = f"{float(value):.4g}" if value is not None else "no value"
    return shown if code == "1" else f"{shown} {code.strip('{}')}"


def _meaning(sequence: list[Dataset] | None) -> str:
    return str(sequence[0].get("CodeMeaning") or "") if sequence else ""
