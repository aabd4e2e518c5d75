"""A DICOM node as destination: the SCU of Storage (PS3.4 annex B), Storage Commitment (J) and Verification
(A).

Objects go out in the bytes they lie in. For each SOP class and transfer syntax among the files one
presentation context proposes exactly that; a second one proposes the uncompressed syntaxes, for a destination
that refuses the first. Then, and only then, the object is decoded and sent in Explicit (or Implicit) VR
Little Endian, with the same pixel values.
"""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.dsutils import split_dataset
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AssociationSocket

from pacs_node.commitment import STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, Ledger, action_information
from pacs_node.deliver import Report, silent
from pacs_node.deliver.decoded import decoded
from pacs_node.deliver.failures import Failure, Failures, is_warning, meaning
from pacs_node.deliver.objects import FileToSend, NotSendableError, read_file
from pacs_node.errors import DeliveryError
from pacs_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from pacs_node.config.model import DicomDestination as DicomSettings

log = logging.getLogger(__name__)

_config.LOG_HANDLER_LEVEL = "none"
# A path is then sent as the bytes that it holds, read piece by piece, instead of being decoded and encoded
# again.
_config.STORE_SEND_CHUNKED_DATASET = True

VERIFICATION = "1.2.840.10008.1.1"
UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))

#: What we accept to be sent; what we send is bounded by the destination's own maximum.
_MAX_PDU = 131072
#: An answer may take the configured time, and longer for a large object: at least this rate is expected
#: (bytes/s).
_SLOWEST = 250_000
#: How long the association of a commitment request is kept open for the report. Who does not report on it by
#: then opens one of its own.
_REPORT_SECONDS = 2.0
#: PS3.8 table 9-11: identifiers are odd and fit a byte.
_MAX_CONTEXTS = 128


class DicomDestination:
    """Delivers by C-STORE, all files of a call over one association."""

    def __init__(self, name: str, settings: DicomSettings, ae_title: str) -> None:
        self.name = name
        self._settings = settings
        self._calling = settings.calling_ae_title or ae_title

    def echo(self) -> str:
        with self._association([build_context(VERIFICATION, list(UNCOMPRESSED))]) as association:
            if not association.accepted_contexts:
                raise DeliveryError(self.name, "associates, but does not offer Verification", transient=False)
            status = association.send_c_echo().get("Status")
        if status is None:
            raise DeliveryError(self.name, f"no answer to C-ECHO within {self._settings.timeout} s")
        if status != 0:
            words, transient = meaning(status)
            raise DeliveryError(self.name, f"C-ECHO was answered {words}", transient=transient)
        return f"{self._settings.ae_title} at {self._settings.host}:{self._settings.port} answers C-ECHO"

    def send(self, paths: Sequence[Path], report: Report = silent) -> None:
        failures = Failures(self.name, report)
        for batch in _batches(paths, failures):
            contexts = [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in _proposals(batch)]
            with self._association(contexts) as association:
                lost = ""
                for file in batch:
                    try:
                        if lost:
                            raise _AssociationLostError(lost)
                        failure = self._store(association, file)
                    except _AssociationLostError as error:
                        failure = Failure(file.sop_instance_uid, str(error), transient=True)
                        lost = "not sent: the association was lost"
                    if failure is None:
                        failures.taken(file.path)
                    else:
                        failures.add(file.path, failure)
        failures.raise_if_any()

    def request_commitment(self, path: Path, ledger: Ledger) -> str:
        """As ``Committing``. A report that has not come when this returns comes to our receiver."""
        file = read_file(path)

        def reported(event: Any) -> tuple[int, None]:
            # 0x0115: no such argument
            return (0x0000 if ledger.report(event.event_information) else 0x0115), None

        # Verification comes along so that there is an association that says who does not offer commitment.
        contexts = [build_context(name, list(UNCOMPRESSED)) for name in (STORAGE_COMMITMENT, VERIFICATION)]
        handlers = [(evt.EVT_N_EVENT_REPORT, reported)]
        transaction = ledger.ask([file.sop_instance_uid])
        with self._association(contexts, handlers) as association:
            if STORAGE_COMMITMENT not in {cx.abstract_syntax for cx in association.accepted_contexts}:
                reason = "does not offer Storage Commitment. Enable it there, or set commitment: false"
                raise DeliveryError(self.name, reason, transient=False)
            status, _ = association.send_n_action(
                action_information(transaction, [(file.sop_class_uid, file.sop_instance_uid)]),
                1,  # Request Storage Commitment
                STORAGE_COMMITMENT,
                WELL_KNOWN_INSTANCE,
            )
            self._check(status, "the storage commitment request")
            deadline = time.monotonic() + _REPORT_SECONDS
            while time.monotonic() < deadline and association.is_established:
                if ledger.answer(transaction) is not None:
                    break
                time.sleep(0.02)
        return transaction

    def report_commitment(self, information: Dataset, event_type: int) -> None:
        """Report on a storage commitment that this AE has asked of us (N-EVENT-REPORT, as the SCP).

        ``information``: Event Information. Raises DeliveryError if it is not taken.
        """
        contexts = [build_context(name, list(UNCOMPRESSED)) for name in (STORAGE_COMMITMENT, VERIFICATION)]
        # The SCP opens this association, so the roles are turned round (PS3.7 D.3.3.4).
        roles = [build_role(STORAGE_COMMITMENT, scp_role=True)]
        with self._association(contexts, roles=roles) as association:
            accepted = {cx.abstract_syntax: cx for cx in association.accepted_contexts}
            if STORAGE_COMMITMENT not in accepted or not accepted[STORAGE_COMMITMENT].as_scp:
                reason = "does not take reports on storage commitment. Enable that there"
                raise DeliveryError(self.name, reason, transient=False)
            status, _ = association.send_n_event_report(
                information, event_type, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE
            )
        self._check(status, "the report on storage commitment")

    def _check(self, status: Dataset, what: str) -> None:
        """Raises DeliveryError unless ``what`` was answered by success or a warning."""
        code = status.get("Status")
        if code is None:
            raise DeliveryError(self.name, f"no answer to {what}")
        if code != 0 and not is_warning(code):
            words, transient = meaning(code)
            raise DeliveryError(self.name, f"{what} was answered {words}", transient=transient)

    def look_for_report(self, transaction: str, ledger: Ledger) -> bool:
        """As ``Committing``: it comes by itself."""
        return True

    def _store(self, association: Any, file: FileToSend) -> Failure | None:
        """Send one file; what went wrong with it. Raises _AssociationLostError."""
        uid = file.sop_instance_uid
        accepted = {
            context.transfer_syntax[0]
            for context in association.accepted_contexts
            if context.abstract_syntax == file.sop_class_uid
        }
        association.dimse_timeout = self._settings.timeout + file.size / _SLOWEST
        try:
            if file.transfer_syntax_uid in accepted:
                with _of_even_length(file) as path:
                    status = association.send_c_store(path)
            elif accepted & set(UNCOMPRESSED):
                log.info(
                    "%s does not take %s in %s: sent decoded, with the same pixel values",
                    self.name,
                    uid,
                    UID(file.transfer_syntax_uid).name,
                )
                status = association.send_c_store(decoded(file))
            else:
                return Failure(uid, self._refusal(file), transient=False)
        except NotSendableError as error:
            return Failure(uid, str(error), transient=False)
        except OSError as error:
            return Failure(uid, error.strerror or str(error), transient=True)
        except RuntimeError as error:  # what pynetdicom says of an association that has ended
            raise _AssociationLostError(f"not sent: {error}") from error
        return self._judge(uid, status)

    def _judge(self, uid: str, status: Any) -> Failure | None:
        """What a C-STORE response means. Raises _AssociationLostError if there was none."""
        code = status.get("Status")
        if code is None:
            raise _AssociationLostError("no answer to C-STORE: timed out or aborted")
        if code == 0:
            return None
        if is_warning(code):
            log.warning("%s took %s with warning 0x%04X", self.name, uid, code)
            return None
        words, transient = meaning(code)
        return Failure(uid, words, transient, str(status.get("ErrorComment") or ""))

    def _refusal(self, file: FileToSend) -> str:
        return (
            f"{self._settings.ae_title} accepts neither {UID(file.transfer_syntax_uid).name} nor an "
            f"uncompressed transfer syntax for {UID(file.sop_class_uid).name}. "
            "Allow this SOP class there, or send another kind"
        )

    @contextmanager
    def _association(
        self,
        contexts: Sequence[PresentationContext],
        handlers: Sequence[tuple[Any, Any]] = (),
        roles: Sequence[Any] = (),
    ) -> Iterator[Any]:
        """An association with the destination, released in the end. Raises DeliveryError if there is none."""
        settings = self._settings
        ae = _RequestingAE(ae_title=self._calling)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = _MAX_PDU
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = settings.timeout
        ae.network_timeout = None  # the timeouts of each request bound the waiting
        connected: list[Any] = []
        try:
            association = ae.associate(
                settings.host,
                settings.port,
                contexts=list(contexts),
                ae_title=settings.ae_title,
                max_pdu=_MAX_PDU,
                ext_neg=list(roles),
                evt_handlers=[(evt.EVT_CONN_OPEN, connected.append), *handlers],
            )
        except OSError as error:
            raise DeliveryError(self.name, f"{settings.host}: {error.strerror or error}") from error
        if not association.is_established:
            raise self._unestablished(association, bool(connected))
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _unestablished(self, association: Any, connected: bool) -> DeliveryError:
        place = f"{self._settings.ae_title} at {self._settings.host}:{self._settings.port}"
        if association.is_rejected:
            answer = association.acceptor.primitive
            # Only an AE title that one side has wrong stays wrong; "no reason given" is what a busy node
            # says.
            title = answer.result_source == 1 and answer.diagnostic in (3, 7)
            remedy = {
                3: f". Enter {self._calling} as a known node at the destination",
                7: ". Correct the destination's ae_title",
            }.get(answer.diagnostic if title else 0, "")
            reason = f"{place} rejects the association: {answer.reason_str}{remedy}"
            return DeliveryError(self.name, reason, transient=not title)
        if connected:
            return DeliveryError(self.name, f"{place} connects, but no association comes about")
        return DeliveryError(
            self.name, f"no connection to {place}: nothing listens, or a firewall is between"
        )


class _AssociationLostError(Exception):
    """There is no use in sending anything more over this association."""


class _Socket(AssociationSocket):  # type: ignore[misc]
    """pynetdicom's socket leaves the descriptor of a connection that was refused to the garbage collector."""

    def _shutdown_socket(self) -> None:
        connection = self.socket
        super()._shutdown_socket()
        if connection is not None:
            connection.close()


class _RequestingAE(AE):  # type: ignore[misc]
    def _create_socket(self, association: Any, address: Any, tls: Any) -> Any:
        created = super()._create_socket(association, address, tls)
        created.__class__ = _Socket
        # The command set is a small packet; the data set behind it must not wait for its acknowledgement.
        created.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return created


@contextmanager
def _of_even_length(file: FileToSend) -> Iterator[Path]:
    """The file, or a copy with the null byte that a deflated data set of odd length lacks (PS3.5 A.5).

    A fragment on the network has an even length (PS3.8 9.3.5.1); some destinations abort at an odd one.
    """
    _, offset = split_dataset(file.path)
    if (file.size - offset) % 2 == 0:
        yield file.path
        return
    with tempfile.NamedTemporaryFile(suffix=".dcm") as padded:
        with file.path.open("rb") as source:
            shutil.copyfileobj(source, padded)
        padded.write(b"\0")
        padded.flush()
        yield Path(padded.name)


def _batches(paths: Sequence[Path], failures: Failures) -> Iterator[list[FileToSend]]:
    """The files that can be sent, in groups whose proposals fit one association; the others are failures."""
    batch: list[FileToSend] = []
    for path in paths:
        try:
            file = read_file(path)
        except NotSendableError as error:
            failures.add(path, Failure(path.name, str(error), transient=False))
        except OSError as error:
            failures.add(path, Failure(path.name, error.strerror or str(error), transient=True))
        else:
            if len(_proposals([*batch, file])) > _MAX_CONTEXTS:
                yield batch
                batch = []
            batch.append(file)
    if batch:
        yield batch


def _proposals(files: Sequence[FileToSend]) -> list[tuple[str, tuple[str, ...]]]:
    """Presentation contexts as (SOP class, transfer syntaxes): each file as it is, then uncompressed."""
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    for file in files:
        found[file.sop_class_uid, (file.transfer_syntax_uid,)] = None
        others = tuple(syntax for syntax in UNCOMPRESSED if syntax != file.transfer_syntax_uid)
        found[file.sop_class_uid, others] = None
    return list(found)
