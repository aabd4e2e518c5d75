"""How fast objects are taken in, side by side with DCMTK's storescp: the same sender, files and disk, in
turns.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pydicom

from pacs_node.phantom.dicom import Acquisition, study, uid

OBJECTS, ROUNDS = 40, 5


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _files(folder: Path, repeats: int) -> None:
    """``repeats`` DX images of 8 MB, alike but for their UIDs."""
    (image,) = study(1, (Acquisition(rows=2048, columns=2048, bits=12),))
    for number in range(repeats):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid("benchmark", number)
        image.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


def _send(files: Path, port: int, called: str, senders: int) -> float:
    """Seconds that ``senders`` dcmsend processes, each with its share of the files, take together."""
    paths = sorted(map(str, files.iterdir()))
    command = ["dcmsend", "-aec", called, "-aet", "BENCH", "127.0.0.1", str(port)]
    started = time.perf_counter()
    processes = [
        subprocess.Popen([*command, *paths[i::senders]], stdout=subprocess.DEVNULL) for i in range(senders)
    ]
    if any(p.wait() for p in processes):
        raise RuntimeError("dcmsend failed")
    return time.perf_counter() - started


def _node(folder: Path, port: int) -> list[str]:
    configuration = folder / "pacs-node.yaml"
    configuration.write_text(
        f"node: {{ae_title: NODE, state_dir: {folder / 'state'}}}\n"
        f"receive: {{host: 127.0.0.1, port: {port}, min_free_disk_mb: 1}}\n"
        f"destinations: {{out: {{type: folder, path: {folder / 'out'}}}}}\n"
        "rules: [{name: keep, when: {Modality: DX}, tasks: [], destinations: [out], "
        "forward_original: true}]\n",
        encoding="utf-8",
    )
    return [sys.executable, "-m", "pacs_node.pipeline.receiver", "--config", str(configuration)]


def _storescp(folder: Path, port: int) -> list[str]:
    (folder / "in").mkdir()
    return ["storescp", "-aet", "NODE", "--fork", "-pdu", "131072", "-od", str(folder / "in"), str(port)]


def table() -> str:
    """Seconds for OBJECTS images, median of ROUNDS, one sender and four at once; the node fsyncs, storescp
    does not.
    """
    peers = {"pacs-node": _node, "DCMTK storescp": _storescp}
    seconds: dict[tuple[str, int], list[float]] = {(peer, n): [] for peer in peers for n in (1, 4)}
    with tempfile.TemporaryDirectory(prefix="pacs-node-bench-") as name:
        files = Path(name) / "files"
        files.mkdir()
        _files(files, OBJECTS)
        megabytes = sum(p.stat().st_size for p in files.iterdir()) / 1e6
        header = pydicom.dcmread(next(files.iterdir()), stop_before_pixels=True)
        for _ in range(ROUNDS):
            for (peer, senders), found in seconds.items():
                folder, port = Path(name) / "peer", _port()
                folder.mkdir()
                with subprocess.Popen(peers[peer](folder, port), stderr=subprocess.DEVNULL) as process:
                    _wait(port, process)
                    time.sleep(2)  # until the node has loaded its job database, as it would have long before
                    found.append(_send(files, port, "NODE", senders))
                    process.terminate()
                shutil.rmtree(folder)
    lines = [
        f"Receiving {OBJECTS} objects of {header.Rows} x {header.Columns} ({megabytes:.0f} MB) "
        f"from dcmsend, median of {ROUNDS}"
        " rounds in turns:",
        "",
        "| receiver | senders | MB/s | objects/s | time, relative to storescp |",
        "|---|---|---|---|---|",
    ]
    for (peer, senders), found in seconds.items():
        time_taken = median(found)
        ratio = time_taken / median(seconds["DCMTK storescp", senders])
        lines.append(
            f"| {peer} | {senders} | {megabytes / time_taken:.0f} | {OBJECTS / time_taken:.1f} | "
            f"{ratio:.2f} |"
        )
    return "\n".join(lines)
