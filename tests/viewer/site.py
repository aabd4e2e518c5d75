"""A web site for a viewer: static files, and a DICOMweb server under the same origin, as a reverse proxy
would do it."""

from __future__ import annotations

import base64
import http.client
import mimetypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


@contextmanager
def site(folder: Path, overrides: dict[str, Path], backend: str, login: str = "") -> Iterator[str]:
    """The origin of a running site.

    Serves ``folder``, with ``overrides`` (a path of the site to a file) in place of its files, its index.html
    for every path without a file (the viewer's own routes), and passes what begins with ``/dicom-web`` on to
    the origin ``backend``, with ``login`` ("user:password") if one is given.
    """
    address = urlsplit(backend)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if urlsplit(self.path).path.startswith("/dicom-web"):
                self._pass_on()
            else:
                self._give_file()

        def _give_file(self) -> None:
            path = urlsplit(self.path).path
            file = overrides.get(path) or folder / path.lstrip("/")
            if not file.is_file() or ".." in file.parts:
                file = folder / "index.html"
            kind = "application/wasm" if file.suffix == ".wasm" else mimetypes.guess_type(file.name)[0]
            self._answer(200, [("Content-Type", kind or "application/octet-stream")], file.read_bytes())

        def _pass_on(self) -> None:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            headers["Host"] = self.headers["Host"]  # addresses in the metadata then lead back to this site
            if login:
                headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
            connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
            try:
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP]
                self._answer(answer.status, kept, answer.read())
            finally:
                connection.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The browser's own log is what a failed test shows."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
