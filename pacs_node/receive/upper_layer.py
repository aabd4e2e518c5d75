"""pynetdicom's acceptor, made fit for large objects from senders that are not trusted.

As it comes, pynetdicom 3.0.4 gathers a whole data set in memory (or, chunked, in a process-wide temporary
folder and leaves it there when the sender vanishes), reads PDUs of any announced length in 4 KiB pieces,
waits without a limit for the rest of one, and listens with a backlog of 5. The classes here change exactly
that; the protocol stays its own.
"""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from pacs_node.receive.identity import Identity
from pacs_node.receive.incoming import Incoming

log = logging.getLogger(__name__)

#: An A-ASSOCIATE-RQ with the 128 presentation contexts that it can hold stays well under this (bytes).
MAX_ASSOCIATE_PDU = 1 << 20
#: A C-STORE-RQ command set has a few hundred bytes.
MAX_COMMAND_SET = 1 << 16
#: Requests that a sender may have put in line; we negotiate one outstanding operation (PS3.7 D.3.3.3).
MAX_WAITING_REQUESTS = 4

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

    def discard(self) -> None:
        """Remove the part of an object that has arrived when the association ends in the middle of it."""
        data_set = getattr(self.message, "data_set", None)
        if isinstance(data_set, ArrivingDataSet):
            data_set.discard()


class Handler(RequestHandler):  # type: ignore[misc]
    """Makes an association out of a connection."""

    def _create_association(self) -> Any:
        association: Association = super()._create_association()
        # Without it, a sender that stops in the middle of a PDU holds its thread for ever.
        self.request.settimeout(self.ae.dimse_timeout)
        wrapped: AssociationSocket = association.dul.socket
        wrapped.recv = partial(_receive, wrapped, max(MAX_ASSOCIATE_PDU, 2 * self.ae.maximum_pdu_size))
        association.dimse = SpoolingProvider(association, self.server.open_incoming)
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


def _receive(wrapped: Any, limit: int, count: int) -> bytearray:
    """Read ``count`` bytes, fewer only if the peer closes. Raises OSError for more than ``limit``, or on a
    timeout.
    """
    connection: socket.socket | None = wrapped.socket
    if connection is None:
        raise OSError("the connection is closed")
    if count > limit:
        raise OSError(f"a PDU of {count} bytes is announced, more than the {limit} that were negotiated")
    data = bytearray(count)
    view = memoryview(data)
    received = 0
    while received < count:
        step = connection.recv_into(view[received:])
        if step == 0:
            break
        received += step
    view.release()
    del data[received:]
    return data
