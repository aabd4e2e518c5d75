"""STOW-RS (PS3.18 10.5): the parts of a request into the spool, with the durability of a C-STORE.

An instance is reported as stored only when it is durable in the spool and ``on_stored`` has returned. Bytes
go to the disk as they come: what a request takes in memory does not depend on its size.

Failure Reason (0008,1197), PS3.18 Table 10.5.3-2 and PS3.4 Table B.2-1:
    0xA700 disk full or failing, instance larger than receive.max_object_mb, or its job could not be queued
    0xA900 UIDs of the file meta information, of the data set and of the request's study differ
    0xC000 the part is no DICOM file, or its data set cannot be understood
    0x0122 SOP Class not supported          0xC122 transfer syntax not supported
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom.filereader import read_dataset

from pacs_node.config.model import Config
from pacs_node.receive.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from pacs_node.receive.identity import Identity, UnreadableError, read_identity
from pacs_node.receive.incoming import Incoming
from pacs_node.receive.spool import Spool, Stored

log = logging.getLogger(__name__)

OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0xA700, 0xA900, 0xC000
CLASS_NOT_SUPPORTED, SYNTAX_NOT_SUPPORTED = 0x0122, 0xC122

_PREFIX = 132
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
_META_START = _PREFIX + len(_GROUP_LENGTH) + 4
_MAX_META = 64 << 10
_MB = 1 << 20
#: Of so many instances of a request it is logged why they are not stored; of the others the answer says it.
_LOGGED = 20


class NotTakenError(Exception):
    """An instance that is not stored, and its Failure Reason."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


@dataclass(frozen=True)
class Outcome:
    """What became of one instance; UIDs as far as they were read, ``code`` its Failure Reason or 0."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    code: int = 0
    reason: str = ""


@dataclass
class _Part:
    """One instance as it arrives: first its file meta information, then its data set into the spool."""

    head: bytearray = field(default_factory=bytearray)
    claimed: Identity | None = None
    incoming: Incoming | None = None
    failure: NotTakenError | None = None


class Storing:
    """The instances of one request; takes them from ``multipart.Parser``, in one thread at a time.

    ``study`` is the study of the request's path, or empty.
    """

    def __init__(
        self, config: Config, spool: Spool, on_stored: Callable[[Stored], None], study: str = ""
    ) -> None:
        self._config, self._spool, self._on_stored, self._study = config, spool, on_stored, study
        self._part: _Part | None = None
        self.outcomes: list[Outcome] = []

    def begin(self, content_type: str) -> None:
        """A part begins. Without a type of its own it has that of the request."""
        self._part = _Part()
        if content_type not in ("application/dicom", ""):
            self._part.failure = NotTakenError(CANNOT_UNDERSTAND, "the part is not application/dicom")

    def data(self, data: bytes) -> None:
        """More bytes of the part; after a failure the rest of it is passed over."""
        part = self._part
        if part is None or part.failure is not None:
            return
        try:
            if part.incoming is not None:
                part.incoming.write(data)
            else:
                part.head += data
                self._open(part)
        except (NotTakenError, OSError) as error:
            self._give_up(part, error)

    def end(self) -> None:
        """The part is whole: store it."""
        part, self._part = self._part, None
        if part is None:
            return
        identity: Identity | None = None
        try:
            if part.failure is not None:
                raise part.failure
            if part.incoming is None or part.claimed is None:
                raise NotTakenError(CANNOT_UNDERSTAND, "it ends within its file meta information")
            identity = self._store(part.incoming, part.claimed)
        except (NotTakenError, OSError) as error:
            self._give_up(part, error)
        if part.failure is not None and len(self.outcomes) < _LOGGED:
            log.warning("STOW-RS instance not stored: 0x%04X %s", part.failure.code, part.failure.reason)
        self.outcomes.append(_outcome(identity or part.claimed, part.failure))

    def abandon(self) -> None:
        """The request broke off: remove what has come of an instance that is not whole."""
        part, self._part = self._part, None
        if part is not None and part.incoming is not None:
            part.incoming.discard()

    # -- one instance ----------------------------------------------------------------------------------------

    def _give_up(self, part: _Part, error: NotTakenError | OSError) -> None:
        if part.incoming is not None:
            part.incoming.discard()
        if isinstance(error, OSError):
            error = NotTakenError(OUT_OF_RESOURCES, error.strerror or str(error))
        part.failure = error
        part.head.clear()

    def _open(self, part: _Part) -> None:
        """Once the file meta information is there, open a file in the spool for what follows it."""
        head = part.head
        if len(head) < _META_START:
            return
        if head[128:_PREFIX] != b"DICM" or head[_PREFIX : _META_START - 4] != _GROUP_LENGTH:
            raise NotTakenError(CANNOT_UNDERSTAND, "the part is not a DICOM Part 10 file")
        length = int.from_bytes(head[_META_START - 4 : _META_START], "little")
        if length > _MAX_META:
            raise NotTakenError(CANNOT_UNDERSTAND, "its file meta information is too long")
        if len(head) < _META_START + length:
            return
        part.claimed = claimed = _claimed(bytes(head[_META_START : _META_START + length]))
        if claimed.sop_class_uid not in STORAGE_SOP_CLASSES:
            raise NotTakenError(CLASS_NOT_SUPPORTED, "the SOP Class is not supported")
        if claimed.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            raise NotTakenError(SYNTAX_NOT_SUPPORTED, "the transfer syntax is not supported")
        receive = self._config.receive
        free = self._spool.free_bytes()
        if free < receive.min_free_disk_mb * _MB:
            reason = f"{free // _MB} MB free of the {receive.min_free_disk_mb} MB to keep"
            raise OSError(errno.ENOSPC, reason)
        part.incoming = self._spool.incoming(claimed, "", receive.max_object_mb * _MB)
        rest = bytes(head[_META_START + length :])
        head.clear()
        part.incoming.write(rest)

    def _store(self, incoming: Incoming, claimed: Identity) -> Identity:
        try:
            incoming.flush()
            try:
                identity = read_identity(incoming.path, incoming.offset, claimed.transfer_syntax_uid)
            except UnreadableError as error:
                # Its text may quote the bytes.
                raise NotTakenError(CANNOT_UNDERSTAND, "the data set does not parse") from error
            if (identity.sop_class_uid, identity.sop_instance_uid) != (
                claimed.sop_class_uid,
                claimed.sop_instance_uid,
            ):
                raise NotTakenError(MISMATCH, "UIDs of file meta information and data set differ")
            if doubts := identity.doubts():
                # It could be stored but never be asked for: these UIDs are its address.
                raise NotTakenError(CANNOT_UNDERSTAND, doubts[0])
            if self._study and identity.study_instance_uid != self._study:
                raise NotTakenError(MISMATCH, "the instance is not of the study of the request")
            # Over HTTP nobody has an AE title; the node is called by its own.
            stored = self._spool.store(incoming, identity, "", self._config.node.ae_title)
        finally:
            incoming.discard()
        try:
            self._on_stored(stored)
        # Whatever it is, the instance has no job and the sender must keep it; sent again, it gets one.
        except Exception as error:
            log.exception("%s is stored but could not be registered", stored.key)
            reason = "stored, but its job could not be registered; send again"
            raise NotTakenError(OUT_OF_RESOURCES, reason) from error
        return identity


def _claimed(meta: bytes) -> Identity:
    """What the file meta information says."""
    try:
        header = read_dataset(io.BytesIO(meta), False, True)
        values = [str(header.get(tag).value) for tag in (0x00020002, 0x00020003, 0x00020010)]
    # pydicom raises whatever the bytes provoke; all of it means the same here.
    except Exception as error:
        raise NotTakenError(
            CANNOT_UNDERSTAND, "its file meta information does not parse, or lacks UIDs"
        ) from error
    sop_class, sop_instance, syntax = (value.rstrip("\0 ") for value in values)
    return Identity(sop_class, sop_instance, "", "", syntax)


def _outcome(identity: Identity | None, failure: NotTakenError | None) -> Outcome:
    code, reason = (failure.code, failure.reason) if failure else (0, "")
    if identity is None:
        return Outcome(code=code, reason=reason)
    return Outcome(
        identity.sop_class_uid,
        identity.sop_instance_uid,
        identity.study_instance_uid,
        identity.series_instance_uid,
        code,
        reason,
    )


def response(outcomes: list[Outcome], root: str) -> tuple[int, dict[str, Any]]:
    """HTTP status and body (DICOM JSON, PS3.18 Table 10.5.3-3); ``root`` is the address of the service."""
    stored = [outcome for outcome in outcomes if not outcome.code]
    named = [outcome for outcome in outcomes if outcome.code and outcome.sop_instance_uid]
    others = [outcome for outcome in outcomes if outcome.code and not outcome.sop_instance_uid]
    body: dict[str, Any] = {}
    if stored:
        studies = {outcome.study_instance_uid for outcome in stored}
        if len(studies) == 1:
            body["00081190"] = {"vr": "UR", "Value": [f"{root}/studies/{studies.pop()}"]}
        body["00081199"] = {"vr": "SQ", "Value": [_reference(o) | _retrieve(o, root) for o in stored]}
    if named:
        body["00081198"] = {"vr": "SQ", "Value": [_reference(o) | _reason(o) for o in named]}
    if others:
        body["0008119A"] = {"vr": "SQ", "Value": [_reason(outcome) for outcome in others]}
    if len(stored) == len(outcomes):
        return 200, body
    return (202 if stored else 409), body


def _reference(outcome: Outcome) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [outcome.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [_plain(outcome.sop_instance_uid)]},
    }


def _plain(uid: str) -> str:
    return ascii(uid)[1:-1][:64]  # a hostile one is not echoed as it is


def _retrieve(outcome: Outcome, root: str) -> dict[str, Any]:
    o = outcome
    url = f"{root}/studies/{o.study_instance_uid}/series/{o.series_instance_uid}"
    return {"00081190": {"vr": "UR", "Value": [f"{url}/instances/{o.sop_instance_uid}"]}}


def _reason(outcome: Outcome) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [outcome.code]}}
