"""QIDO-RS (PS3.18 10.6, 8.3.4): a query string, and what of the index it finds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from pacs_node.dicomweb.attributes import (
    COMPUTED,
    INSTANCE,
    LEVEL_TAGS,
    LEVELS,
    MATCHABLE,
    SERIES,
    STUDY,
    tag_of,
)
from pacs_node.dicomweb.errors import bad_request
from pacs_node.dicomweb.index import Instance

#: More results than this are asked for in pages (limit and offset).
MAX_RESULTS = 1000
#: PS3.18 8.3.4.2.
FUZZY_WARNING = (
    '299 pacs-node "The fuzzymatching parameter is not supported. Only literal matching has been performed."'
)
MORE_WARNING = (
    '299 pacs-node "There are more results than these: ask for the next ones with offset and limit"'
)

_MAX_VALUE, _MAX_KEYS = 4096, 64
_RANGED = frozenset({"DA", "TM", "DT"})
_NUMERIC = frozenset({"IS", "DS", "US", "UL", "SS", "SL", "FL", "FD"})

Attributes = dict[str, Any]


@dataclass
class Query:
    """One question. ``keys``: tag to the value that is wanted; ``include``: further tags of the answer."""

    level: str
    keys: dict[str, str] = field(default_factory=dict)
    include: set[str] = field(default_factory=set)
    include_all: bool = False
    limit: int = MAX_RESULTS
    offset: int = 0
    warnings: list[str] = field(default_factory=list)


def parse(level: str, parameters: Iterable[tuple[str, str]]) -> Query:
    """Raises RequestError (400) for what is not understood, rather than answering another question."""
    query = Query(level)
    for name, value in parameters:
        if len(value) > _MAX_VALUE:
            raise bad_request(f"a value is longer than {_MAX_VALUE} characters", "Ask with fewer values")
        match name:
            case "limit" | "offset":
                if not re.fullmatch(r"\d{1,9}", value):
                    raise bad_request(f"{name} is not a whole number", f"Give {name} as digits, such as 100")
                setattr(query, name, int(value))
            case "fuzzymatching":
                if value not in ("true", "false"):
                    raise bad_request("fuzzymatching is neither true nor false", "Leave it out")
                if value == "true":
                    query.warnings.append(FUZZY_WARNING)
            case "accept":
                pass  # it stands for the header
            case "includefield":
                for asked in value.split(","):
                    if asked == "all":
                        query.include_all = True
                    else:
                        query.include.add(_tag(asked))
            case _:
                _key(query, name, value)
    if len(query.keys) > _MAX_KEYS:
        raise bad_request(f"there are more than {_MAX_KEYS} matching keys", "Ask with fewer")
    query.limit = min(query.limit, MAX_RESULTS)
    return query


def _key(query: Query, name: str, value: str) -> None:
    tag = _tag(name)
    level = MATCHABLE.get(tag)
    if level is None or LEVELS.index(level) > LEVELS.index(query.level):
        known = [_keyword(t) for t, at in MATCHABLE.items() if LEVELS.index(at) <= LEVELS.index(query.level)]
        raise bad_request(
            f"{_keyword(tag)} cannot be matched in a search for {query.level} level",
            f"Match by any of {', '.join(sorted(known))}",
        )
    query.keys[tag] = value
    query.include.add(tag)


def _keyword(tag: str) -> str:
    return keyword_for_tag(int(tag, 16)) or tag


def _tag(name: str) -> str:
    """A keyword or 8 hexadecimal digits as the latter (of a path into a sequence, its first)."""
    first = name.split(".")[0]
    if re.fullmatch(r"[0-9A-Fa-f]{8}", first):
        return first.upper()
    tag = tag_for_keyword(first) if first.isalnum() else None
    if tag is None:
        near = difflib.get_close_matches(first[:64], [_keyword(t) for t in MATCHABLE], 1)
        remedy = (
            f"Did you mean {near[0]}?" if near else "Give a DICOM keyword or a tag of 8 hexadecimal digits"
        )
        raise bad_request("a parameter is no DICOM attribute", remedy)
    return f"{tag:08X}"


def answer(
    query: Query,
    held: list[Instance],
    root: str,
    read: Callable[[Instance], Attributes],
    series: str = "",
) -> list[Attributes]:
    """The matches among ``held`` (whole studies), each with its attributes; of one series, if it is given.

    ``read`` gives all of an instance's attributes, for those that are not indexed.
    """
    matches = [
        (group, attributes)
        for group, attributes in _groups(query.level, held, root)
        if (not series or group.series == series)
        and all(_matches(tag, value, attributes) for tag, value in query.keys.items())
    ]
    matches.sort(key=lambda match: _latest_first(match[1]), reverse=True)
    page = matches[query.offset : query.offset + query.limit]
    if query.offset + query.limit < len(matches) and query.limit == MAX_RESULTS:
        query.warnings.append(MORE_WARNING)
    return [_chosen(query, group, attributes, read) for group, attributes in page]


def _latest_first(attributes: Attributes) -> tuple[str, str]:
    # sorted() keeps the order of the index, by UIDs, among equal ones.
    date, time = (_texts(attributes.get(tag_of(keyword), {})) for keyword in ("StudyDate", "StudyTime"))
    return (date or [""])[0], (time or [""])[0]


def _groups(level: str, held: list[Instance], root: str) -> Iterable[tuple[Instance, Attributes]]:
    """The studies, series or instances among ``held`` (whole studies), by their first object."""
    studies: dict[str, dict[str, list[Instance]]] = {}
    for instance in held:
        studies.setdefault(instance.study, {}).setdefault(instance.series, []).append(instance)
    for study, series in studies.items():
        every = [instance for instances in series.values() for instance in instances]
        # A received object speaks for the study and the series, not what was derived of it.
        about_study = _at(STUDY, every[0]) | _study(every, len(series), f"{root}/studies/{study}")
        if level == STUDY:
            yield every[0], about_study
            continue
        for uid, instances in series.items():
            url = f"{root}/studies/{study}/series/{uid}"
            counted = {"RetrieveURL": url, "NumberOfSeriesRelatedInstances": len(instances)}
            about_series = about_study | _at(SERIES, instances[0]) | _made(counted)
            if level == SERIES:
                yield instances[0], about_series
                continue
            for instance in instances:
                own = {
                    "RetrieveURL": f"{url}/instances/{instance.instance}",
                    "InstanceAvailability": "ONLINE",
                }
                yield instance, about_series | _at(INSTANCE, instance) | _made(own)


def _at(level: str, instance: Instance) -> Attributes:
    return {tag: instance.attributes[tag] for tag in LEVEL_TAGS[level] if tag in instance.attributes}


def _study(instances: list[Instance], series: int, url: str) -> Attributes:
    modality = tag_of("Modality")
    modalities = {text for i in instances for text in _texts(i.attributes.get(modality, {}))}
    return _made(
        {
            "InstanceAvailability": "ONLINE",
            "ModalitiesInStudy": sorted(modalities),
            "SOPClassesInStudy": sorted({i.sop_class for i in instances}),
            "RetrieveURL": url,
            "NumberOfStudyRelatedSeries": series,
            "NumberOfStudyRelatedInstances": len(instances),
        }
    )


def _made(values: dict[str, Any]) -> Attributes:
    return {
        tag_of(keyword): {
            "vr": dictionary_VR(keyword),
            "Value": value if isinstance(value, list) else [value],
        }
        for keyword, value in values.items()
        if value != []
    }


def _chosen(
    query: Query, group: Instance, attributes: Attributes, read: Callable[[Instance], Attributes]
) -> Attributes:
    """The attributes of an answer: those of its level, those above it, and those asked for."""
    counted = {tag_of(keyword) for level in LEVELS for keyword in COMPUTED[level]}
    further = query.include - attributes.keys() - counted
    if query.include_all or further - {tag for tags in LEVEL_TAGS.values() for tag in tags}:
        whole = read(group)
        attributes = {
            **(whole if query.include_all else {t: whole[t] for t in further & whole.keys()}),
            **attributes,
        }
    return dict(sorted(attributes.items()))


# -- matching (PS3.4 C.2.2.2) --------------------------------------------------------------------------------


def _texts(element: Attributes) -> list[str]:
    """The values of an element as texts; of a name all its representations."""
    texts = []
    for value in element.get("Value", []):
        if isinstance(value, dict):
            texts += [str(part) for part in value.values()]
        elif value is not None:
            texts.append(str(value))
    return texts


def _matches(tag: str, wanted: str, attributes: Attributes) -> bool:
    if wanted in ("", "*", '""'):
        return True  # universal matching; an absent attribute matches too
    texts = _texts(attributes.get(tag, {}))
    vr = dictionary_VR(int(tag, 16))
    if vr in _RANGED:
        return any(_in_range(text, wanted) for text in texts)
    # A list of values is UIDs' by the standard; codes' (modalities), as viewers send them.
    parts = re.split(r"[\\,]", wanted) if vr in ("UI", "CS") else [wanted]
    if vr == "UI":
        return any(text in parts for text in texts)
    if vr in _NUMERIC:
        return any(_number(text) == _number(part) for text in texts for part in parts)
    return any(_like(text, part.strip(), vr == "PN") for text in texts for part in parts)


def _like(text: str, wanted: str, is_name: bool) -> bool:
    """Single value and wildcard matching; of names without regard to case and to trailing empty parts."""
    if is_name:
        text, wanted = text.rstrip("^").casefold(), wanted.rstrip("^").casefold()
    pattern = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in re.sub(r"\*+", "*", wanted))
    return re.fullmatch(pattern, text.strip(), re.DOTALL) is not None


def _in_range(text: str, wanted: str) -> bool:
    """``20260101``, ``20260101-20260131``, ``-20260131`` or ``20260101-``; a short one is its whole span."""
    text, wanted = text.replace(":", ""), wanted.replace(":", "").strip()
    first, dash, last = wanted.partition("-")
    if not dash:
        return text.startswith(first)
    return text[: len(first)] >= first and (not last or text[: len(last)] <= last)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
