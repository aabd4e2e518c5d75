"""The archive of the demonstration: a Storage SCP in this process that writes what it gets to a folder."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.transport import ThreadedAssociationServer

AE_TITLE = "DEMO_ARCHIVE"
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


class Destination:
    """Listens on a free loopback port while it is entered; every object becomes one file of ``folder``.

    Files are numbered in the order of arrival and named by a hash of their UID, never by a received string.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arrivals: list[tuple[float, str, Path]] = []
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None

    def __enter__(self) -> Self:
        """Start listening. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ae = AE(AE_TITLE)
        ae.maximum_pdu_size = 0
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, AllTransferSyntaxes)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None  # noqa: S101  entered
        return int(self._server.server_address[1])

    def received(self) -> dict[str, Path]:
        """SOP Instance UID to file, of everything that has come so far."""
        with self._lock:
            return {uid: path for _, uid, path in self.arrivals}

    def _store(self, event: evt.Event) -> int | Dataset:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._lock:
            number = len(self.arrivals) + 1
            path = self.folder / f"{number:03d}-{hashlib.sha256(uid.encode()).hexdigest()[:16]}.dcm"
            try:
                path.write_bytes(event.encoded_dataset())
            except OSError as error:
                status = Dataset()
                status.Status, status.ErrorComment = OUT_OF_RESOURCES, str(error.strerror)[:64]
                return status
            self.arrivals.append((time.time(), uid, path))
        return SUCCESS
