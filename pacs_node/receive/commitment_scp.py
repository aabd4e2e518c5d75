"""The messages of storage commitment (Push Model, PS3.4 annex J) that reach the receiver.

As SCP: a request (N-ACTION) is answered 0x0000 when the verdict on it and the job that reports it are
durable. The report (N-EVENT-REPORT) then goes out on the same association, if its requester leaves that open
and lets us be the SCP there; if not, or if no answer comes, the job reports on an association of its own.

    0x0110 the request or its verdict cannot be kept         0x0115 it names no objects, or by no UIDs
    0x0112 not the well-known instance                       0x0123 not the action of requesting commitment
    0x0124 receive.commitment is false                       0x0213 more objects than MAX_DATA_SET bytes hold

As SCU: the reports on what the node has asked of destinations, which open an association for it. 0x0000 when
the report is durable, 0x0115 for one that was not asked for.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from pacs_node.commitment import STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, Ledger
from pacs_node.receive.commitment import Verdict, Verdicts, judge, parse
from pacs_node.receive.spool import Spool
from pacs_node.receive.upper_layer import ArrivingDataSet, calling_ae, peer

log = logging.getLogger(__name__)

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
NOT_AUTHORISED = 0x0124
RESOURCE_LIMITATION = 0x0213

_REQUEST_COMMITMENT = 1
"""The one Action Type ID (PS3.4 table J.3-1)."""

Answer = tuple[int, None]


@dataclass(frozen=True)
class Commitments:
    """What the receiver needs to commit and to be committed to."""

    ledger: Ledger
    """What the node has asked of destinations."""
    verdicts: Verdicts
    """What it has answered to its own requesters."""
    ensure_job: Callable[[str], None]
    """Makes sure that an object (given its key) has its job."""
    on_verdict: Callable[[Verdict], None]
    """Registers durably that a verdict is to be reported."""


class CommitmentScp:
    """The handlers. ``offered`` says whether the node commits to anything at the moment."""

    def __init__(self, commitments: Commitments, spool: Spool, offered: Callable[[], bool]) -> None:
        self._commitments, self._spool, self._offered = commitments, spool, offered

    def on_request(self, event: Any) -> Answer:
        """N-ACTION."""
        request, who = event.request, peer(event.assoc)
        if not self._offered():
            log.warning("%s asks for storage commitment; see receive.commitment", who)
            return NOT_AUTHORISED, None
        if str(request.RequestedSOPInstanceUID) != WELL_KNOWN_INSTANCE:
            return NO_SUCH_INSTANCE, None
        if request.ActionTypeID != _REQUEST_COMMITMENT:
            return NO_SUCH_ACTION, None
        data_set = request.ActionInformation
        if isinstance(data_set, ArrivingDataSet) and data_set.failure is not None:
            log.warning("%s: a request for storage commitment is too large: %s", who, data_set.failure)
            return RESOURCE_LIMITATION, None
        try:
            transaction, references = parse(event.action_information)
        # pydicom raises whatever bytes that do not parse provoke.
        except Exception:  # noqa: BLE001
            log.warning("%s: a request for storage commitment cannot be understood", who)
            return INVALID_ARGUMENT, None
        commitments = self._commitments
        try:
            verdict = judge(
                calling_ae(event.assoc), transaction, references, self._spool, commitments.ensure_job
            )
            commitments.verdicts.keep(verdict)
            commitments.on_verdict(verdict)
        # Whatever it is, nothing would be reported: the requester must keep its objects and ask again.
        except Exception:
            log.exception("a request for storage commitment is not taken; the requester is to ask again")
            return PROCESSING_FAILURE, None
        log.info("%s: %d object(s) committed, %d not", who, len(verdict.committed), len(verdict.failed))
        self._report_here(event, verdict)
        return SUCCESS, None

    def _report_here(self, event: Any, verdict: Verdict) -> None:
        """Have the report sent on the association of the request, where that may be."""
        context = event.assoc._accepted_cx[event.context.context_id]
        if not context.as_scp:
            return
        information, kind = verdict.report()
        syntax = UID(event.context.transfer_syntax)
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        if encoded is None:
            log.error("the report on %s cannot be encoded", verdict.id)
            return
        report = N_EVENT_REPORT()
        report.AffectedSOPClassUID = UID(STORAGE_COMMITMENT)
        report.AffectedSOPInstanceUID = UID(WELL_KNOWN_INSTANCE)
        report.EventTypeID = kind
        report.EventInformation = io.BytesIO(encoded)
        answered = partial(self._on_answer, peer(event.assoc), verdict)
        event.assoc.dimse.report_when_idle(report, event.context.context_id, answered)

    def _on_answer(self, who: str, verdict: Verdict, status: int) -> None:
        if status == SUCCESS:
            self._commitments.verdicts.forget(verdict)
        else:
            log.warning("%s answers 0x%04X to a report on storage commitment", who, status)

    def on_report(self, event: Any) -> Answer:
        """N-EVENT-REPORT."""
        data_set = event.request.EventInformation
        try:
            if isinstance(data_set, ArrivingDataSet) and data_set.failure is not None:
                raise data_set.failure
            asked = self._commitments.ledger.report(event.event_information)
        except OSError as error:
            log.error("a report on storage commitment is not kept: %s", error.strerror or error)
            return PROCESSING_FAILURE, None
        # pydicom raises whatever bytes that do not parse provoke.
        except Exception:  # noqa: BLE001
            log.warning("%s: a report on storage commitment cannot be understood", peer(event.assoc))
            return PROCESSING_FAILURE, None
        if not asked:
            log.warning("%s reports on a storage commitment that was not asked for", peer(event.assoc))
        return (SUCCESS if asked else INVALID_ARGUMENT), None
