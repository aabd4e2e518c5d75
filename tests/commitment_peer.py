"""A PACS that stores and reports on storage commitment as a test wants it: the SCP side of PS3.4 annex J."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context

COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"

#: What the peer does about a request: None is never to report; otherwise Failure Reasons by SOP Instance UID.
Judge = Callable[[list[str]], dict[str, int] | None]


class Peer:
    """Listens on a free port; ``report_to`` is the port of ``reported_ae``, or None to report on the same
    association.
    """

    def __init__(
        self,
        judge: Judge,
        report_to: int | None = None,
        *,
        offers_commitment: bool = True,
        reported_ae: str = "PACS_NODE",
    ) -> None:
        self.judge, self.report_to, self.reported_ae = judge, report_to, reported_ae
        self.stored: list[str] = []
        self.requests: list[Dataset] = []
        self.statuses: list[int | None] = []
        self._running = True
        self._threads: list[threading.Thread] = []
        ae = AE("PEER")
        ae.add_supported_context("1.2.840.10008.1.1")
        for sop_class in ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"):
            ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
        if offers_commitment:
            ae.add_supported_context(COMMITMENT, ExplicitVRLittleEndian)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._asked)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def destination(self, **changes: Any) -> dict[str, Any]:
        """It as a destination in the configuration."""
        plain = {"type": "dicom", "ae_title": "PEER", "host": "127.0.0.1", "port": self.port}
        return plain | {"commitment": True, "timeout": 20.0} | changes

    def stop(self) -> None:
        for thread in self._threads:
            thread.join(30)
        if self._running:
            self._running = False
            self._server.shutdown()

    def _store(self, event: Any) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _asked(self, event: Any) -> tuple[int, None]:
        request = event.action_information
        self.requests.append(request)
        failed = self.judge([str(item.ReferencedSOPInstanceUID) for item in request.ReferencedSOPSequence])
        if failed is not None:
            thread = threading.Thread(target=self._report, args=(event.assoc, request, failed))
            self._threads.append(thread)
            thread.start()
        return 0x0000, None

    def _report(self, association: Any, request: Dataset, failed: dict[str, int]) -> None:
        information, kind = report(request, failed)
        if self.report_to is None:
            time.sleep(0.3)  # after the response to the N-ACTION
            status, _ = association.send_n_event_report(information, kind, COMMITMENT, INSTANCE)
            self.statuses.append(status.get("Status"))
        else:
            self.statuses.append(send_report(self.report_to, information, kind, self.reported_ae))


def report(request: Dataset, failed: dict[str, int]) -> tuple[Dataset, int]:
    """Event Information and Event Type ID that answer a request."""
    information = Dataset()
    information.TransactionUID = request.TransactionUID
    committed, refused = [], []
    for item in request.ReferencedSOPSequence:
        answered = Dataset()
        answered.ReferencedSOPClassUID = item.ReferencedSOPClassUID
        answered.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
        uid = str(item.ReferencedSOPInstanceUID)
        if uid in failed:
            answered.FailureReason = failed[uid]
        (refused if uid in failed else committed).append(answered)
    if committed:
        information.ReferencedSOPSequence = committed
    if refused:
        information.FailedSOPSequence = refused
    return information, 2 if refused else 1


def send_report(port: int, information: Dataset, kind: int, called_ae: str = "PACS_NODE") -> int | None:
    """Report on an association of its own, with the roles turned round; the status."""
    ae = AE("PEER")
    association = ae.associate(
        "127.0.0.1",
        port,
        contexts=[build_context(COMMITMENT, ExplicitVRLittleEndian)],
        ext_neg=[build_role(COMMITMENT, scp_role=True)],
        ae_title=called_ae,
    )
    assert association.is_established
    assert association.accepted_contexts[0].as_scp
    try:
        status, _ = association.send_n_event_report(information, kind, COMMITMENT, INSTANCE)
        code = status.get("Status")
        return None if code is None else int(code)
    finally:
        association.release()
