"""The values that rules compare: how a DICOM attribute's value, and the value in a rule, become comparable.

Every attribute is of one Kind by its value representation (PS3.5 section 6.2). Text is compared without its
padding; CS and PN without regard to case (a CS has only upper case, so case carries no meaning there). Ages
become years, dates days, times seconds, so that a range is a range of numbers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from datetime import date
from enum import Enum
from functools import cache

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_dict, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

MAX_VALUES = 100  # values of one attribute that are looked at
MAX_LENGTH = 1024  # characters of one value that are looked at (bounds the work of a pattern)
ASSOCIATION = ("calling_ae", "called_ae")


class Kind(Enum):
    """How values of an attribute are compared; the value says it in words."""

    TEXT = "text"
    CODE = "text, in any case"
    NUMBER = "a number"
    AGE = "an age in years"
    DATE = "a date such as 2026-01-31"
    TIME = "a time such as 08:30"


_KINDS = (
    dict.fromkeys(("AE", "LO", "LT", "SH", "ST", "UC", "UI", "UR", "UT"), Kind.TEXT)
    | dict.fromkeys(("CS", "PN"), Kind.CODE)
    | dict.fromkeys(("DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"), Kind.NUMBER)
    | {"AS": Kind.AGE, "DA": Kind.DATE, "DT": Kind.DATE, "TM": Kind.TIME}
)
# What pydicom raises for a value that is not of the form of its value representation
_UNREADABLE = (
    BytesLengthException,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
)
_DAYS_PER_AGE_UNIT = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_UID_OF_KEYWORD = {entry[4]: uid for uid, entry in UID_dictionary.items() if entry[4]}


@cache
def kind_of(key: str) -> Kind | None:
    """The Kind of a rule's key; None if it is no attribute, or one without comparable values (sequence,
    binary).
    """
    if key in ASSOCIATION:
        return Kind.TEXT
    tag = tag_for_keyword(key)
    if tag is None:
        return None
    for vr in dictionary_VR(tag).split(" or "):
        if vr in _KINDS:
            return _KINDS[vr]
    return None


@cache
def is_multi_valued(key: str) -> bool:
    """Whether the attribute may hold more than one value (its value multiplicity is not 1)."""
    tag = tag_for_keyword(key) if key not in ASSOCIATION else None
    return tag is not None and dictionary_VM(tag) != "1"


def unknown_key(key: str) -> tuple[str, str] | None:
    """What is wrong with a key of ``when`` and the remedy; None if it is one that rules can compare."""
    if kind_of(key) is not None:
        return None
    tag = tag_for_keyword(key)
    if tag is not None:
        vr = dictionary_VR(tag)
        what = "a sequence" if vr == "SQ" else f"binary ({vr})"
        return f"{key} is {what}, which rules cannot compare", "Match on an attribute with a plain value"
    if near := nearest(key, (*keyword_dict, *ASSOCIATION)):
        return "this is not a DICOM keyword", f"Did you mean {near}?"
    return "this is not a DICOM keyword", "Use a keyword of PS3.6, such as BodyPartExamined, or calling_ae"


def nearest(word: str, known: object) -> str | None:
    """The most similar of the known words, in any case; None if none is similar."""
    candidates = {str(k).lower().replace("_", ""): str(k) for k in known}  # type: ignore[attr-defined]
    folded = re.sub(r"[\s_'-]", "", word.lower())
    found = difflib.get_close_matches(folded, candidates, n=1, cutoff=0.6)
    return candidates[found[0]] if found else None


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d{1,3})([DWMY]?)", text)
    if not found:
        raise ValueError(f"{text!r} is not an age such as 045Y")
    return int(found[1]) * _DAYS_PER_AGE_UNIT[found[2] or "Y"] / 365.25


def _date(text: str) -> float:
    digits = re.sub(r"[-.]", "", text[:10]) if re.match(r"\d{4}[-.]", text) else text[:8]
    if not re.fullmatch(r"\d{8}", digits):
        raise ValueError(f"{text!r} is not a date such as 20260131")
    return float(date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).toordinal())


def _time(text: str) -> float:
    # HHMMSS.FFFFFF, cut off anywhere after the hours; colons as ACR-NEMA had them and as people write them
    found = re.fullmatch(r"(\d\d)(?::?(\d\d)(?::?(\d\d(?:\.\d{1,6})?))?)?", text)
    if not found:
        raise ValueError(f"{text!r} is not a time such as 0830")
    hours, minutes, seconds = int(found[1]), int(found[2] or 0), float(found[3] or 0)
    if hours > 23 or minutes > 59 or seconds > 60:
        raise ValueError(f"{text!r} is not a time of day")
    return hours * 3600 + minutes * 60 + seconds


def comparable(key: str, value: object) -> str | float:
    """A value in the form that is compared: str, or a number (years, day number, seconds).

    Raises ValueError if it is not of the key's Kind.
    """
    kind = kind_of(key)
    text = str(value).strip(" \0\t\r\n")[:MAX_LENGTH]
    match kind:
        case Kind.NUMBER:
            number = float(text)
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError(f"{text!r} is not a number")
            return number
        case Kind.AGE:
            return float(value) if isinstance(value, int | float) else _age(text)
        case Kind.DATE:
            return _date(text)
        case Kind.TIME:
            return _time(text)
        case Kind.CODE:
            return text.upper()
        case _:
            return _UID_OF_KEYWORD.get(text, text) if key.endswith("UID") else text


def texts(key: str, header: Dataset) -> list[str]:
    """The attribute's values as text without padding, empty ones left out; for patterns and to be shown."""
    return list(_texts(key, header))


def items(key: str, header: Dataset) -> list[Dataset]:
    """The items of a sequence; none if it is absent, or no sequence, or cannot be read."""
    try:
        value = header[key].value if key in header else None
    except _UNREADABLE:
        return []
    return list(value)[:MAX_VALUES] if isinstance(value, Sequence) else []


def _texts(key: str, header: Dataset) -> Iterator[str]:
    if key not in header:
        return
    try:
        value = header[key].value
    except _UNREADABLE:
        # Not even of the form of its value representation: what bytes there are, as text
        raw = header.get_item(key)
        content = getattr(raw, "value", None)
        value = content.decode("latin-1").split("\\") if isinstance(content, bytes) else None
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    for one in list(values)[:MAX_VALUES]:
        # A DS or IS keeps the text it was read from
        text = str(getattr(one, "original_string", "") or ("" if one is None else one))
        if text := text.strip(" \0\t\r\n")[:MAX_LENGTH]:
            yield text
