"""The jobs that deliver: one for each attempt with one file and one destination.

    deliver/<file>/<destination>/<attempt>              send; a failed attempt enqueues the next one, later
    deliver/<file>/<destination>/<attempt>/report-<n>   look for the report on a storage commitment

Where the destination is asked for storage commitment, an attempt succeeds only with its report. Waiting for
that holds no slot of the destination's queue; what comes meanwhile is kept by whoever receives it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from pacs_node.config import Config
from pacs_node.config.destinations import CommittingDestination
from pacs_node.deliver import open_committing, open_destination
from pacs_node.deliver.failures import meaning
from pacs_node.engine.engine import Run
from pacs_node.engine.job import JSON, NewJob
from pacs_node.errors import DeliveryError, Unwanted
from pacs_node.pipeline.node import DELIVER, Node, deliver_queue

log = logging.getLogger(__name__)

#: The report is looked for after 1, 2, 4 … seconds, and then as often as this.
_LOOK_EVERY_SECONDS = 30.0


class Deliveries:
    """The handler of DELIVER. ``current`` gives the configuration as it is when a job starts."""

    def __init__(self, node: Node, current: Callable[[], Config]) -> None:
        self._node, self._current = node, current

    def enqueue(
        self, run: Run, file: str, name: str, priority: int, attempt: int = 1, delay: float = 0
    ) -> None:
        """Have one file of the spool (named without its suffix) delivered to the destination ``name``."""
        payload: dict[str, JSON] = {
            "key": file,
            "file": file,
            "destination": name,
            "priority": priority,
            "attempt": attempt,
        }
        job_id = f"{DELIVER}/{file}/{name}/{attempt}"
        run.enqueue(NewJob(DELIVER, job_id, payload, deliver_queue(name), priority, delay))

    def deliver(self, run: Run, payload: dict[str, Any]) -> Any:
        """Try once to deliver one file; if that fails and may succeed later, enqueue the next attempt."""
        file, name, attempt = payload["file"], payload["destination"], payload["attempt"]
        if "transaction" not in payload:
            sent = run.step("send", self._send, run, file, name)
            if sent.get("commitment"):
                sent = run.step("request commitment", self._request, run, file, name)
        else:
            sent = payload
        if "transaction" in sent:
            transaction, expires = sent["transaction"], sent["expires"]
            sent = run.step("commitment", self._report, run, name, transaction, expires)
            if "waiting" in sent:
                self._look_again(run, payload | {"transaction": transaction, "expires": expires})
                return sent | {"transaction": transaction}
            if "forgotten" in sent:
                self.enqueue(run, file, name, payload["priority"], attempt + 1)
                return sent
        retry = self._current().deliver.retry
        if sent["delivered"] or "unwanted" in sent:
            return sent
        if sent["transient"] and attempt < retry.attempts:
            delay = retry.wait(attempt)
            self.enqueue(run, file, name, payload["priority"], attempt + 1, delay)
            return sent | {"next_in_seconds": delay}
        # A dead letter: it stays as a failed job, with its file, until someone retries or cancels it. When it
        # is retried it is sent again, and not judged by the same report.
        if "transaction" in payload:
            run.step("forget", self._node.commitments.forget, payload["transaction"])
        raise DeliveryError(name, str(sent["reason"]), transient=False)

    def _send(self, run: Run, file: str, name: str) -> JSON:
        config = self._current()
        settings = config.destinations.get(name)
        try:
            if settings is None:
                reason = "this destination is no longer in the configuration"
                raise DeliveryError(name, reason, transient=False)
            destination = open_destination(name, settings, config.node.ae_title)
            destination.send([self._node.spool.root / f"{file}.dcm"])
        except Unwanted as unwanted:
            log.warning("not wanted any more", extra={"job": run.job_id, "reason": unwanted.reason})
            return {"delivered": False, "unwanted": True, "reason": unwanted.reason}
        except DeliveryError as error:
            return _failed(run, error)
        if isinstance(settings, CommittingDestination) and settings.commitment:
            log.info("sent, commitment wanted", extra={"job": run.job_id})
            return {"delivered": False, "commitment": True}
        log.info("delivered", extra={"job": run.job_id})
        return {"delivered": True}

    # -- storage commitment ----------------------------------------------------------------------------------

    def _request(self, run: Run, file: str, name: str) -> JSON:
        config = self._current()
        settings = config.destinations.get(name)
        if not isinstance(settings, CommittingDestination) or not settings.commitment:
            return {"delivered": True}  # reconfigured since it was sent
        destination = open_committing(name, settings, config.node.ae_title)
        path = self._node.spool.root / f"{file}.dcm"
        try:
            transaction = destination.request_commitment(path, self._node.commitments)
        except DeliveryError as error:
            return _failed(run, error)
        except OSError as error:  # a full disk: the transaction cannot be noted
            reason = f"storage commitment is not asked for: {error.strerror or error}"
            return _failed(run, DeliveryError(name, reason))
        expires = datetime.now(UTC) + timedelta(seconds=settings.commitment_timeout)
        return {"transaction": transaction, "expires": expires.isoformat()}

    def _report(self, run: Run, name: str, transaction: str, expires: str) -> JSON:
        ledger = self._node.commitments
        if not ledger.knows(transaction):
            return {"forgotten": True, "delivered": False}
        try:
            if ledger.answer(transaction) is None and not self._look(name, transaction):
                reason = "whoever was to report on the storage commitment has forgotten the request"
                raise DeliveryError(name, reason)
        except DeliveryError as error:
            return _failed(run, error)
        answer = ledger.answer(transaction)
        if answer is None:
            if datetime.now(UTC) < datetime.fromisoformat(expires):
                return {"waiting": "for the report on storage commitment"}
            return _failed(run, DeliveryError(name, "no report on the storage commitment came in time"))
        if answer.committed and not answer.failed:
            log.info("committed", extra={"job": run.job_id})
            return {"delivered": True, "committed": True}
        reasons = {uid: meaning(code) for uid, code in answer.failed.items()}
        told = "; ".join(f"{uid}: not committed, {words}" for uid, (words, _) in reasons.items())
        transient = not reasons or any(transient for _, transient in reasons.values())
        told = told or "the report on the storage commitment does not name the object"
        return _failed(run, DeliveryError(name, told, transient=transient))

    def _look(self, name: str, transaction: str) -> bool:
        """Fetch a report that does not come by itself; whether one may still come."""
        config = self._current()
        settings = config.destinations.get(name)
        if not isinstance(settings, CommittingDestination):
            return True  # reconfigured since it was asked: until the time for it is over
        destination = open_committing(name, settings, config.node.ae_title)
        return destination.look_for_report(transaction, self._node.commitments)

    def _look_again(self, run: Run, payload: dict[str, Any]) -> None:
        looks = int(payload.get("looks", 0)) + 1
        left = datetime.fromisoformat(payload["expires"]) - datetime.now(UTC)
        delay = max(0.1, min(2.0 ** min(looks - 1, 10), _LOOK_EVERY_SECONDS, left.total_seconds()))
        name, priority = payload["destination"], payload["priority"]
        job_id = f"{DELIVER}/{payload['file']}/{name}/{payload['attempt']}/report-{looks}"
        following = payload | {"looks": looks}
        run.enqueue(NewJob(DELIVER, job_id, following, deliver_queue(name), priority, delay))


def _failed(run: Run, error: DeliveryError) -> dict[str, JSON]:
    log.warning("not delivered", extra={"job": run.job_id, "reason": error.reason})
    return {"delivered": False, "transient": error.transient, "reason": error.reason}
