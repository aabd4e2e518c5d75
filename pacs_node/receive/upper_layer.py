"""pynetdicom's acceptor, made fit for large objects from senders that are not trusted.

As it comes, pynetdicom 3.0.4 gathers a whole data set in memory (or, chunked, in a process-wide temporary
folder and leaves it there when the sender vanishes), reads PDUs of any announced length in 4 KiB pieces,
waits without a limit for the rest of one, wakes two threads per association a thousand times a second (a
hundred idle ones keep a core busy), and listens with a backlog of 5. The classes here change that and nothing
else; the protocol stays its own.
"""

from __future__ import annotations

import io
import itertools
import logging
import queue
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_ACTION_RQ, N_EVENT_REPORT_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from pacs_node.receive.identity import Identity
from pacs_node.receive.incoming import Incoming

log = logging.getLogger(__name__)

#: An A-ASSOCIATE-RQ with the 128 presentation contexts that it can hold stays well under this (bytes).
MAX_ASSOCIATE_PDU = 1 << 20
#: A C-STORE-RQ command set has a few hundred bytes.
MAX_COMMAND_SET = 1 << 16
#: A request for the storage commitment of some ten thousand objects, or a report on it.
MAX_DATA_SET = 1 << 21
#: Requests that a sender may have put in line; we negotiate one outstanding operation (PS3.7 D.3.3.3).
MAX_WAITING_REQUESTS = 4

#: What a response without a status counts as: processing failure.
_NO_STATUS = 0x0110

#: How long a thread sleeps that nothing wakes; timeouts are seen this much late.
IDLE_SECONDS = 0.5

OpenIncoming = Callable[[Identity, str], Incoming]


class ArrivingDataSet(io.BytesIO):
    """Takes the place of pynetdicom's buffer for one message's data set and lets a C-STORE's bytes go to a
    file.

    ``incoming`` is that file, or None before the first byte and after a failure; ``failure`` is then what
    stopped it. After a failure the rest is read from the network and dropped, so that the sender gets an
    answer that says why.
    """

    def __init__(self, message: Any, association: Any, open_incoming: OpenIncoming) -> None:
        super().__init__()
        self.incoming: Incoming | None = None
        self.failure: OSError | None = None
        self._message, self._association, self._open = message, association, open_incoming

    def write(self, data: Any) -> int:
        if self.failure is None and isinstance(self._message, C_STORE_RQ):
            try:
                if self.incoming is None:
                    self.incoming = self._begin()
                self.incoming.write(data)
            except OSError as error:
                self.discard()
                self.failure = error
        if self.failure is None and isinstance(self._message, N_ACTION_RQ | N_EVENT_REPORT_RQ):
            if self.tell() + len(data) > MAX_DATA_SET:
                self.failure = OSError(f"it has more than {MAX_DATA_SET} bytes")
            else:
                super().write(data)
        return len(data)

    def discard(self) -> None:
        """Remove what has arrived."""
        if self.incoming is not None:
            self.incoming.discard()
            self.incoming = None

    def _begin(self) -> Incoming:
        command, context_id = self._message.command_set, self._message.context_id
        context = self._association._accepted_cx.get(context_id)
        if context is None:
            raise OSError(f"presentation context {context_id} was not accepted")
        identity = Identity(
            sop_class_uid=str(command.get("AffectedSOPClassUID") or ""),
            sop_instance_uid=str(command.get("AffectedSOPInstanceUID") or ""),
            study_instance_uid="",
            series_instance_uid="",
            transfer_syntax_uid=str(context.transfer_syntax[0]),
        )
        return self._open(identity, calling_ae(self._association))


class SpoolingProvider(DIMSEServiceProvider):  # type: ignore[misc]
    """pynetdicom's DIMSE provider with bounded messages whose data sets go to files."""

    def __init__(self, association: Any, open_incoming: OpenIncoming) -> None:
        super().__init__(association)
        self._open = open_incoming
        self._reports: list[tuple[N_EVENT_REPORT, int]] = []
        self._answered: dict[int, Callable[[int], None]] = {}
        self._message_ids = itertools.count(1)

    def receive_primitive(self, primitive: Any) -> None:
        message: Any = getattr(self, "message", None)
        if message is None:
            message = self.message = DIMSEMessage()
            message.data_set = ArrivingDataSet(message, self.assoc, self._open)
        if (
            message.encoded_command_set.tell() > MAX_COMMAND_SET
            or self.msg_queue.qsize() > MAX_WAITING_REQUESTS
        ):
            log.error("%s: oversized command set or too many requests in line: aborting", peer(self.assoc))
            self.dul.event_queue.put("Evt19")  # invalid PDU: the state machine aborts (PS3.8 9.2.3)
            return
        super().receive_primitive(primitive)

    def get_msg(self, block: bool = False) -> Any:
        """The next message, or (None, None) after IDLE_SECONDS or ``wake``: the reactor need not poll."""
        if block:
            return super().get_msg(block)
        try:
            context_id, message = self.msg_queue.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            self._send_reports()
            return None, None
        if isinstance(message, N_EVENT_REPORT):  # a response: requests do not come this way
            if answered := self._answered.pop(message.MessageIDBeingRespondedTo or 0, None):
                answered(_NO_STATUS if message.Status is None else int(message.Status))
            return None, None
        return context_id, message

    def report_when_idle(
        self, report: N_EVENT_REPORT, context_id: int, answered: Callable[[int], None]
    ) -> None:
        """Send an N-EVENT-REPORT once the other side has been silent for IDLE_SECONDS, so that it seems to
        wait for it; ``answered`` gets the status of its response. Call from a handler of this association.

        pynetdicom's own way would block the association and take its next message, whatever that is, for the
        response.
        """
        report.MessageID = next(self._message_ids)
        self._answered[report.MessageID] = answered
        self._reports.append((report, context_id))

    def _send_reports(self) -> None:
        while self._reports and self.assoc.is_established:
            self.send_msg(*self._reports.pop(0))

    def wake(self) -> None:
        """End the waiting of ``get_msg``, because the association is released or aborted."""
        self.msg_queue.put((None, None))

    def discard(self) -> None:
        """Remove the part of an object that has arrived when the association ends in the middle of it."""
        data_set = getattr(self.message, "data_set", None)
        if isinstance(data_set, ArrivingDataSet):
            data_set.discard()


class Connection(AssociationSocket):  # type: ignore[misc]
    """One connection, waited for instead of polled, and read in large pieces up to a bound."""

    @classmethod
    def adopt(cls, plain: Any, max_pdu: int) -> Connection:
        """Make a Connection of the socket that pynetdicom has just created."""
        plain.__class__ = cls
        connection: Connection = plain
        connection._limit = max(MAX_ASSOCIATE_PDU, 2 * max_pdu)
        connection._waker, connection._woken = socket.socketpair()
        connection._waker.setblocking(False)
        return connection

    def wake(self) -> None:
        """End the waiting of ``ready``, because there is something to send."""
        with suppress(OSError):  # full: it is awake already; closed: nobody waits
            self._waker.send(b"\0")

    @property
    def ready(self) -> bool:
        """Whether bytes have arrived; waits for them, for ``wake``, or for IDLE_SECONDS."""
        connection: socket.socket | None = self.socket
        if connection is None or not self._is_connected:
            return False
        poll = select.poll()
        try:
            poll.register(connection, select.POLLIN)
            poll.register(self._woken, select.POLLIN)
            # Events that wait already are worked off by the caller, one after each call.
            patience = 1000 * IDLE_SECONDS if self.event_queue.empty() else 0
            found = {descriptor for descriptor, _ in poll.poll(patience)}
            if self._woken.fileno() in found:
                self._woken.recv(4096)
            return connection.fileno() in found
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # the connection is closed (PS3.8 9.2.1)
            return False

    def recv(self, count: int) -> bytearray:
        """Read ``count`` bytes, fewer if the peer closes. Raises OSError for too many and on a timeout."""
        connection: socket.socket | None = self.socket
        if connection is None:
            raise OSError("the connection is closed")
        if count > self._limit:
            raise OSError(f"a PDU of {count} bytes is announced, many more than were negotiated")
        data = bytearray(count)
        view = memoryview(data)
        received = 0
        while received < count and (step := connection.recv_into(view[received:])):
            received += step
        view.release()
        del data[received:]
        return data

    def _shutdown_socket(self) -> None:
        super()._shutdown_socket()
        self._waker.close()
        self._woken.close()


class WakingQueue(queue.Queue[Any]):
    """A queue whose reader sleeps elsewhere and is woken by what is put in."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._wake()


class Handler(RequestHandler):  # type: ignore[misc]
    """Makes an association out of a connection."""

    def _create_association(self) -> Any:
        association: Association = super()._create_association()
        # A response is small and the next request waits for it: nothing is gained by holding it back.
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Without it, a sender that stops in the middle of a PDU holds its thread for ever.
        self.request.settimeout(self.ae.dimse_timeout)
        provider = SpoolingProvider(association, self.server.open_incoming)
        connection = Connection.adopt(association.dul.socket, self.ae.maximum_pdu_size)
        association.dimse = provider
        association.dul.to_provider_queue = WakingQueue(connection.wake)
        association.dul.to_user_queue = WakingQueue(provider.wake)
        return association


class Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Listens. ``max_connections`` bounds the threads: connections beyond it are closed without an answer."""

    request_queue_size = 128

    def __init__(self, *args: Any, open_incoming: OpenIncoming, max_connections: int, **kwargs: Any) -> None:
        self.open_incoming, self.max_connections = open_incoming, max_connections
        super().__init__(*args, request_handler=Handler, **kwargs)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self.active_associations) < self.max_connections


def calling_ae(association: Any) -> str:
    """The calling AE title of an association, without padding."""
    return str(association.requestor.primitive.calling_ae_title).strip()


def peer(association: Any) -> str:
    """``AE@host`` of the other side, safe to log (the title came from outside)."""
    primitive = association.requestor.primitive
    title = "?" if primitive is None else calling_ae(association)
    printable = "".join(c if c.isprintable() else "?" for c in title)
    return f"{printable}@{association.requestor.address}"
