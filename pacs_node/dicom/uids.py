"""Deterministic UIDs: the same source, task and model make the same object, so a re-run or a resend is no
duplicate.

All are UUID-derived (PS3.5 B.2): ``2.25.`` and the UUID's value, here a name-based one (RFC 9562 version 5),
which needs no registered root. The name is a JSON list, so that no two lists of parts run together.
"""

from __future__ import annotations

import json
import re
import uuid

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/pacs-node/pacs-node/uids")
_SHAPE = re.compile(r"[0-9]+(\.[0-9]+)*")


def make(kind: str, *parts: str) -> str:
    """The UID that stands for ``parts`` in the role ``kind``."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, json.dumps([kind, *parts])).int}"


CODING_SCHEME = make("coding scheme")
"""Coding Scheme UID of the private scheme."""


def instance(source_sop_instance_uid: str, task: str, model_digest: str, revision: str = "") -> str:
    """SOP Instance UID of what ``task`` made of a source. ``revision`` names whatever else changes the
    content.
    """
    return make("instance", source_sop_instance_uid, task, model_digest, revision)


def series(source_series_instance_uid: str, task: str, model_digest: str) -> str:
    """Series Instance UID: the results of one task and model on one source series are one series."""
    return make("series", source_series_instance_uid, task, model_digest)


def device(*model_digests: str) -> str:
    """Device UID of the node with these models: another model is another device."""
    return make("device", *sorted(set(model_digests)))


def tracking(source_sop_instance_uid: str, task: str, model_digest: str, finding: str) -> str:
    """Tracking Unique Identifier of a finding that ``task`` evaluated on a source."""
    return make("tracking", source_sop_instance_uid, task, model_digest, finding)


def is_uid(value: object) -> bool:
    """Whether ``value`` can be a UID: digits in dot-separated components, at most 64 characters (PS3.5 9.1).

    Components with a leading zero are wrong by the standard, but old devices send them and they do no harm.
    """
    return isinstance(value, str) and len(value) <= 64 and _SHAPE.fullmatch(value) is not None
