"""A receiver on a free port with a spool of its own, and what it has registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.presentation import build_context

from pacs_node.config.model import Config
from pacs_node.receive.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, VERIFICATION
from pacs_node.receive.scp import Receiver
from pacs_node.receive.spool import Spool, Stored


@dataclass
class Running:
    """A receiver at work."""

    receiver: Receiver
    spool: Spool
    config: Config
    stored: list[Stored] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)
    before_registering: Callable[[], None] = lambda: None

    @property
    def port(self) -> int:
        return self.receiver.port

    def on_stored(self, stored: Stored) -> None:
        self.before_registering()
        if self.fails:
            raise self.fails[-1]
        self.stored.append(stored)

    def incoming(self) -> list[Path]:
        """Files that are arriving, or were left behind."""
        return list((self.spool.root / "incoming").glob("*/*"))

    def associate(self, called: str = "PACS_NODE", calling: str = "MODALITY") -> Any:
        """An association that proposes everything, each SOP class with one context per transfer syntax."""
        ae = AE(ae_title=calling)
        ae.maximum_pdu_size = 0
        contexts = [build_context(VERIFICATION)]
        for sop_class in list(STORAGE_SOP_CLASSES)[:4]:
            contexts += [build_context(sop_class, UID(syntax)) for syntax in TRANSFER_SYNTAXES]
        return ae.associate("127.0.0.1", self.port, contexts=contexts, ae_title=called)


def changed(config: Config, **receive: Any) -> Config:
    """The configuration with other values under ``receive``."""
    values = config.model_dump(by_alias=True)
    values["receive"].update(receive)
    return Config.model_validate(values)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Start]:
    """``start(**receive)`` starts a receiver with these values of the section ``receive``."""
    started: list[Running] = []

    def run(root: Path | None = None, **receive: Any) -> Running:
        settings = {"host": "127.0.0.1", "port": free_port(), "min_free_disk_mb": 1, **receive}
        config = Config.model_validate(
            {"node": {"ae_title": "PACS_NODE", "state_dir": tmp_path}, "receive": settings}
        )
        spool = Spool(root or tmp_path / "spool")
        running = Running(None, spool, config)  # type: ignore[arg-type]
        running.receiver = Receiver(config, spool, running.on_stored)
        running.receiver.start()
        started.append(running)
        return running

    yield run
    for running in started:
        running.receiver.stop(grace_seconds=1)


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver with the default configuration."""
    return start()
