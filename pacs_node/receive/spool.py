"""The spool: every object that was received, exactly as it came, in folders that only hashes name.

    <root>/<study>/<object>/received.dcm    Part 10 file: file meta written here, data set bytes as they came
    <root>/<study>/<object>/received.json   who sent it, what it says it is, when, its digest and size
    <root>/<study>/<object>/results/        written by the pipeline
    <root>/<study>/reports/                 written by the pipeline
    <root>/incoming/<random>/               objects that are still arriving, on the same file system

``<study>`` and ``<object>`` are the first 32 hexadecimal digits of the SHA-256 of the Study and the SOP
Instance UID, so no received string ever becomes part of a path. An object that comes again under the same UID
with other bytes is kept beside the first as ``<object>-<first 12 digits of its digest>``; nothing is ever
overwritten.

An object appears in one step: its folder is filled and fsynced under ``incoming/`` and then renamed. The
kernel refuses to rename onto a folder that is not empty, which decides between two senders of the same object
without a lock. What is purged disappears in one step, too; a lock (``.lock``, shared by those who store)
keeps that from happening between a sender's looking and its renaming.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pacs_node.files import fsync_folder, make_folder
from pacs_node.receive.identity import Identity
from pacs_node.receive.incoming import Incoming

log = logging.getLogger(__name__)

RECEIVED = "received.dcm"
METADATA = "received.json"
RESULTS = "results"
REPORTS = "reports"
INCOMING = "incoming"

#: Images of patients: the folders are for the account that the node runs under.
PRIVATE = 0o700

_HASH_DIGITS = 32
_DIGEST_DIGITS = 12
_STUDY = re.compile(rf"[0-9a-f]{{{_HASH_DIGITS}}}\Z")
_OBJECT = re.compile(rf"[0-9a-f]{{{_HASH_DIGITS}}}(-[0-9a-f]{{{_DIGEST_DIGITS}}})?\Z")


@dataclass(frozen=True)
class Stored:
    """What became of an object. ``key`` is ``<study>/<object>``, safe as a path and as the name of a job.

    ``repeated``: this very content was already held and nothing was written. ``conflict``: another content is
    held under the same SOP Instance UID, and this one is kept beside it.
    """

    key: str
    path: Path
    repeated: bool
    conflict: bool


def uid_hash(uid: str) -> str:
    """The 32 hexadecimal digits that stand for a UID in paths and keys."""
    return hashlib.sha256(uid.encode()).hexdigest()[:_HASH_DIGITS]


class Spool:
    """The folder tree described above. Any number of processes may use one at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._area: Path | None = None
        self._area_lock = threading.Lock()

    # -- receiving -------------------------------------------------------------------------------------------

    def incoming(self, identity: Identity, calling_ae: str, limit: int) -> Incoming:
        """A file on the spool's file system that takes the bytes of one data set, at most ``limit`` of them.

        ``identity`` needs the SOP Class, SOP Instance and Transfer Syntax UID (they stand in the file meta).
        Raises OSError if the file cannot be made.
        """
        return Incoming(self._own_area() / secrets.token_hex(8) / RECEIVED, identity, calling_ae, limit)

    def store(self, incoming: Incoming, identity: Identity, calling_ae: str, called_ae: str) -> Stored:
        """Keep a complete object: on return it is durable, or it was held before. Raises OSError; nothing is
        left then.

        An object without a Study Instance UID gets a study of its own, so that unrelated images never meet in
        one.
        """
        incoming.finish()
        study = uid_hash(identity.study_instance_uid or f"no study: {identity.sop_instance_uid}")
        first = f"{study}/{uid_hash(identity.sop_instance_uid)}"
        beside = f"{first}-{incoming.sha256[:_DIGEST_DIGITS]}"
        with self._locked(fcntl.LOCK_SH):
            for key, conflict in ((first, False), (beside, True)):
                revision = incoming.sha256[:_DIGEST_DIGITS] if conflict else ""
                if self._place(incoming, key, identity, calling_ae, called_ae, revision):
                    if conflict:
                        log.warning(
                            "%s: other content under a SOP Instance UID that is held; kept as %s", first, key
                        )
                    return Stored(key, self.root / key / RECEIVED, repeated=False, conflict=conflict)
                if self._holds(key, incoming.sha256):
                    incoming.discard()
                    return Stored(key, self.root / key / RECEIVED, repeated=True, conflict=conflict)
        raise OSError(
            f"{self.root / beside} holds other content than its name says; restore or remove that folder"
        )

    def _place(
        self, incoming: Incoming, key: str, identity: Identity, calling_ae: str, called_ae: str, revision: str
    ) -> bool:
        """Move the object's folder to ``key``; False if there is one already."""
        target = self.root / key
        if target.exists():
            return False
        record = {
            **asdict(identity),
            "calling_ae": calling_ae,
            "called_ae": called_ae,
            "received_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "sha256": incoming.sha256,
            "size": incoming.size,
            "revision": revision,
        }
        # Nobody knows this folder's name yet, so a plain file does; its content must be durable.
        with incoming.path.with_name(METADATA).open("wb") as file:
            file.write(json.dumps(record, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(incoming.path.parent)
        make_folder(target.parent, PRIVATE)
        try:
            incoming.path.parent.rename(target)
        except OSError:
            if target.exists():
                return False
            raise
        fsync_folder(target.parent)
        return True

    def _holds(self, key: str, sha256: str) -> bool:
        try:
            same = bool(self.metadata(key)["sha256"] == sha256)
        except KeyError:
            return False
        if same:
            # The process that renamed it may have died before it made the name durable.
            fsync_folder(self.folder(key).parent)
        return same

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Hold the lock between those who store (shared) and those who purge, in all processes."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _own_area(self) -> Path:
        """This process's folder under ``incoming/``, locked for as long as the process lives."""
        with self._area_lock:
            while self._area is None or not self._area.is_dir():
                self._area = self._new_area()
            return self._area

    def _new_area(self) -> Path | None:
        """A new folder under ``incoming/`` and its lock, which goes with the process, however it ends: what a
        dead process left is then known as such. None if another process, in ``prepare``, was faster to the
        lock and took the folder for a dead one's.
        """
        area = self.root / INCOMING / secrets.token_hex(8)
        make_folder(area, PRIVATE)
        try:
            descriptor = os.open(area, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if area.is_dir():
                return area
        os.close(descriptor)
        return None

    def prepare(self) -> int:
        """Make the root folder and remove what processes that are gone left half received; how many did."""
        make_folder(self.root, PRIVATE)
        removed = 0
        incoming = self.root / INCOMING
        for area in incoming.iterdir() if incoming.is_dir() else ():
            with suppress(FileNotFoundError):
                descriptor = os.open(area, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(area)
                    removed += 1
                except BlockingIOError:
                    pass  # its process is alive
                finally:
                    os.close(descriptor)
        return removed

    def free_bytes(self) -> int:
        """Bytes that may still be written on the spool's file system. Raises OSError if it is not there."""
        return shutil.disk_usage(self.root).free

    # -- reading ---------------------------------------------------------------------------------------------

    def folder(self, key: str) -> Path:
        """The folder of an object. Raises ValueError for anything that is not a key."""
        study, _, name = key.partition("/")
        if not _STUDY.match(study) or not _OBJECT.match(name):
            raise ValueError(f"not a spool key: {key!r}")
        return self.root / study / name

    def received(self, key: str) -> Path:
        """The object as it came: ``received.dcm``."""
        return self.folder(key) / RECEIVED

    def metadata(self, key: str) -> dict[str, Any]:
        """``received.json`` of an object. Raises KeyError if the spool does not hold it."""
        try:
            record: dict[str, Any] = json.loads((self.folder(key) / METADATA).read_bytes())
        except FileNotFoundError:
            raise KeyError(key) from None
        return record

    def objects(self, study: str) -> list[str]:
        """The keys of a study (given as its hash), the first received first."""
        if not _STUDY.match(study):
            raise ValueError(f"not a study of the spool: {study!r}")
        found = []
        for folder in _folders(self.root / study, _OBJECT):
            key = f"{study}/{folder.name}"
            with suppress(KeyError):
                found.append((self.metadata(key)["received_at"], key))
        return [key for _, key in sorted(found)]

    def find(self, sop_instance_uids: Iterable[str]) -> dict[str, list[str]]:
        """The keys of the objects that are held under these SOP Instance UIDs, in whatever study."""
        wanted = {uid_hash(uid): uid for uid in sop_instance_uids}
        found: dict[str, list[str]] = {}
        for study in self.studies():
            for folder in _folders(self.root / study, _OBJECT):
                if (uid := wanted.get(folder.name[:_HASH_DIGITS])) and (folder / METADATA).is_file():
                    found.setdefault(uid, []).append(f"{study}/{folder.name}")
        return found

    def studies(self) -> list[str]:
        """The studies that the spool holds, as their hashes."""
        return sorted(folder.name for folder in _folders(self.root, _STUDY))

    # -- retention -------------------------------------------------------------------------------------------

    def purge(self, older_than: datetime, keep: Callable[[str], bool] = lambda key: False) -> list[str]:
        """Remove objects received before ``older_than`` (an aware time) for which ``keep(key)`` is false;
        their keys.

        An object goes with its results in one step; the study's reports go with its last object.
        """
        removed = []
        for study in self.studies():
            for key in self.objects(study):
                with suppress(KeyError):
                    if datetime.fromisoformat(self.metadata(key)["received_at"]) < older_than and not keep(
                        key
                    ):
                        self._remove(self.folder(key))
                        removed.append(key)
            if not self.objects(study):
                self._remove(self.root / study / REPORTS)
                # An object that arrives at this moment keeps the folder: rmdir takes only an empty one.
                with suppress(OSError), self._locked(fcntl.LOCK_EX):
                    (self.root / study).rmdir()
        return removed

    def _remove(self, folder: Path) -> None:
        # Out of sight in one step, so that no reader and no crash ever sees half an object.
        doomed = self._own_area() / f"purged-{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            with self._locked(fcntl.LOCK_EX):
                folder.rename(doomed)
                fsync_folder(folder.parent)
            shutil.rmtree(doomed)


def _folders(parent: Path, name: re.Pattern[str]) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        for folder in parent.iterdir():
            if name.match(folder.name) and folder.is_dir():
                yield folder
