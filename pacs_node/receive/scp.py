"""The Storage SCP (PS3.4 annex B) and Verification SCP (annex A).

A C-STORE is answered 0x0000 only when the object is durable in the spool and ``on_stored`` has returned, so
whatever the sender was told to forget will be worked on. The receiver knows nothing of rules, models or jobs.

Statuses (PS3.4 table B.2-1 and PS3.7 annex C), each with an Error Comment:
    0x0000 stored, or held already        0xB007 stored, but a UID is missing or malformed
    0xA700 disk full or failing, object larger than receive.max_object_mb, or its job could not be registered
    0xA900 SOP Class or Instance UID of the request and of the data set differ
    0x0122 SOP Class of the request is not that of its presentation context
    0xC000 the data set cannot be understood

Storage Commitment, in both directions, is in commitment_scp.
"""

from __future__ import annotations

import errno
import logging
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt

from pacs_node.commitment import STORAGE_COMMITMENT
from pacs_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.receive.admission import Rejection, admit, congested
from pacs_node.receive.commitment_scp import Commitments, CommitmentScp
from pacs_node.receive.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, VERIFICATION
from pacs_node.receive.identity import Identity, UnreadableError, read_identity
from pacs_node.receive.incoming import Incoming
from pacs_node.receive.spool import Spool, Stored
from pacs_node.receive.upper_layer import ArrivingDataSet, Server, calling_ae, peer

if TYPE_CHECKING:
    from pacs_node.config.model import Config

log = logging.getLogger(__name__)

# Its log of every PDU and message costs time, says nothing that ours does not, and may show identifiers.
_config.LOG_HANDLER_LEVEL = "none"

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
STORED_WITH_DOUBTS = 0xB007
CANNOT_UNDERSTAND = 0xC000

_MB = 1 << 20
#: How long the threads of aborted associations are waited for.
_ABORT_SECONDS = 3.0
#: Connections that may wait for a rejection beside the associations themselves.
_SPARE_CONNECTIONS = 32


@dataclass
class _Tally:
    """What one association has brought."""

    started: float = field(default_factory=time.monotonic)
    objects: int = 0
    failed: int = 0
    size: int = 0


class Receiver:
    """Listens as configured and fills the spool. ``start`` and ``stop`` may be called once each."""

    def __init__(
        self,
        config: Config,
        spool: Spool,
        on_stored: Callable[[Stored], None],
        commitments: Commitments | None = None,
    ) -> None:
        self._config = config
        self._handlers: list[tuple[Any, Any]] = []
        self._spool = spool
        self._on_stored = on_stored
        self._tallies: WeakKeyDictionary[Any, _Tally] = WeakKeyDictionary()
        self._server: Server | None = None
        self._ae = AE(ae_title=config.node.ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.add_supported_context(VERIFICATION, list(TRANSFER_SYNTAXES)[:2])
        for sop_class in STORAGE_SOP_CLASSES:
            self._ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        if commitments is not None:
            scp = CommitmentScp(commitments, spool, lambda: self._config.receive.commitment)
            self._handlers = [(evt.EVT_N_ACTION, scp.on_request), (evt.EVT_N_EVENT_REPORT, scp.on_report)]
            # Whoever reports is the SCP although it opens the association (PS3.7 D.3.3.4).
            self._ae.add_supported_context(
                STORAGE_COMMITMENT, list(TRANSFER_SYNTAXES)[:2], scu_role=True, scp_role=True
            )
        # admit() decides, with the configuration of the moment.
        self._ae.maximum_associations = 1 << 16

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("the receiver is not running: call start() first")
        return self._server

    @property
    def port(self) -> int:
        """The TCP port that is listened on (the one chosen by the system if 0 is configured)."""
        return int(self._running.server_address[1])

    def start(self) -> None:
        """Begin to accept associations. Raises OSError if the address cannot be bound or the spool not be
        used.
        """
        _allow_open_files(self._config.receive.max_associations)
        left = self._spool.prepare()
        if left:
            log.info("removed what %d earlier receiver process(es) had half received", left)
        self._server = self._listen()

    def reconfigure(self, config: Config) -> None:
        """Work by another configuration from the next association on; those that are open go on untouched.

        A changed address is bound before the old one is given up. Raises OSError, with the old one still
        served.
        """
        running = self._running
        old, self._config = self._config, config
        if (old.receive.host, old.receive.port) != (config.receive.host, config.receive.port):
            try:
                self._server = self._listen()
            except OSError:
                self._config = old
                raise
            running.shutdown()
        else:
            self._apply_to_new_associations()
            running.ae_title = config.node.ae_title
            running.max_connections = config.receive.max_associations + _SPARE_CONNECTIONS
        log.info("receiving by the new configuration")

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Stop listening, let open associations finish for ``grace_seconds``, abort those that have not."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        self._wait_for_end(grace_seconds)
        for association in self._ae.active_associations:
            association.abort(block=False)
        self._wait_for_end(_ABORT_SECONDS)

    def _wait_for_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._ae.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)

    # -- listening -------------------------------------------------------------------------------------------

    def _listen(self) -> Server:
        receive = self._config.receive
        self._apply_to_new_associations()
        server = Server(
            self._ae,
            (receive.host, receive.port),
            self._config.node.ae_title,
            self._ae.supported_contexts,
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_STORE, self._on_c_store),
                (evt.EVT_RELEASED, self._on_end, ["released"]),
                (evt.EVT_ABORTED, self._on_end, ["aborted"]),
                (evt.EVT_CONN_CLOSE, self._on_connection_closed),
                *self._handlers,
            ],
            open_incoming=self._open_incoming,
            max_connections=receive.max_associations + _SPARE_CONNECTIONS,
        )
        self._ae._servers.append(server)  # its shutdown() takes it off again
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="receiver", daemon=True
        ).start()
        return server

    def _apply_to_new_associations(self) -> None:
        receive = self._config.receive
        self._ae.maximum_pdu_size = receive.max_pdu
        self._ae.acse_timeout = receive.timeouts.acse
        self._ae.dimse_timeout = receive.timeouts.dimse
        self._ae.network_timeout = receive.timeouts.network

    # -- associations ----------------------------------------------------------------------------------------

    def _on_requested(self, event: Any) -> None:
        association = event.assoc
        rejection = self._decide(association)
        if rejection is None:
            self._tallies[association] = _Tally()
            return
        log.warning("association from %s rejected: %s", peer(association), rejection.reason)
        association.acse.send_reject(rejection.result, rejection.source, rejection.diagnostic)
        association.kill()  # returns when the rejection is out

    def _decide(self, association: Any) -> Rejection | None:
        request = association.requestor.primitive
        server = self._server
        if server is None:
            return congested("the receiver is stopping")
        rejection = admit(
            self._config.receive,
            own_ae=self._config.node.ae_title,
            called_ae=str(request.called_ae_title),
            calling_ae=str(request.calling_ae_title),
            address=str(association.requestor.address),
            associations=len(server.active_associations),
        )
        if rejection is None:
            try:
                self._need_space()
            except OSError as error:
                return congested(_reason(error))
        return rejection

    def _on_end(self, event: Any, how: str) -> None:
        tally = self._tallies.pop(event.assoc, None)
        if tally is not None:
            log.info(
                "association from %s %s: %d object(s) stored, %d failed, %d bytes in %.2f s",
                peer(event.assoc),
                how,
                tally.objects,
                tally.failed,
                tally.size,
                time.monotonic() - tally.started,
            )

    def _on_connection_closed(self, event: Any) -> None:
        event.assoc.dimse.discard()

    # -- objects ---------------------------------------------------------------------------------------------

    def _need_space(self) -> None:
        """Raise OSError (ENOSPC) below the configured free space."""
        free, wanted = self._spool.free_bytes(), self._config.receive.min_free_disk_mb * _MB
        if free < wanted:
            raise OSError(errno.ENOSPC, f"{free // _MB} MB free of the {wanted // _MB} MB to keep")

    def _open_incoming(self, identity: Identity, caller: str) -> Incoming:
        self._need_space()
        return self._spool.incoming(identity, caller, self._config.receive.max_object_mb * _MB)

    def _on_c_store(self, event: Any) -> Dataset:
        data_set = event.request.DataSet
        tally = self._tallies.get(event.assoc, _Tally())
        if not isinstance(data_set, ArrivingDataSet):
            return _status(CANNOT_UNDERSTAND, "the request has no data set")
        size = data_set.incoming.size if data_set.incoming else 0
        status = self._store(event, data_set)
        if status.Status in (SUCCESS, STORED_WITH_DOUBTS):
            tally.objects += 1
            tally.size += size
        else:
            tally.failed += 1
            log.warning("C-STORE from %s: 0x%04X %s", peer(event.assoc), status.Status, status.ErrorComment)
        return status

    def _store(self, event: Any, data_set: ArrivingDataSet) -> Dataset:
        incoming = data_set.incoming
        if data_set.failure is not None:
            return _status(OUT_OF_RESOURCES, _reason(data_set.failure))
        if incoming is None:
            return _status(CANNOT_UNDERSTAND, "the request has no data set")
        command, context = event.request, event.context
        try:
            incoming.flush()
            identity = read_identity(incoming.path, incoming.offset, str(context.transfer_syntax))
            if str(command.AffectedSOPClassUID) != str(context.abstract_syntax):
                return _status(SOP_CLASS_NOT_SUPPORTED, "SOP Class is not that of the presentation context")
            if identity.sop_class_uid != str(command.AffectedSOPClassUID):
                return _status(
                    DATA_SET_MISMATCH, "SOP Class UID differs between request and data set", 0x00080016
                )
            if identity.sop_instance_uid != str(command.AffectedSOPInstanceUID):
                return _status(
                    DATA_SET_MISMATCH, "SOP Instance UID differs: request and data set", 0x00080018
                )
            called = str(event.assoc.requestor.primitive.called_ae_title).strip()
            stored = self._spool.store(incoming, identity, calling_ae(event.assoc), called)
        except UnreadableError as error:
            return _status(CANNOT_UNDERSTAND, str(error))
        except OSError as error:
            log.exception("the spool at %s does not take an object", self._spool.root)
            return _status(OUT_OF_RESOURCES, _reason(error))
        finally:
            data_set.discard()  # nothing is left of it unless it was stored
        try:
            self._on_stored(stored)
        # Whatever it is, the object has no job and the sender must keep it; sent again, it is registered
        # then.
        except Exception:
            log.exception(
                "%s is stored but could not be registered; the sender is asked to send it again", stored.key
            )
            return _status(OUT_OF_RESOURCES, "stored, but its job could not be registered; send again")
        doubts = identity.doubts()
        return _status(STORED_WITH_DOUBTS, doubts[0]) if doubts else _status(SUCCESS)


def _allow_open_files(associations: int) -> None:
    """Raise the soft limit: an association holds a connection, its waker's two ends, a file and a folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * (associations + _SPARE_CONNECTIONS) + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _status(code: int, comment: str = "", offending_element: int | None = None) -> Dataset:
    """A C-STORE response's status (PS3.7 annex C); the comment is cut to what an LO may hold (64
    characters).
    """
    status = Dataset()
    status.Status = code
    if comment:
        status.ErrorComment = comment.encode("ascii", "replace").decode().replace("\\", "/")[:64]
    if offending_element is not None:
        status.OffendingElement = [offending_element]
    return status
