"""What the spool holds, findable: a SQLite file that is made of the spool and can be made again at any time.

Received objects, the results of finished tasks and the generations of the reports, a row for each. Receiver,
worker and purge change the spool at any moment, so every question first brings the index up to date: of a
study whose folders have not changed since they were last looked at, by their times of modification, nothing
is read again. Nobody but one process writes the index, and nothing is lost with it.

Objects without usable UIDs, and other content under a SOP Instance UID that is held (kept beside the first),
have no address in DICOMweb and stand in no answer.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacs_node.dicom.files import read_header
from pacs_node.dicomweb.attributes import INDEXED
from pacs_node.dicomweb.metadata import to_json
from pacs_node.errors import Refused
from pacs_node.receive.spool import RECEIVED, REPORTS, RESULTS, Spool, uid_hash

log = logging.getLogger(__name__)

#: Raised with every change of the table or of what is read from a header: an older file is made anew.
VERSION = 1
#: A folder's time may stand still for so long although the folder changes (PS: ticks of the file system).
_UNSURE_NS = 2_000_000_000
#: The whole spool is looked through at most this often; a single study whenever it is asked for.
_REST_SECONDS = 1.0

_TABLES = """
create table instances (path text primary key, folder text not null, stamp text not null, study text,
                        series text, instance text, sop_class text, syntax text, attributes text);
create index by_study on instances (study, series, instance);
create index by_folder on instances (folder);
create table folders (folder text primary key, stamp text not null);
"""


@dataclass(frozen=True)
class Instance:
    """One object that can be retrieved. ``attributes``: DICOM JSON of those that are indexed."""

    path: Path
    study: str
    series: str
    instance: str
    sop_class: str
    syntax: str
    attributes: dict[str, Any]


class Index:
    """Use from any number of threads of one process."""

    def __init__(self, path: Path, spool: Spool) -> None:
        """Raises OSError or sqlite3.Error if the file can neither be used nor made."""
        self._spool = spool
        self._lock = threading.RLock()
        self._seen = float("-inf")
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            log.warning("the DICOMweb index cannot be used and is made anew")
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = _open(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def find(self, study: str = "", series: str = "", instance: str = "") -> list[Instance]:
        """What the spool holds of these UIDs (an empty one is any), as it is now, in a stable order."""
        with self._lock:
            if study:
                self._refresh(uid_hash(study))
            else:
                self._refresh_all()
            wanted = {"study": study, "series": series, "instance": instance}
            given = {name: uid for name, uid in wanted.items() if uid}
            where = " and ".join(["instance is not null", *(f"{name} = :{name}" for name in given)])
            rows = self._db.execute(
                f"select path, study, series, instance, sop_class, syntax, attributes from instances "  # noqa: S608  names from above
                f"where {where} order by study, series, instance, path",
                given,
            ).fetchall()
        found: dict[tuple[str, str, str], Instance] = {}
        for path, *uids, attributes in rows:
            study_uid, series_uid, instance_uid, sop_class, syntax = uids
            held = Instance(
                self._spool.root / path,
                study_uid,
                series_uid,
                instance_uid,
                sop_class,
                syntax,
                json.loads(attributes),
            )
            found.setdefault((held.study, held.series, held.instance), held)
        return list(found.values())

    def refresh(self) -> None:
        """Bring it up to date with the whole spool."""
        with self._lock:
            self._refresh_all()

    def stale(self) -> None:
        """Something has been stored here: the next question looks through the whole spool."""
        self._seen = float("-inf")

    def _refresh_all(self) -> None:
        if time.monotonic() - self._seen < _REST_SECONDS:
            return
        self._seen = time.monotonic()  # first: what becomes stale meanwhile is looked at again
        there = self._spool.studies()
        known = {row[0] for row in self._db.execute("select folder from folders")}
        known |= {row[0] for row in self._db.execute("select distinct folder from instances")}
        for folder in known.union(there):
            self._refresh(folder)

    def _refresh(self, folder: str) -> None:
        """Bring a study's rows up to date."""
        row = self._db.execute("select stamp from folders where folder = ?", (folder,)).fetchone()
        if row is not None:
            times = json.loads(row[0])
            if times and all(_modified(self._spool.root / name) == times[name] for name in times):
                return
        # The times first: what changes while the files are read is seen again next time.
        times = {str(path.relative_to(self._spool.root)): _modified(path) for path in self._folders(folder)}
        known = dict(
            self._db.execute("select path, stamp from instances where folder = ?", (folder,)).fetchall()
        )
        there = dict(self._files(folder))
        with self._db:
            for path in known.keys() - there.keys():
                self._db.execute("delete from instances where path = ?", (path,))
            for path, stamp in there.items():
                if known.get(path) != stamp:
                    self._db.execute(
                        "insert or replace into instances values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (path, folder, stamp, *self._row(path)),
                    )
            if not times:
                self._db.execute("delete from folders where folder = ?", (folder,))
            elif time.time_ns() - max(times.values()) > _UNSURE_NS:
                self._db.execute("insert or replace into folders values (?, ?)", (folder, json.dumps(times)))

    def _folders(self, folder: str) -> Iterator[Path]:
        """The folders of a study in which names come and go."""
        study = self._spool.root / folder
        yield from filter(Path.is_dir, (study, study / REPORTS))
        for key in self._spool.objects(folder):
            yield from filter(Path.is_dir, (self._spool.folder(key), self._spool.folder(key) / RESULTS))

    def _files(self, folder: str) -> Iterator[tuple[str, str]]:
        """The DICOM files of a study with a mark that changes when they do, the first received first."""
        for key in self._spool.objects(folder):
            if "-" not in key:
                yield from self._file(f"{key}/{RECEIVED}")
            yield from self._whole(f"{key}/{RESULTS}", lambda record: record.get("status") == "done")
        yield from self._whole(f"{folder}/{REPORTS}", lambda record: "sop_instance_uid" in record)

    def _whole(self, folder: str, done: Any) -> Iterator[tuple[str, str]]:
        """The files of which a record beside them says that they are finished."""
        for path in sorted((self._spool.root / folder).glob("*.dcm")):
            with suppress(FileNotFoundError):
                if done(json.loads(path.with_suffix(".json").read_bytes())):
                    yield from self._file(f"{folder}/{path.name}")

    def _file(self, path: str) -> Iterator[tuple[str, str]]:
        with suppress(FileNotFoundError):
            status = (self._spool.root / path).stat()
            yield path, f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"

    def _row(self, path: str) -> Sequence[str | None]:
        try:
            header = read_header(self._spool.root / path)
        except (Refused, FileNotFoundError) as error:
            # Kept without UIDs, so that it is not read again and again; it has no address.
            code = error.code if isinstance(error, Refused) else "gone"
            log.warning("not in the DICOMweb index", extra={"file": path, "why": code})
            return None, None, None, None, None, None
        return (
            str(header.StudyInstanceUID),
            str(header.SeriesInstanceUID),
            str(header.SOPInstanceUID),
            str(header.SOPClassUID),
            str(header.file_meta.TransferSyntaxUID),
            json.dumps(to_json(header, only=INDEXED)),
        )


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return -1


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = off")  # a torn file is made anew
        version = database.execute("pragma user_version").fetchone()[0]
        if version != VERSION:
            if version or database.execute("select count(*) from sqlite_master").fetchone()[0]:
                raise sqlite3.DatabaseError("another version")
            database.executescript(f"begin; {_TABLES} pragma user_version = {VERSION}; commit;")
        database.execute("select count(*) from instances")
    except BaseException:
        database.close()
        raise
    path.chmod(0o600)
    return database
