"""What the node answers to requests for storage commitment (Push Model, PS3.4 annex J), kept until the
requester has been told.

A request is judged by what is durable in the spool. Each verdict is a file that the hash of requester and
Transaction UID names, so that no received string ever becomes part of a path; the same request made again
takes the place of the first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset

from pacs_node.commitment import reference
from pacs_node.files import atomic_write, fsync_folder, make_folder
from pacs_node.receive.spool import Spool

#: Failure Reasons (PS3.3 C.14.1.1).
NO_SUCH_INSTANCE, CLASS_INSTANCE_CONFLICT = 0x0112, 0x0119
#: Event Type IDs (PS3.4 table J.3-4).
_SUCCESSFUL, _FAILURES_EXIST = 1, 2

_UID = re.compile(r"[0-9.]{1,64}\Z")

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


@dataclass(frozen=True)
class Verdict:
    """What is to be reported on one request; ``failed`` has a Failure Reason beside each reference."""

    id: str
    transaction: str
    requester: str
    committed: list[Reference]
    failed: list[tuple[str, str, int]]

    def report(self) -> tuple[Dataset, int]:
        """Event Information and Event Type ID of the N-EVENT-REPORT (PS3.4 table J.3-4)."""
        information = Dataset()
        information.TransactionUID = self.transaction
        if self.committed:
            information.ReferencedSOPSequence = [reference(*pair) for pair in self.committed]
        refused = []
        for sop_class, sop_instance, reason in self.failed:
            item = reference(sop_class, sop_instance)
            item.FailureReason = reason
            refused.append(item)
        if refused:
            information.FailedSOPSequence = refused
        return information, _FAILURES_EXIST if refused else _SUCCESSFUL


class Verdicts:
    """The folder of verdicts that are still to be reported. Any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, verdict: Verdict) -> None:
        """Make a verdict durable. Raises OSError."""
        make_folder(self._folder, 0o700)
        atomic_write(self._path(verdict.id), json.dumps(asdict(verdict)).encode())

    def get(self, verdict_id: str) -> Verdict | None:
        """A verdict, or None once it has been reported. Raises ValueError for anything that is not an id."""
        try:
            record = json.loads(self._path(verdict_id).read_bytes())
        except FileNotFoundError:
            return None
        record["committed"] = [tuple(pair) for pair in record["committed"]]
        record["failed"] = [tuple(item) for item in record["failed"]]
        return Verdict(**record)

    def forget(self, verdict: Verdict) -> None:
        """The requester has been told; a later verdict on the same transaction stays."""
        if self.get(verdict.id) == verdict:
            self._path(verdict.id).unlink(missing_ok=True)

    def purge(self, older_than: datetime, keep: Collection[str] = ()) -> int:
        """Forget verdicts that were given before ``older_than`` (an aware time), except those whose ids are
        to be kept; how many.
        """
        old = [
            path
            for path in self._folder.glob("*.json")
            if path.stem not in keep and path.stat().st_mtime < older_than.timestamp()
        ]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _path(self, verdict_id: str) -> Path:
        if not re.fullmatch("[0-9a-f]{32}", verdict_id):
            raise ValueError(f"not the id of a verdict: {verdict_id!r}")
        return self._folder / f"{verdict_id}.json"


def parse(information: Dataset) -> tuple[str, list[Reference]]:
    """Transaction UID and references, each once, of an N-ACTION's Action Information (PS3.4 table J.3-2).

    Raises ValueError if something is missing or is no UID.
    """
    transaction = str(information.get("TransactionUID") or "")
    references = [
        (str(item.get("ReferencedSOPClassUID") or ""), str(item.get("ReferencedSOPInstanceUID") or ""))
        for item in information.get("ReferencedSOPSequence") or []
    ]
    if not references:
        raise ValueError("the request names no objects")
    if not all(map(_UID.match, [transaction, *(uid for pair in references for uid in pair)])):
        raise ValueError("a UID of the request is missing or malformed")
    return transaction, list(dict.fromkeys(references))


def judge(
    requester: str,
    transaction: str,
    references: Iterable[Reference],
    spool: Spool,
    ensure_job: Callable[[str], None],
) -> Verdict:
    """What the spool says of a request. What is committed to is durable, and has its job.

    Raises OSError, and what ``ensure_job`` (given the object's key) raises.
    """
    references = list(references)
    held = spool.find(sop_instance for _, sop_instance in references)
    committed: list[Reference] = []
    failed: list[tuple[str, str, int]] = []
    for sop_class, sop_instance in references:
        keys = held.get(sop_instance, [])
        if not keys:
            failed.append((sop_class, sop_instance, NO_SUCH_INSTANCE))
        elif sop_class not in {spool.metadata(key)["sop_class_uid"] for key in keys}:
            failed.append((sop_class, sop_instance, CLASS_INSTANCE_CONFLICT))
        else:
            for key in keys:
                # Who stored it may have died before it made the name durable and enqueued the job.
                fsync_folder(spool.folder(key).parent)
                ensure_job(key)
            committed.append((sop_class, sop_instance))
    name = hashlib.sha256(f"{requester}\n{transaction}".encode()).hexdigest()[:32]
    return Verdict(name, transaction, requester, committed, failed)
