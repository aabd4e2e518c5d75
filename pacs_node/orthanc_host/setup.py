"""What the plugin tells this process at its start, and the configuration that comes of it."""

from __future__ import annotations

import dataclasses
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacs_node import orthanc_api
from pacs_node.config import Config
from pacs_node.config.check import check
from pacs_node.config.load import parse
from pacs_node.config.machine import ORTHANC_URL
from pacs_node.config.source import Source, read_text
from pacs_node.errors import ConfigurationError, Problem
from pacs_node.files import atomic_write, make_folder

SECTION = "PacsNode"
#: The destination that every rule may name: the Orthanc that runs this node.
HOSTING = "ORTHANC"
#: Keys of the section that are the plugin's: which Python runs the node, and where its own file is.
_PYTHON, _FILE = "python", "config"


@dataclass(frozen=True)
class Setup:
    """``configuration``: Orthanc's, merged from all its files; ``path``: where that was read;
    ``authorization``: for its REST API; ``last_change``: of Orthanc when it had just started.
    """

    configuration: Mapping[str, Any]
    path: str
    authorization: str | None
    last_change: int

    @staticmethod
    def from_json(line: bytes) -> Setup:
        """As the plugin wrote it."""
        return Setup(**json.loads(line))

    def environment(self) -> dict[str, str]:
        """What ``OrthancApi.hosting`` needs, in this process and its children.

        Raises ConfigurationError if Orthanc has no REST API to talk to.
        """
        if self.configuration.get("HttpServerEnabled", True) is not True:
            raise self._wrong("HttpServerEnabled", "the node works over Orthanc's REST API", "Set it to true")
        if self.configuration.get("SslVerifyPeers", False):
            message = "the node has no client certificate for Orthanc's own web server"
            raise self._wrong("SslVerifyPeers", message, "Set it to false, and put a reverse proxy before it")
        secure = bool(self.configuration.get("SslEnabled", False))
        port = int(self.configuration.get("HttpPort", 8042))
        environment = {
            ORTHANC_URL: f"{'https' if secure else 'http'}://127.0.0.1:{port}",
        }
        if self.authorization:
            environment[orthanc_api.ENVIRONMENT_AUTHORIZATION] = self.authorization
        if secure:
            environment[orthanc_api.ENVIRONMENT_FINGERPRINT] = self._fingerprint()
        return environment

    def _fingerprint(self) -> str:
        import hashlib

        path = Path(str(self.configuration.get("SslCertificate", "certificate.pem")))
        if not path.is_absolute():
            path = self._folder() / path
        try:
            text = path.read_text()
            first = text[text.index("-----BEGIN CERTIFICATE") :].partition("-----END CERTIFICATE-----")
            return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[0] + first[1])).hexdigest()
        except (OSError, ValueError) as error:
            message = f"its certificate cannot be read ({type(error).__name__})"
            remedy = "Give a PEM file that the account of Orthanc may read"
            raise self._wrong("SslCertificate", message, remedy) from error

    def load(self) -> Config:
        """The node's configuration: the section itself, or the file that its key ``config`` names.

        Rules may name Orthanc's DicomModalities, its DicomWeb Servers, and ORTHANC itself as destinations
        without describing them. Raises ConfigurationError.
        """
        section = self.configuration.get(SECTION)
        if not isinstance(section, Mapping):
            raise self._wrong(
                SECTION,
                f'there is no section "{SECTION}"',
                f'Add "{SECTION}": {{"config": "/etc/pacs-node/pacs-node.yaml"}}, or that file\'s keys in it',
            )
        own = {key: value for key, value in section.items() if key not in (_PYTHON, _FILE)}
        if _FILE not in section:
            try:
                config, source = self._parsed(json.dumps(own), self.path)
                return _checked(config, source)
            except ConfigurationError as error:
                # The section was merged from Orthanc's files: its lines are nobody's.
                raise ConfigurationError([self._in_section(problem) for problem in error.problems]) from None
        if own:
            raise self._wrong(
                f"{SECTION}.{min(own)}",
                f"{SECTION}.{_FILE} names a file, which then holds the whole configuration",
                f"Move this key to that file, or remove {SECTION}.{_FILE}",
            )
        file = Path(str(section[_FILE]))
        if not file.is_absolute():
            file = self._folder() / file
        return _checked(*self._parsed(read_text(file), str(file), file.parent))

    def file(self) -> Path | None:
        """The node's own configuration file, if it has one."""
        section = self.configuration.get(SECTION)
        named = section.get(_FILE) if isinstance(section, Mapping) else None
        return self._folder() / str(named) if named else None

    def _parsed(self, text: str, name: str, folder: Path | None = None) -> tuple[Config, Source]:
        return parse(text, name, folder or self._folder(), os.environ, self._known())

    def _known(self) -> dict[str, dict[str, Any]]:
        web = self.configuration.get("DicomWeb")
        servers = web.get("Servers") if isinstance(web, Mapping) else None
        return {
            **{name: {"type": "orthanc", "server": name} for name in servers or {}},
            **{
                name: {"type": "orthanc", "modality": name}
                for name in self.configuration.get("DicomModalities") or {}
            },
            HOSTING: {"type": "orthanc"},
        }

    def _folder(self) -> Path:
        """Where relative paths in Orthanc's configuration begin."""
        path = Path(self.path or ".").absolute()
        return path if path.is_dir() else path.parent

    def _in_section(self, problem: Problem) -> Problem:
        if problem.file != self.path:
            return problem  # of an environment variable
        return dataclasses.replace(problem, line=None, column=None, key=f"{SECTION}.{problem.key}")

    def _wrong(self, key: str, message: str, remedy: str) -> ConfigurationError:
        return ConfigurationError([Problem(self.path, None, None, key, "", message, remedy)])


def _checked(config: Config, source: Source) -> Config:
    """The configuration, if this machine can work by it. Raises ConfigurationError.

    Its receiver is not used: Orthanc receives, and lets in whom it will.
    """
    anyone = config.receive.model_copy(update={"check_called_ae": False, "check_calling_ae": False})
    problems = check(config.model_copy(update={"receive": anyone}), source)
    fatal = [
        problem
        for problem in problems
        if problem.severity == "error" and problem.key.split(".")[0] in ("models", "infer", "rules")
    ]
    if fatal:
        raise ConfigurationError(fatal)
    return config


def write_for_worker(config: Config) -> Path:
    """The configuration as a file that the worker reads, and follows; where it is. Raises OSError."""
    folder = config.node.state_dir / "orthanc"
    make_folder(folder, 0o700)
    path = folder / "pacs-node.json"
    tree = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    content = json.dumps(_without_none(tree), indent=1, ensure_ascii=False).encode()
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, content)
    return path


def _without_none(tree: Any) -> Any:
    """Without keys that have no value; a list keeps its open sides."""
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return [_without_none(value) for value in tree] if isinstance(tree, list) else tree
