"""A modality that stores and asks for storage commitment as a test wants it: the SCU of PS3.4 annex J."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from pacs_node.commitment import action_information

COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"


class Modality:
    """Stores, asks, and keeps the reports: those on its own association, and those that come to ``port``."""

    def __init__(self, node: int, ae_title: str = "MODALITY", answer: int = 0x0000) -> None:
        self.node, self.ae_title, self.answer = node, ae_title, answer
        self.reports: list[Dataset] = []
        self.came_to: list[str] = []
        self._arrived = threading.Condition()
        ae = AE(ae_title)
        # Whoever reports is the SCP although it opens the association.
        ae.add_supported_context(COMMITMENT, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._reported, ["own port"])]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def stop(self) -> None:
        self._server.shutdown()

    @property
    def caller(self) -> dict[str, Any]:
        """It as one of receive.callers."""
        return {"ae_title": self.ae_title, "host": "127.0.0.1", "port": self.port}

    def associate(self) -> Any:
        contexts = [build_context(COMMITMENT, ExplicitVRLittleEndian)]
        contexts += [
            build_context(name, ExplicitVRLittleEndian)
            for name in ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1")
        ]
        association = AE(self.ae_title).associate(
            "127.0.0.1",
            self.node,
            contexts=contexts,
            ae_title="PACS_NODE",
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._reported, ["same association"])],
        )
        assert association.is_established
        return association

    def store(self, *datasets: Dataset) -> None:
        association = self.associate()
        for dataset in datasets:
            assert association.send_c_store(dataset).Status == 0x0000
        association.release()

    def ask(
        self,
        references: Sequence[tuple[str, str]],
        transaction: str = "",
        *,
        hold: float = 0,
        action: int = 1,
        instance: str = INSTANCE,
    ) -> int:
        """The status of the N-ACTION; the association is then kept open for ``hold`` seconds, or until a
        report has come.
        """
        association = self.associate()
        try:
            information = action_information(transaction or generate_uid(), references)
            status, _ = association.send_n_action(information, action, COMMITMENT, instance)
            if hold:
                self.wait(len(self.reports) + 1, hold)
            return int(status.Status)
        finally:
            association.release()

    def wait(self, number: int, seconds: float = 120) -> list[Dataset]:
        """All reports, once so many have come."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.reports) >= number, seconds), "no report came"
        return self.reports

    def _reported(self, event: Any, how: str) -> tuple[int, None]:
        with self._arrived:
            self.reports.append(event.event_information)
            self.came_to.append(how)
            self._arrived.notify_all()
        return self.answer, None


def outcome(report: Dataset) -> tuple[set[str], dict[str, int]]:
    """What a report says is committed, and what is not, with its Failure Reason."""
    return (
        {str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence") or []},
        {
            str(item.ReferencedSOPInstanceUID): int(item.FailureReason)
            for item in report.get("FailedSOPSequence") or []
        },
    )
