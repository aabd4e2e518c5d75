"""What the plugin tells the node: where Orthanc is and how it is known, and the configuration."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pacs_node.errors import ConfigurationError
from pacs_node.orthanc_api import OrthancApi, OrthancError
from pacs_node.orthanc_host.setup import Setup, write_for_worker
from tests.orthanc.harness import section


def setup(folder: Path, **configuration: Any) -> Setup:
    own = section(folder)
    return Setup({"PacsNode": own, **configuration}, str(folder / "orthanc.json"), "Bearer secret", 0)


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers who asks with the authorization."""

    def do_GET(self) -> None:
        body = json.dumps({"authorization": self.headers["Authorization"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  its name there
        """Nothing."""


@pytest.fixture
def secure(tmp_path: Path, require_tool: Callable[[str], str]) -> Iterator[tuple[int, Path]]:
    """The port and the certificate (with its key) of an HTTPS server: Debian's Orthanc 1.10.1 ends with a
    segmentation fault at the first HTTPS request, with or without a plugin.
    """
    both = tmp_path / "certificate.pem"
    make = [require_tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=pacs.example", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run(make, check=True, capture_output=True)
    both.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "cert").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], both
        server.shutdown()
        thread.join()


def test_https_is_known_by_orthancs_own_certificate(
    secure: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificate = secure
    told = setup(tmp_path, SslEnabled=True, SslCertificate=certificate.name, HttpPort=port)
    for name, value in told.environment().items():
        monkeypatch.setenv(name, value)
    api = OrthancApi.hosting()
    assert api.get("/system") == {"authorization": "Bearer secret"}
    api.close()
    # Another server on that port gets no authorization from us.
    other = OrthancApi(f"https://127.0.0.1:{port}", {"Authorization": "Bearer secret"}, 5, "00" * 32)
    with pytest.raises(OrthancError, match="SSLError"):
        other.get("/system")
    other.close()


@pytest.mark.parametrize(
    ("configuration", "key"),
    [
        ({"HttpServerEnabled": False}, "HttpServerEnabled"),
        ({"SslEnabled": True, "SslVerifyPeers": True}, "SslVerifyPeers"),
        ({"SslEnabled": True, "SslCertificate": "none.pem"}, "SslCertificate"),
    ],
)
def test_an_orthanc_that_cannot_be_talked_to(tmp_path: Path, configuration: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        setup(tmp_path, **configuration).environment()
    (problem,) = raised.value.problems
    assert (problem.file, problem.key) == (str(tmp_path / "orthanc.json"), key)
    assert problem.remedy


def test_peers_are_destinations_by_name_and_the_worker_reads_the_same(tmp_path: Path) -> None:
    own = section(tmp_path)
    own["rules"][0]["destinations"] = ["ORTHANC", "PACS", "WEB"]
    own["rules"][0]["when"] = {"PatientAge": {"range": [18, None]}, "ViewPosition": {"not": ["LL"]}}
    told = setup(
        tmp_path,
        PacsNode=own,
        DicomModalities={"PACS": ["AET", "192.0.2.1", 104], "OTHER": ["B", "192.0.2.2", 104]},
        DicomWeb={"Servers": {"WEB": ["http://192.0.2.3/dicom-web/"]}},
    )
    config = told.load()
    assert {
        name: (d.type, d.modality, d.server) for name, d in config.destinations.items() if d.type == "orthanc"
    } == {
        "ORTHANC": ("orthanc", None, None),
        "PACS": ("orthanc", "PACS", None),
        "WEB": ("orthanc", None, "WEB"),
    }
    from pacs_node.config import load

    assert load(write_for_worker(config)) == config


def test_no_section_and_a_file_with_keys_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='there is no section "PacsNode"'):
        setup(tmp_path, PacsNode=None).load()
    with pytest.raises(ConfigurationError, match=r"PacsNode\.node: PacsNode\.config names a file"):
        setup(tmp_path, PacsNode={"config": "pacs-node.yaml", "node": {}}).load()
