"""Who may ask, and what is logged of it."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pacs_node.config.web import Web

log = logging.getLogger(__name__)

_UNAUTHORISED = {
    "status": 401,
    "error": "unauthorised",
    "reason": "user name and password, or the token, are missing or wrong",
    "remedy": "Send those that the node is configured with",
}
_FAILED = {
    "status": 500,
    "error": "internal error",
    "reason": "the node could not answer; its log says where",
    "remedy": "Try again; if it stays so, report it with the log",
}


class MissingSecretError(ValueError):
    """An environment variable that the configuration names is not set."""


@dataclass(frozen=True)
class Secrets:
    """What a client must show; both None: nothing."""

    basic: bytes | None = None
    token: bytes | None = None

    @staticmethod
    def of(web: Web, environ: Mapping[str, str]) -> Secrets:
        """From the environment. Raises MissingSecretError, rather than letting everybody in."""
        values = {}
        for name in filter(None, (web.password_env, web.token_env)):
            if not environ.get(name):
                raise MissingSecretError(
                    f"the environment variable {name} is not set. Set it where the node is started"
                )
            values[name] = environ[name]
        basic = f"{web.username}:{values[web.password_env]}".encode() if web.password_env else None
        return Secrets(basic, values[web.token_env].encode() if web.token_env else None)

    def allow(self, header: bytes) -> bool:
        """Whether an Authorization header shows what is asked for."""
        if self.basic is None and self.token is None:
            return True
        scheme, _, shown = header.partition(b" ")
        if scheme.lower() == b"bearer" and self.token is not None:
            return hmac.compare_digest(shown.strip(), self.token)
        if scheme.lower() == b"basic" and self.basic is not None:
            try:
                return hmac.compare_digest(base64.b64decode(shown.strip(), validate=True), self.basic)
            except binascii.Error:
                return False
        return False


class Access:
    """Lets a request pass or answers 401; one line for each, without its query and its UIDs; and a last
    resort for what no handler expected.
    """

    def __init__(self, app: ASGIApp, secrets: Secrets) -> None:
        self._app, self._secrets = app, secrets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status, size = 0, 0

        async def noting(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"private, no-store"),
                ]
            size += len(message.get("body", b""))
            await send(message)

        try:
            if self._secrets.allow(dict(scope["headers"]).get(b"authorization", b"")):
                await self._app(scope, receive, noting)
            else:
                await _answer(noting, _UNAUTHORISED, [(b"www-authenticate", b'Basic realm="pacs-node"')])
        # The process's boundary: one request must not end the others. The text of the error may quote a
        # header, so only its kind and its place are logged.
        except Exception as error:  # noqa: BLE001
            frames = traceback.format_tb(error.__traceback__)[-3:]
            log.error("request failed", extra={"error": type(error).__name__, "at": "".join(frames)})
            if status:
                raise ConnectionAbortedError("the answer had begun") from None
            await _answer(noting, _FAILED, [])
        finally:
            route = scope.get("route")
            log.info(
                "request",
                extra={
                    "method": scope["method"] if scope["method"].isalpha() else "?",
                    "resource": getattr(route, "path", "none"),
                    "status": status,
                    "bytes": size,
                    "seconds": time.monotonic() - started,
                },
            )


async def _answer(send: Send, content: dict[str, object], headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps(content).encode()
    await send(
        {
            "type": "http.response.start",
            "status": content["status"],
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
