"""The modality of the demonstration: sends files by C-STORE, with DCMTK's dcmsend or pynetdicom."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.presentation import build_context

AE_TITLE = "MODALITY"
TIMEOUT_SECONDS = 300
Send = Callable[[Sequence[Path], int, str], "list[Failure]"]


@dataclass(frozen=True)
class Failure:
    """A file that was not taken, and what was said."""

    path: Path
    reason: str


def sender() -> tuple[str, Send]:
    """The name of the sender that there is, and its function (files, port, called AE) -> failures."""
    dcmsend = shutil.which("dcmsend")
    if dcmsend is None:
        return "pynetdicom", send_with_pynetdicom
    said = subprocess.run([dcmsend, "--version"], capture_output=True, text=True, timeout=10, check=False)
    version = re.search(r"v(\d+\.\d+\.\d+\S*)", said.stdout)
    return f"DCMTK dcmsend {version[1] if version else ''}".strip(), send_with_dcmtk


def send_with_dcmtk(files: Sequence[Path], port: int, called_ae: str) -> list[Failure]:
    """Send all files with one dcmsend, which goes on after a failure and reports on each file."""
    with tempfile.TemporaryDirectory(prefix="pacs-node-demo-") as folder:
        report = Path(folder) / "report.txt"
        command = ["dcmsend", "--no-halt", "--no-uid-checks", "--decompress-never", "-aet", AE_TITLE]
        command += ["-aec", called_ae, "--create-report-file", str(report), "127.0.0.1", str(port)]
        command += map(str, files)
        try:
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [Failure(path, f"dcmsend took longer than {TIMEOUT_SECONDS} s") for path in files]
        told = _statuses(report.read_text(errors="replace")) if report.exists() else {}
    general = "; ".join(
        line.partition(": ")[2] for line in run.stderr.splitlines() if line[:3] in ("E: ", "F: ")
    )
    failures = []
    for path in files:
        status = told.get(str(path), "" if run.returncode == 0 and told else general or "it was not sent")
        if status and not status.startswith("0x0000"):
            failures.append(Failure(path, status[:400]))
    return failures


def _statuses(report: str) -> dict[str, str]:
    """File name to DIMSE status, from a report of dcmsend."""
    found = {}
    for block in re.split(r"\n\s*\n", report):
        fields = dict(re.findall(r"^(\S[^:\n]*?)\s*: (.*)$", block, re.MULTILINE))
        if "Filename" in fields:
            found[fields["Filename"].strip()] = fields.get("DIMSE Status", "it was not sent").strip()
    return found


def send_with_pynetdicom(files: Sequence[Path], port: int, called_ae: str) -> list[Failure]:
    """Send the files one after the other over associations that propose what each file is."""
    failures = []
    for path in files:
        reason = _send_one(path, port, called_ae)
        if reason:
            failures.append(Failure(path, reason))
    return failures


def _send_one(path: Path, port: int, called_ae: str) -> str:
    try:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        abstract, transfer = UID(meta.MediaStorageSOPClassUID), UID(meta.TransferSyntaxUID)
    except (InvalidDicomError, AttributeError) as error:
        return f"cannot be sent: {error}"
    ae = AE(AE_TITLE)
    ae.requested_contexts = [build_context(abstract, transfer)]
    ae.dimse_timeout = ae.network_timeout = TIMEOUT_SECONDS
    association = ae.associate("127.0.0.1", port, ae_title=called_ae)
    if not association.is_established:
        return "the node did not take the association"
    try:
        status = association.send_c_store(path)
    except ValueError as error:  # no presentation context was accepted
        return f"the node does not take this kind of object: {error}"
    finally:
        association.release()
    code = status.get("Status")
    if code == 0:
        return ""
    comment = status.get("ErrorComment", "")
    return (
        f"the node answered with status 0x{code:04X} {comment}".strip() if code is not None else "no answer"
    )
