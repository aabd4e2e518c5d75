"""Orthanc's REST API as much of it as the node uses, over HTTP from a process of its own.

The Orthanc that runs the node as its plugin is found by the environment, which the plugin sets anew at each
start of Orthanc (the authorization is good for that start only).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter

from pacs_node.config.machine import ORTHANC_URL
from pacs_node.errors import PacsNodeError

ENVIRONMENT_AUTHORIZATION = "PACS_NODE_ORTHANC_AUTHORIZATION"
ENVIRONMENT_FINGERPRINT = "PACS_NODE_ORTHANC_FINGERPRINT"

CHUNK = 1 << 17


class OrthancError(PacsNodeError):
    """Orthanc did not do what it was asked.

    ``status``: of HTTP, 0 if there was no answer. ``code``: Orthanc's own (ErrorCode), 0 if it gave none.
    """

    def __init__(self, status: int, reason: str, code: int = 0) -> None:
        self.status, self.code = status, code
        super().__init__(reason)


class _Pinned(HTTPAdapter):
    """HTTPS to a server known by its certificate, whatever name the certificate bears."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> Any:
        return super().init_poolmanager(*arguments, assert_fingerprint=self._fingerprint, **options)


class OrthancApi:
    """One Orthanc. For one thread at a time; every method raises OrthancError."""

    def __init__(
        self, url: str, headers: Mapping[str, str], timeout: float, fingerprint: str | None = None
    ) -> None:
        """``fingerprint``: SHA-256 of the certificate (hexadecimal) by which the server is known, if not by
        its name.
        """
        self._url, self._timeout = url.rstrip("/"), timeout
        self._session = requests.Session()
        self._session.headers.update(headers)
        # A proxy of the environment knows nothing of this machine's Orthanc, and .netrc would replace the
        # authorization.
        self._session.trust_env = False
        if fingerprint:
            self._session.mount("https://", _Pinned(fingerprint))
            self._session.verify = False  # the fingerprint is checked instead

    @staticmethod
    def hosting(timeout: float = 30.0) -> OrthancApi:
        """The Orthanc that runs this node as its plugin."""
        url = os.environ.get(ORTHANC_URL)
        if not url:
            raise OrthancError(0, "no Orthanc runs this node; give the destination a url")
        authorization = os.environ.get(ENVIRONMENT_AUTHORIZATION)
        return OrthancApi(
            url,
            {"Authorization": authorization} if authorization else {},
            timeout,
            os.environ.get(ENVIRONMENT_FINGERPRINT),
        )

    def authenticate(self, username: str, password: str) -> None:
        """Use HTTP Basic authentication."""
        self._session.auth = (username, password)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, path: str) -> Any:
        """GET; the JSON that is answered."""
        with self._request("GET", path) as response:
            return self._json(response, path)

    def post(self, path: str, body: Mapping[str, Any] | str | bytes | BinaryIO) -> Any:
        """POST text or bytes as they are, a mapping as JSON; the JSON that is answered."""
        options = {"json": body} if isinstance(body, Mapping) else {"data": body}
        with self._request("POST", path, **options) as response:
            return self._json(response, path)

    @contextmanager
    def stream(self, path: str) -> Iterator[Iterator[bytes]]:
        """GET; the answer's bytes, in pieces."""
        with self._request("GET", path) as response:
            yield self._pieces(response, path)

    def find(self, level: str, uid: str) -> str | None:
        """Orthanc's id of the "Study", "Series" or "Instance" with that UID, or None."""
        found = self.post("/tools/lookup", uid)
        return next((str(item["ID"]) for item in found if item.get("Type") == level), None)

    def _pieces(self, response: requests.Response, path: str) -> Iterator[bytes]:
        try:
            yield from response.iter_content(CHUNK)
        except (requests.RequestException, OSError) as error:
            raise _lost(self._url, path, error) from error

    def _json(self, response: requests.Response, path: str) -> Any:
        try:
            return response.json()
        except (requests.RequestException, ValueError) as error:
            raise _lost(self._url, path, error) from error

    @contextmanager
    def _request(self, method: str, path: str, **options: Any) -> Iterator[requests.Response]:
        try:
            response = self._session.request(
                method,
                self._url + path,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
                **options,
            )
        except requests.RequestException as error:
            raise _lost(self._url, path, error) from error
        with response:
            if response.status_code != 200:
                words, code = _why(response)
                raise OrthancError(response.status_code, f"HTTP {response.status_code}: {words}", code)
            yield response


def escaped(name: str) -> str:
    """A symbolic name as a part of a path."""
    return quote(name, safe="")


def _why(response: requests.Response) -> tuple[str, int]:
    """Orthanc's own words, and its code. They name resources and peers; patients only in errors of its
    database, which come without Details.
    """
    try:
        answer = response.json()
        words = str(answer.get("Details") or answer.get("Message") or response.reason)[:200]
        return words, int(answer.get("OrthancStatus") or 0)
    except (requests.RequestException, ValueError, AttributeError, TypeError):
        return str(response.reason)[:200], 0


def _lost(url: str, path: str, error: Exception) -> OrthancError:
    return OrthancError(0, f"{url}{path}: no connection, or it was lost ({type(error).__name__})")
