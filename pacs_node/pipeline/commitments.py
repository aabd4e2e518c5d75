"""The jobs that tell requesters of storage commitment what became of their requests.

    commitment/<verdict>-<random>/<attempt>     report, unless that was done on the association of the request

A verdict that nobody could be told of stays, as a failed job, until someone retries or cancels it. Imports
nothing heavy: the receiver enqueues the first attempt.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pacs_node.config import Config
from pacs_node.config.destinations import DicomDestination as DicomSettings
from pacs_node.config.model import Caller
from pacs_node.engine.job import JSON, NewJob
from pacs_node.errors import DeliveryError
from pacs_node.pipeline.node import COMMITMENT, COMMITMENT_QUEUE, Node
from pacs_node.receive.commitment import Verdict

if TYPE_CHECKING:
    from pacs_node.engine.engine import Run

log = logging.getLogger(__name__)

#: Until then, the report may be taken on the association of the request.
_FIRST_SECONDS = 5.0


def first_report(verdict: Verdict) -> NewJob:
    """The job of a new verdict."""
    name = f"{verdict.id}-{secrets.token_hex(4)}"
    return _job(name, {"verdict": verdict.id, "name": name, "attempt": 1}, _FIRST_SECONDS)


def _job(name: str, payload: dict[str, JSON], delay: float) -> NewJob:
    job_id = f"{COMMITMENT}/{name}/{payload['attempt']}"
    return NewJob(COMMITMENT, job_id, payload, COMMITMENT_QUEUE, delay=delay)


class CommitmentReports:
    """The handler of COMMITMENT. ``current`` gives the configuration as it is when a job starts."""

    def __init__(self, node: Node, current: Callable[[], Config]) -> None:
        self._node, self._current = node, current

    def report(self, run: Run, payload: dict[str, Any]) -> Any:
        """Try once to report; if that fails and may succeed later, enqueue the next attempt."""
        told = run.step("report", self._report, run, payload["verdict"])
        if told["reported"]:
            return told
        retry, attempt = self._current().deliver.retry, int(payload["attempt"])
        if told["transient"] and attempt < retry.attempts:
            delay = retry.wait(attempt)
            run.enqueue(_job(payload["name"], payload | {"attempt": attempt + 1}, delay))
            return told | {"next_in_seconds": delay}
        raise DeliveryError(told["requester"], told["reason"], transient=False)

    def _report(self, run: Run, verdict_id: str) -> JSON:
        verdict = self._node.verdicts.get(verdict_id)
        if verdict is None:
            return {"reported": True, "on": "the association of the request"}
        config = self._current()
        try:
            self._send(verdict, config)
        except DeliveryError as error:
            log.warning("commitment not reported", extra={"job": run.job_id, "reason": error.reason})
            return {
                "reported": False,
                "requester": verdict.requester,
                "reason": error.reason,
                "transient": error.transient,
            }
        self._node.verdicts.forget(verdict)
        log.info("commitment reported", extra={"job": run.job_id})
        return {"reported": True, "on": "an association of its own"}

    def _send(self, verdict: Verdict, config: Config) -> None:
        from pacs_node.deliver.dimse import DicomDestination

        name = verdict.requester
        caller = _address(config, name)
        if caller is None:
            reason = "where it takes reports is not known. Add its host and port to receive.callers"
            raise DeliveryError(name, reason, transient=False)
        settings = DicomSettings(type="dicom", ae_title=name, host=caller[0], port=caller[1])
        DicomDestination(name, settings, config.node.ae_title).report_commitment(*verdict.report())


def _address(config: Config, ae_title: str) -> tuple[str, int] | None:
    known: list[Caller] = [caller for caller in config.receive.callers if caller.ae_title == ae_title]
    return next(((c.host, c.port) for c in known if c.host is not None and c.port is not None), None)
