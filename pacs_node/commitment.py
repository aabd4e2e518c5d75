"""What is known of storage commitments that were asked for (Push Model, PS3.4 annex J).

The request and its answer may pass through different processes, on different associations and days apart, so
both are kept in a folder: ``<id>.asked`` before the request is sent, ``<id>.answer`` when the
N-EVENT-REPORT has come, where ``<id>`` stands for the Transaction UID. A Transaction UID is made of 122
random bits, and only who was asked knows it; a report on any other is turned away and leaves no trace.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from pacs_node.files import atomic_write, make_folder

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Its one SOP Instance."""

_ASKED, _ANSWER = ".asked", ".answer"


@dataclass(frozen=True)
class Answer:
    """What was reported: the SOP Instance UIDs that are committed, and the others with their
    Failure Reason.
    """

    committed: frozenset[str]
    failed: dict[str, int]


class Ledger:
    """The folder. Any number of processes may use one at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, sop_instance_uids: Iterable[str], known_as: str = "") -> str:
        """Note durably that these are asked for; the new Transaction UID. Raises OSError.

        ``known_as``: what the transaction is called by whoever asks on our behalf, if it names its own.
        """
        transaction = f"2.25.{uuid.uuid4().int}"
        make_folder(self._folder)
        record = {"objects": sorted(sop_instance_uids), "known_as": known_as}
        atomic_write(self._path(transaction, _ASKED), json.dumps(record).encode())
        return transaction

    def report(self, information: Dataset) -> bool:
        """Keep the Event Information of an N-EVENT-REPORT durably; false if nobody has asked for it.

        Of what it lists, only what was asked for is kept. Raises OSError.
        """
        return self.keep(
            str(information.get("TransactionUID") or ""),
            committed=[
                str(item.get("ReferencedSOPInstanceUID"))
                for item in information.get("ReferencedSOPSequence") or []
            ],
            failed={
                str(item.get("ReferencedSOPInstanceUID")): int(item.get("FailureReason") or 0)
                for item in information.get("FailedSOPSequence") or []
            },
        )

    def keep(self, transaction: str, committed: Iterable[str], failed: Mapping[str, int]) -> bool:
        """As ``report``, of SOP Instance UIDs and, where they are not committed, their Failure Reason."""
        asked = self._asked(transaction)
        if asked is None:
            return False
        objects = set(asked["objects"])
        failed = {uid: reason for uid, reason in failed.items() if uid in objects}
        record = {"committed": sorted(objects & set(committed) - set(failed)), "failed": failed}
        atomic_write(self._path(transaction, _ANSWER), json.dumps(record).encode())
        return True

    def answer(self, transaction: str) -> Answer | None:
        """What was reported on a transaction, or None as long as nothing was."""
        try:
            record: dict[str, Any] = json.loads(self._path(transaction, _ANSWER).read_bytes())
        except FileNotFoundError:
            return None
        return Answer(frozenset(record["committed"]), dict(record["failed"]))

    def knows(self, transaction: str) -> bool:
        """Whether it was asked for and not forgotten since."""
        return self._asked(transaction) is not None

    def known_as(self, transaction: str) -> str:
        """What a transaction is called by whoever asked on our behalf; empty if it is not known."""
        return str((self._asked(transaction) or {}).get("known_as", ""))

    def forget(self, transaction: str) -> None:
        """Forget a transaction and what was reported on it."""
        for suffix in (_ASKED, _ANSWER):
            self._path(transaction, suffix).unlink(missing_ok=True)

    def purge(self, older_than: datetime) -> int:
        """Forget the transactions that were asked for before ``older_than`` (an aware time); how many."""
        forgotten = 0
        for asked in self._folder.glob(f"*{_ASKED}"):
            if asked.stat().st_mtime < older_than.timestamp():
                asked.unlink()
                asked.with_suffix(_ANSWER).unlink(missing_ok=True)
                forgotten += 1
        return forgotten

    def _asked(self, transaction: str) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._path(transaction, _ASKED).read_bytes())
        except FileNotFoundError:
            return None
        return record

    def _path(self, transaction: str, suffix: str) -> Path:
        # A received string never becomes part of a path.
        return self._folder / (hashlib.sha256(transaction.encode()).hexdigest()[:32] + suffix)


def action_information(transaction: str, references: Iterable[tuple[str, str]]) -> Dataset:
    """The Action Information of an N-ACTION for objects given as (SOP Class UID, SOP Instance UID) (PS3.4
    table J.3-1).
    """
    ds = Dataset()
    ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = [reference(*pair) for pair in references]
    return ds


def reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """An item of a Referenced SOP Sequence."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item
