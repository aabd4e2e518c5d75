"""Deliver: files go to a DICOM node, a DICOMweb server, an Orthanc or a folder. How they came about is not
known here.

A destination says once what became of a file and never tries again by itself: retries are the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pacs_node.commitment import Ledger
    from pacs_node.config.destinations import DicomDestination as DicomSettings
    from pacs_node.config.destinations import OrthancDestination as OrthancSettings
    from pacs_node.config.model import Destination as DestinationSettings

#: Called after each file with its path and None, or what went wrong.
Report = Callable[[Path, str | None], None]


def silent(path: Path, failure: str | None) -> None:
    """The report that tells nobody."""


class Destination(Protocol):
    """Somewhere that files can go. Safe to use from several threads at once."""

    name: str

    def send(self, paths: Sequence[Path], report: Report = silent) -> None:
        """Deliver Part 10 files; on return the destination has taken all of them.

        A file that fails does not keep the others from being sent. Raises DeliveryError naming each file's
        SOP Instance UID and reason; it is transient if trying again can help for at least one of them.
        """

    def echo(self) -> str:
        """Ask whether the destination is there and would take us; what answered. Raises DeliveryError."""


class Committing(Destination, Protocol):
    """A destination that can be asked to commit to what it has taken (PS3.4 annex J)."""

    def request_commitment(self, path: Path, ledger: Ledger) -> str:
        """Ask for storage commitment of one file that it has taken; the Transaction UID to look for in
        ``ledger``.

        The report may be there when this returns, come later, or never. Raises DeliveryError if the request
        is not taken, OSError if it cannot be noted.
        """

    def look_for_report(self, transaction: str, ledger: Ledger) -> bool:
        """Fetch the report into ``ledger`` if it does not come by itself; false if none will ever come."""


def open_destination(name: str, settings: DestinationSettings, ae_title: str) -> Destination:
    """The destination that the configuration calls ``name``; ``ae_title`` is this node's own.

    Nothing is connected yet. Only what the kind of destination needs is imported.
    """
    if settings.type == "dicom" or settings.type == "orthanc":
        return open_committing(name, settings, ae_title)
    if settings.type == "stow":
        from pacs_node.deliver.stow import StowDestination

        return StowDestination(name, settings)
    from pacs_node.deliver.folder import FolderDestination

    return FolderDestination(name, settings)


def open_committing(name: str, settings: DicomSettings | OrthancSettings, ae_title: str) -> Committing:
    """As ``open_destination``, of a kind that can commit."""
    if settings.type == "dicom":
        from pacs_node.deliver.dimse import DicomDestination

        return DicomDestination(name, settings, ae_title)
    from pacs_node.deliver.orthanc import OrthancDestination

    return OrthancDestination(name, settings)
