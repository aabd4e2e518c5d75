"""One instance of Orthanc's into the spool and the queue, as if it had been received by the node itself."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from pacs_node.config import Config
from pacs_node.dicom.derived import SUPPORTED
from pacs_node.dicom.files import read_header
from pacs_node.engine.client import Client
from pacs_node.engine.job import UNSUCCESSFUL, NewJob
from pacs_node.errors import Refused
from pacs_node.orthanc_api import OrthancApi, OrthancError
from pacs_node.pipeline.node import ANALYSE, DELIVER, INTAKE_QUEUE, OBJECT, Node
from pacs_node.pipeline.retry import retry
from pacs_node.receive.identity import Identity, UnreadableError, read_identity
from pacs_node.receive.incoming import Incoming, TooLargeError
from pacs_node.receive.spool import REPORTS, Stored
from pacs_node.route import decide
from pacs_node.route.rules import Decision

log = logging.getLogger(__name__)

#: The file meta information is a few hundred bytes; one that does not end within this is not taken.
_HEAD = 1 << 16
_PREAMBLE = 132


@dataclass(frozen=True)
class Taken:
    """What became of an instance: ``outcome`` is taken, repeated, own-result, not-wanted, gone or refused;
    ``reason`` says why nothing is done.
    """

    instance: str
    outcome: str
    key: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Fetched:
    """An instance in a temporary file of the spool, with its header and who sent it to Orthanc."""

    incoming: Incoming
    identity: Identity
    header: Dataset
    calling_ae: str
    called_ae: str


class Intake:
    """Takes instances in. For one thread at a time."""

    def __init__(self, node: Node, client: Client) -> None:
        self._node, self._client = node, client

    def take(self, api: OrthancApi, instance: str, config: Config, *, again: bool = False) -> Taken:
        """Take an instance of Orthanc in, if a rule wants something of it.

        ``again``: what has failed of it is to be tried again. Raises OrthancError (not for an instance that
        is gone or not to be had), OSError and EngineError: then it can be taken later.
        """
        try:
            if not again and self._never_wanted(api, instance, config):
                return Taken(instance, "not-wanted", reason="no rule wants anything of its SOP class")
            with self.fetched(api, instance, config) as fetched:
                return self._judged(instance, fetched, config, again=again)
        except OrthancError as error:
            if error.status != 404:
                raise
            return Taken(instance, "gone", reason="it was deleted from Orthanc")
        except (UnreadableError, TooLargeError) as error:
            return Taken(instance, "refused", reason=str(error))
        except Refused as refused:
            return Taken(instance, "refused", reason=refused.reason)

    def _never_wanted(self, api: OrthancApi, instance: str, config: Config) -> bool:
        if any(rule.forward_original for rule in config.rules):
            return False
        metadata = api.get(f"/instances/{instance}/metadata?expand")
        sop_class = metadata.get("SopClassUid")
        return sop_class is not None and sop_class not in SUPPORTED

    def _judged(self, instance: str, fetched: Fetched, config: Config, *, again: bool) -> Taken:
        decision = decide(config.rules, fetched.header, fetched.calling_ae, fetched.called_ae)
        if decision.own_result:
            return Taken(instance, "own-result", reason="a node of this kind has made it")
        if not _wanted(decision, fetched.identity):
            reason = f"rule {decision.rule!r} wants nothing of it" if decision.rule else "no rule matches"
            return Taken(instance, "not-wanted", reason=reason)
        stored = self._node.spool.store(
            fetched.incoming, fetched.identity, fetched.calling_ae, fetched.called_ae
        )
        self._client.enqueue(NewJob(OBJECT, f"{OBJECT}/{stored.key}", {"key": stored.key}, INTAKE_QUEUE))
        if stored.repeated:
            self._deliver_missing(stored, config)
            if again:
                self._retry(stored)
        return Taken(instance, "repeated" if stored.repeated else "taken", stored.key)

    @contextmanager
    def fetched(self, api: OrthancApi, instance: str, config: Config) -> Iterator[Fetched]:
        """The instance's bytes as Orthanc received them, in a file that is gone afterwards unless it was
        stored.

        Raises OrthancError, UnreadableError, TooLargeError, Refused, OSError.
        """
        metadata = api.get(f"/instances/{instance}/metadata?expand")
        # Orthanc names no caller for what came over HTTP.
        calling, called = str(metadata.get("RemoteAET", "")), str(metadata.get("CalledAET", ""))
        incoming: Incoming | None = None
        try:
            with api.stream(f"/instances/{instance}/file") as pieces:
                head, rest = _head(pieces)
                meta, offset = _file_meta(head)
                syntax = str(meta.get("TransferSyntaxUID") or metadata.get("TransferSyntax") or "")
                named = Identity(*self._named(api, instance, meta, metadata), "", "", syntax)
                limit = config.receive.max_object_mb << 20
                incoming = self._node.spool.incoming(named, calling, limit)
                for piece in chain([head[offset:]], rest):
                    incoming.write(piece)
            incoming.flush()
            identity = read_identity(incoming.path, incoming.offset, syntax)
            header = read_header(incoming.path)
            yield Fetched(incoming, identity, header, calling, called)
        finally:
            if incoming is not None:
                incoming.discard()

    def _named(
        self, api: OrthancApi, instance: str, meta: Dataset, metadata: Mapping[str, Any]
    ) -> tuple[str, str]:
        """SOP Class and SOP Instance UID, which the file meta of an uploaded file may lack."""
        sop_class = str(meta.get("MediaStorageSOPClassUID") or metadata.get("SopClassUid") or "")
        uid = str(meta.get("MediaStorageSOPInstanceUID") or "")
        return sop_class, uid or str(api.get(f"/instances/{instance}")["MainDicomTags"]["SOPInstanceUID"])

    def _deliver_missing(self, stored: Stored, config: Config) -> None:
        """Deliver again what is not in Orthanc, because the study was deleted there and has now come back."""
        study = stored.key.partition("/")[0]
        for job in self._client.find(
            prefix=[f"{DELIVER}/{stored.key}/", f"{DELIVER}/{study}/{REPORTS}/"], status=["done"]
        ):
            settings = config.destinations.get(str(job.payload["destination"]))
            if settings is None or settings.type != "orthanc" or settings.url is not None:
                continue
            result = job.result if isinstance(job.result, dict) else {}
            onward = settings.modality or settings.server
            if result.get("unwanted") or (result.get("delivered") and not onward):
                self._client.purge([job.id])
                self._client.enqueue(NewJob(DELIVER, job.id, job.payload, job.queue, job.priority))

    def _retry(self, stored: Stored) -> None:
        for job in self._client.find(prefix=f"{DELIVER}/{stored.key}/", status=UNSUCCESSFUL):
            retry(self._client, job.id)
        for job_id in (f"{OBJECT}/{stored.key}", f"{ANALYSE}/{stored.key}"):
            retry(self._client, job_id)


def _wanted(decision: Decision, identity: Identity) -> bool:
    """Whether a rule wants something of it; a radiograph that is refused is named in the study's report."""
    forwarded = decision.forward_original and bool(decision.destinations)
    return forwarded or (bool(decision.asked) and identity.sop_class_uid in SUPPORTED)


def _head(pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _HEAD:
            break
    return head, pieces


def _file_meta(head: bytes) -> tuple[Dataset, int]:
    """File meta information (PS3.10 7.1) of a file, empty if it has none, and where the data set begins.

    Orthanc keeps what was uploaded as it came: the preamble may be missing, or the file meta, and its group
    length is not believed. Raises UnreadableError.
    """
    stream = io.BytesIO(head)
    stream.seek(_PREAMBLE if head[_PREAMBLE - 4 : _PREAMBLE] == b"DICM" else 0)
    if head[stream.tell() : stream.tell() + 2] != b"\x02\0":
        return Dataset(), stream.tell()
    try:
        meta = read_dataset(
            stream,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, vr, length: tag >> 16 != 2,
        )
        meta.get("TransferSyntaxUID")
    # pydicom raises whatever the bytes provoke; all of it means the same here.
    except Exception as error:
        raise UnreadableError(f"its file meta does not parse: {type(error).__name__}") from error
    if stream.tell() >= _HEAD:
        raise UnreadableError("its file meta does not end")
    return meta, stream.tell()
