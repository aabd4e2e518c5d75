"""An Orthanc server as destination: over its REST API, and from there on to one of its own peers.

To a peer it is Orthanc that sends, with what its configuration says of it (AE titles, TLS, passwords): the
object is stored in Orthanc first. A synchronous request holds one of Orthanc's HTTP threads while it sends,
and nothing else of it. Storage commitment, too, is Orthanc's to ask for, and the peer reports to Orthanc,
which keeps the last StorageCommitmentReportsSize reports (100) until it ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pacs_node.deliver import Report, silent
from pacs_node.deliver.failures import Failure, Failures
from pacs_node.deliver.objects import FileToSend, NotSendableError, read_file
from pacs_node.errors import DeliveryError, Unwanted
from pacs_node.orthanc_api import OrthancApi, OrthancError, escaped

if TYPE_CHECKING:
    from pacs_node.commitment import Ledger
    from pacs_node.config.destinations import OrthancDestination as OrthancSettings

log = logging.getLogger(__name__)

#: The object itself is not taken. Anything else may be well later: a peer that is named again, a new
#: authorization.
_FINAL = (400, 413, 415)
_NO_PRESENTATION_CONTEXT = 2015
"""Orthanc's ErrorCode: the peer accepts nothing of what is proposed."""
_REPORT_SECONDS = 2.0
"""How long the report of a request is waited for at once, before it is looked for at intervals."""


class OrthancDestination:
    """Delivers to an Orthanc. What it holds already under the same UID stays as it is."""

    def __init__(self, name: str, settings: OrthancSettings) -> None:
        self.name = name
        self._settings = settings

    def send(self, paths: Sequence[Path], report: Report = silent) -> None:
        failures = Failures(self.name, report)
        try:
            api = self._api()
        except OrthancError as error:
            raise DeliveryError(self.name, str(error)) from error
        with closing(api):
            for path in paths:
                try:
                    self._deliver(api, read_file(path))
                except NotSendableError as error:
                    failures.add(path, Failure(path.name, str(error), transient=False))
                except OrthancError as error:
                    failures.add(path, Failure(path.name, str(error), error.status not in _FINAL))
                except OSError as error:
                    failures.add(path, Failure(path.name, error.strerror or str(error), transient=True))
                else:
                    failures.taken(path)
        failures.raise_if_any()

    def echo(self) -> str:
        settings = self._settings
        try:
            with closing(self._api()) as api:
                system = api.get("/system")
                if settings.modality:
                    api.post(f"/modalities/{escaped(settings.modality)}/echo", {})
                if settings.server and settings.server not in api.get("/dicom-web/servers"):
                    raise OrthancError(404, f"no such DicomWeb server: {settings.server}")
        except OrthancError as error:
            raise DeliveryError(self.name, str(error)) from error
        onward = settings.modality or settings.server
        return f"Orthanc {system.get('Version')}" + (f", which knows {onward}" if onward else "")

    # -- storage commitment ----------------------------------------------------------------------------------

    def request_commitment(self, path: Path, ledger: Ledger) -> str:
        """As ``Committing``, of the modality that Orthanc has sent it on to."""
        file = read_file(path)
        modality = f"/modalities/{escaped(self._settings.modality or '')}"
        request = {
            "DicomInstances": [
                {"SOPClassUID": file.sop_class_uid, "SOPInstanceUID": file.sop_instance_uid},
            ],
            "Timeout": int(self._settings.timeout),
        }
        try:
            with closing(self._api()) as api:
                if "storage-commitment" not in api.get(modality):
                    reason = "this Orthanc cannot ask for storage commitment. Update it, or remove commitment"
                    raise DeliveryError(self.name, reason, transient=False)
                answered = api.post(f"{modality}/storage-commitment", request)
                transaction = ledger.ask([file.sop_instance_uid], known_as=str(answered["ID"]))
                deadline = time.monotonic() + _REPORT_SECONDS
                while (
                    self._fetch_report(api, transaction, ledger)
                    and ledger.answer(transaction) is None
                    and time.monotonic() < deadline
                ):
                    time.sleep(0.1)
        except OrthancError as error:
            if error.code == _NO_PRESENTATION_CONTEXT:
                reason = "does not offer Storage Commitment. Enable it there, or set commitment: false"
                raise DeliveryError(self.name, reason, transient=False) from error
            reason = f"storage commitment is not asked for: {error}"
            raise DeliveryError(self.name, reason, transient=error.status not in _FINAL) from error
        return transaction

    def look_for_report(self, transaction: str, ledger: Ledger) -> bool:
        """As ``Committing``: Orthanc has it."""
        try:
            with closing(self._api()) as api:
                return self._fetch_report(api, transaction, ledger)
        except (OrthancError, OSError) as error:  # of the ledger: a full disk
            log.info("%s: the report on storage commitment cannot be fetched yet: %s", self.name, error)
            return True

    def _fetch_report(self, api: OrthancApi, transaction: str, ledger: Ledger) -> bool:
        """Whether there is a report or may still be one. Raises OrthancError."""
        try:
            found = api.get(f"/storage-commitment/{escaped(ledger.known_as(transaction))}")
        except OrthancError as error:
            if error.status == 404:
                return False
            raise
        if found.get("Status") != "Pending":
            ledger.keep(
                transaction,
                committed=[str(item["SOPInstanceUID"]) for item in found.get("Success", [])],
                failed={
                    str(item["SOPInstanceUID"]): int(item.get("FailureReason") or 0)
                    for item in found.get("Failures", [])
                },
            )
        return True

    def _api(self) -> OrthancApi:
        settings = self._settings
        if settings.url is None:
            return OrthancApi.hosting(settings.timeout)
        api = OrthancApi(settings.url, {}, settings.timeout)
        if settings.username:
            variable = settings.password_env or ""
            if variable not in os.environ:
                reason = f"the environment variable {variable} is not set for this process"
                raise DeliveryError(self.name, reason, transient=False)
            api.authenticate(settings.username, os.environ[variable])
        return api

    def _deliver(self, api: OrthancApi, file: FileToSend) -> None:
        settings = self._settings
        # What is there is the same object (a UID of ours stands for its content), and storing it again would
        # make Orthanc announce it again.
        instance = api.find("Instance", file.sop_instance_uid)
        if instance is None:
            if settings.url is None and api.find("Study", file.study_instance_uid) is None:
                raise Unwanted(
                    self.name, "the study was deleted from Orthanc; a result alone would revive it"
                )
            with file.path.open("rb") as source:
                instance = str(api.post("/instances", source)["ID"])
        if settings.modality:
            answer = api.post(
                f"/modalities/{escaped(settings.modality)}/store",
                {"Resources": [instance], "Synchronous": True, "Timeout": int(settings.timeout)},
            )
            if int(answer.get("FailedInstancesCount", 0)):
                raise OrthancError(0, f"modality {settings.modality} did not take it")
        if settings.server:
            api.post(
                f"/dicom-web/servers/{escaped(settings.server)}/stow",
                {"Resources": [instance], "Synchronous": True},
            )
