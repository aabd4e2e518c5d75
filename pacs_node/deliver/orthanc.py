"""An Orthanc server as destination: over its REST API, and from there on to one of its own peers.

To a peer it is Orthanc that sends, with what its configuration says of it (AE titles, TLS, passwords): the
object is stored in Orthanc first. A synchronous request holds one of Orthanc's HTTP threads while it sends,
and nothing else of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pacs_node.deliver import Report, silent
from pacs_node.deliver.failures import Failure, Failures
from pacs_node.deliver.objects import FileToSend, NotSendableError, read_file
from pacs_node.errors import DeliveryError, Unwanted
from pacs_node.orthanc_api import OrthancApi, OrthancError, escaped

if TYPE_CHECKING:
    from pacs_node.config.destinations import OrthancDestination as OrthancSettings

#: The object itself is not taken. Anything else may be well later: a peer that is named again, a new
#: authorization.
_FINAL = (400, 413, 415)


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
        try:
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
        finally:
            api.close()
        failures.raise_if_any()

    def echo(self) -> str:
        settings = self._settings
        try:
            api = self._api()
            try:
                system = api.get("/system")
                if settings.modality:
                    api.post(f"/modalities/{escaped(settings.modality)}/echo", {})
                if settings.server and settings.server not in api.get("/dicom-web/servers"):
                    raise OrthancError(404, f"no such DicomWeb server: {settings.server}")
            finally:
                api.close()
        except OrthancError as error:
            raise DeliveryError(self.name, str(error)) from error
        onward = settings.modality or settings.server
        return f"Orthanc {system.get('Version')}" + (f", which knows {onward}" if onward else "")

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
