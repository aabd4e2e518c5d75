"""A folder as destination: ``<path>/<Study Instance UID>/<SOP Instance UID>.dcm``, each file whole or not
there.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pacs_node.deliver import Report, silent
from pacs_node.deliver.failures import Failure, Failures
from pacs_node.deliver.objects import FileToSend, NotSendableError, read_file
from pacs_node.errors import DeliveryError
from pacs_node.files import atomic_writer, fsync_folder, make_folder

if TYPE_CHECKING:
    from pacs_node.config.model import FolderDestination as FolderSettings

log = logging.getLogger(__name__)

#: Digits and dots, not a dot first: such a name stays within its folder.
_SAFE_UID = re.compile(r"[0-9][0-9.]{0,63}\Z")


class FolderDestination:
    """Delivers by writing files. The same file again changes nothing; other content is kept beside the
    first.
    """

    def __init__(self, name: str, settings: FolderSettings) -> None:
        self.name = name
        self._root = Path(settings.path)

    def send(self, paths: Sequence[Path], report: Report = silent) -> None:
        failures = Failures(self.name, report)
        for path in paths:
            try:
                self._write(read_file(path))
            except NotSendableError as error:
                failures.add(path, Failure(path.name, str(error), transient=False))
            except OSError as error:
                failures.add(
                    path, Failure(path.name, f"{self._root}: {error.strerror or error}", transient=True)
                )
            else:
                failures.taken(path)
        failures.raise_if_any()

    def echo(self) -> str:
        try:
            self._make_root()
        except OSError as error:
            raise DeliveryError(self.name, f"{self._root}: {error.strerror or error}") from error
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise DeliveryError(self.name, f"{self._root} is not writable for this account")
        return f"{self._root}: {shutil.disk_usage(self._root).free >> 20} MB free"

    def _make_root(self) -> None:
        # Its parent is not made: where it is a share that is not mounted, the files would go to the wrong
        # disk.
        if not self._root.is_dir():
            self._root.mkdir(exist_ok=True)  # another delivery may come first
            fsync_folder(self._root.parent)

    def _write(self, file: FileToSend) -> None:
        folder = self._root / _name(file.study_instance_uid)
        target = folder / f"{_name(file.sop_instance_uid)}.dcm"
        self._make_root()
        make_folder(folder)
        if target.exists() and not filecmp.cmp(file.path, target, shallow=False):
            with file.path.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
            target = target.with_name(f"{target.stem}-{digest[:12]}.dcm")
            log.warning(
                "%s: other content is there under this UID; kept as %s", file.sop_instance_uid, target.name
            )
        if not target.exists():
            with file.path.open("rb") as source, atomic_writer(target) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def _name(uid: str) -> str:
    """A file name for a UID: itself if it is one, its hash otherwise."""
    return uid if _SAFE_UID.match(uid) else hashlib.sha256(uid.encode()).hexdigest()[:32]
