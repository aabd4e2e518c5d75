"""A DICOMweb server as destination: STOW-RS (PS3.18 10.5), one file a request over one connection.

The file's bytes are the request's body, unchanged. dicomweb-client would decode and encode them again, keep
them in memory, retry by itself and lose the body of a 409, which says what was wrong with which instance.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from pacs_node.deliver import Report, silent
from pacs_node.deliver.failures import Failure, Failures, is_warning, meaning
from pacs_node.deliver.objects import FileToSend, NotSendableError, read_file
from pacs_node.errors import DeliveryError

if TYPE_CHECKING:
    from pacs_node.config.model import StowDestination as StowSettings

log = logging.getLogger(__name__)

_DICOM_JSON = "application/dicom+json"
_CHUNK = 1 << 17
#: An answer may take the configured time, and longer for a large object: at least this rate is expected
#: (bytes/s).
_SLOWEST = 250_000
#: A store response names one instance; anything much longer is not one.
_MAX_RESPONSE = 4 << 20

FAILED_SOP_SEQUENCE = "00081198"
REFERENCED_SOP_SEQUENCE = "00081199"
REFERENCED_SOP_INSTANCE_UID = "00081155"
FAILURE_REASON = "00081197"
WARNING_REASON = "00081196"


class StowDestination:
    """Delivers by STOW-RS."""

    def __init__(self, name: str, settings: StowSettings) -> None:
        self.name = name
        self._settings = settings
        self._url = settings.url.rstrip("/")

    def send(self, paths: Sequence[Path], report: Report = silent) -> None:
        failures = Failures(self.name, report)
        with self._session() as session:
            for path in paths:
                try:
                    file = read_file(path)
                    failure = self._store(session, file)
                except NotSendableError as error:
                    failure = Failure(path.name, str(error), transient=False)
                except OSError as error:
                    failure = Failure(path.name, error.strerror or str(error), transient=True)
                if failure is None:
                    failures.taken(path)
                else:
                    failures.add(path, failure)
        failures.raise_if_any()

    def echo(self) -> str:
        url = f"{self._url}/studies"
        try:
            with self._session() as session:
                response = session.get(
                    url,
                    params={"limit": "1"},
                    headers={"Accept": _DICOM_JSON},
                    timeout=self._settings.timeout,
                    allow_redirects=False,
                    stream=True,
                )
        except requests.RequestException as error:
            raise DeliveryError(self.name, _connection_problem(self._url, error)) from error
        if response.status_code not in (200, 204):
            words, transient = _http_problem(response.status_code, url)
            raise DeliveryError(self.name, words, transient=transient)
        return f"{self._url} answers QIDO-RS"

    def _session(self) -> requests.Session:
        """A connection with the configured credentials. Raises DeliveryError if their variable is not set."""
        settings = self._settings
        session = requests.Session()
        session.verify = settings.verify if isinstance(settings.verify, bool) else str(settings.verify)
        if settings.token_env:
            session.headers["Authorization"] = f"Bearer {self._secret(settings.token_env)}"
        elif settings.username:
            password = self._secret(settings.password_env) if settings.password_env else ""
            session.auth = (settings.username, password)
        return session

    def _secret(self, variable: str) -> str:
        try:
            return os.environ[variable]
        except KeyError:
            reason = f"the environment variable {variable} is not set for this process"
            raise DeliveryError(self.name, reason, transient=False) from None

    def _store(self, session: requests.Session, file: FileToSend) -> Failure | None:
        """Post one file; what went wrong. Raises OSError if it cannot be read."""
        uid, url = file.sop_instance_uid, f"{self._url}/studies"
        body = _Part(file)
        try:
            with session.post(
                url,
                data=body,
                headers={
                    "Content-Type": f'multipart/related; type="application/dicom"; boundary={body.boundary}',
                    "Accept": _DICOM_JSON,
                },
                timeout=(self._settings.timeout, self._settings.timeout + file.size / _SLOWEST),
                # A POST that is redirected becomes a GET: a success that stores nothing.
                allow_redirects=False,
                stream=True,
            ) as response:
                answer = response.raw.read(_MAX_RESPONSE, decode_content=True)
        except requests.RequestException as error:
            return Failure(uid, _connection_problem(self._url, error), transient=True)
        return self._judge(uid, url, response.status_code, answer)

    def _judge(self, uid: str, url: str, status: int, answer: bytes) -> Failure | None:
        """PS3.18 10.5.3: 200 all stored, 202 some with failures or warnings, 409 none; the body names
        them.
        """
        failed, stored = _instances(answer)
        if uid in failed and is_warning(failed[uid]):
            log.warning("%s has %s: 0x%04X", self.name, uid, failed[uid])
            return None
        if uid in failed:
            words, transient = meaning(failed[uid]) if failed[uid] else ("no Failure Reason given", True)
            return Failure(uid, f"HTTP {status}: {words}", transient)
        if uid in stored and status in (200, 202):
            if stored[uid]:
                log.warning("%s took %s with warning 0x%04X", self.name, uid, stored[uid])
            return None
        if status == 200 and not stored and not failed:
            return None  # a server that stores but does not list what it stored
        if status in (200, 202):
            return Failure(uid, f"HTTP {status}, but the response does not list the instance as stored", True)
        words, transient = _http_problem(status, url)
        return Failure(uid, words, transient)


class _Part:
    """One file as a multipart/related body of known length, read while it is sent."""

    def __init__(self, file: FileToSend) -> None:
        self.boundary = secrets.token_hex(16)
        self._path = file.path
        self._head = f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"\r\n--{self.boundary}--\r\n".encode()
        self._length = len(self._head) + file.size + len(self._tail)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self._path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                yield chunk
        yield self._tail


def _instances(answer: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """The store response's failed and stored instances: SOP Instance UID to reason (0: none given)."""
    try:
        response = json.loads(answer)
    except ValueError:
        return {}, {}
    if isinstance(response, list):
        response = response[0] if response else {}
    return (
        _references(response, FAILED_SOP_SEQUENCE, FAILURE_REASON),
        _references(response, REFERENCED_SOP_SEQUENCE, WARNING_REASON),
    )


def _references(response: Any, sequence: str, reason: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in _values(response, sequence):
        for uid in _values(item, REFERENCED_SOP_INSTANCE_UID)[:1]:
            code = next(iter(_values(item, reason)), 0)
            found[str(uid)] = code if isinstance(code, int) else 0
    return found


def _values(dataset: Any, tag: str) -> list[Any]:
    """The values of an attribute in the DICOM JSON model (PS3.18 F.2), whatever the server sent instead."""
    element = dataset.get(tag) if isinstance(dataset, dict) else None
    value = element.get("Value") if isinstance(element, dict) else None
    return value if isinstance(value, list) else []


def _http_problem(status: int, url: str) -> tuple[str, bool]:
    """An HTTP status in words, and whether it is transient."""
    if status in (401, 403):
        return f"HTTP {status} from {url}: not let in. Check username, password or token", False
    if status in (301, 302, 303, 307, 308):
        return f"HTTP {status} from {url}: it is redirected. Enter the final address as url", False
    if status in (404, 405, 501):
        return f"HTTP {status} from {url}: no such DICOMweb service there. Check the url", False
    if status == 413:
        return f"HTTP 413 from {url}: the object is too large for the server", False
    if status in (400, 406, 409, 415):
        return f"HTTP {status} from {url}: the server does not take the object", False
    return f"HTTP {status} from {url}", True


def _connection_problem(url: str, error: requests.RequestException) -> str:
    kind = {
        requests.exceptions.SSLError: "the server's certificate or TLS version is not accepted",
        requests.exceptions.ConnectTimeout: "no connection in time",
        requests.exceptions.ReadTimeout: "no answer in time",
    }.get(type(error), "no connection, or it was lost")
    return f"{url}: {kind} ({error.__class__.__name__})"
