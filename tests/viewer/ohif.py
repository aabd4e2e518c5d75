"""OHIF as npm has it, prebuilt: fetched once, checked against its pinned hash, kept under .cache/."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, VERSION = "@ohif/app", "3.13.2"
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""Of the package's file, as ``npm view @ohif/app@3.13.2 dist.integrity`` gives it."""


def built(npm: str) -> Path:
    """The folder with OHIF's index.html. Raises RuntimeError if it cannot be fetched, or is not what is
    pinned."""
    kept = ROOT / ".cache" / f"ohif-{VERSION}"
    if not (kept / "index.html").is_file():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix="ohif-") as name:
            unpacked = _unpack(_fetch(npm, Path(name)), Path(name))
            try:
                unpacked.rename(kept)  # whole or not at all
            except OSError:
                if not (kept / "index.html").is_file():  # else another process was faster
                    raise
    return kept


def _fetch(npm: str, folder: Path) -> Path:
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(folder)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    files = list(folder.glob("*.tgz"))
    if ended.returncode or len(files) != 1:
        raise RuntimeError(f"npm cannot fetch {PACKAGE}@{VERSION}: {ended.stderr[-500:]}")
    with files[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != INTEGRITY:
        raise RuntimeError(f"{PACKAGE}@{VERSION} has the hash {found}, pinned is {INTEGRITY}")
    return files[0]


def _unpack(package: Path, folder: Path) -> Path:
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    package.unlink()
    return folder / "package" / "dist"
