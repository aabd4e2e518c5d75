"""One run of the demonstration: node and archive up, the study sent and followed, the page written."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from pacs_node.demo.destination import AE_TITLE as ARCHIVE
from pacs_node.demo.destination import Destination
from pacs_node.demo.node import AE_TITLE, NodeFailedError, RunningNode
from pacs_node.demo.outcome import ImageOutcome, NotAnalysed, Outcome
from pacs_node.demo.page import render
from pacs_node.demo.progress import Display, say
from pacs_node.demo.send import sender
from pacs_node.demo.watch import Watcher
from pacs_node.dicom.files import read_header
from pacs_node.errors import ConfigurationError, ModelError, Problem, Refused
from pacs_node.infer import Catalog
from pacs_node.phantom import dicom as phantom
from pacs_node.pipeline.files import collect
from pacs_node.tasks import Task
from pacs_node.words import counted

PAGE, LOG, MARKER, SENT, RECEIVED = "index.html", "node.log", ".pacs-node-demo", "sent", "received"
SEED = 3
POLL_SECONDS, STALL_SECONDS = 0.25, 600.0
MAX_FILES = 200


def run(paths: Sequence[Path], out: Path, console: Console) -> Outcome:
    """Run it on ``paths`` (none: the synthetic study) and write ``out``/index.html; what was seen.

    Raises ConfigurationError for paths or an output folder that cannot be used, NodeFailedError, OSError.
    """
    # What pydicom says of odd values in a user's files comes as refusals and warnings of the node.
    warnings.simplefilter("ignore")
    files = collect(paths) if paths else []
    if len(files) > MAX_FILES:
        raise ConfigurationError(
            [Problem(str(paths[0]), None, None, "PATH", str(len(files)), "too many files for one page",
                     f"Give at most {MAX_FILES}; pacs-node analyze takes any number")]
        )  # fmt: skip
    prepare(out)
    if not files:
        files = synthetic_study(out / SENT, console)
    outcome = Outcome(not paths, datetime.now().astimezone().isoformat(timespec="seconds"), "")
    ready = _headers(files, outcome)
    if ready:
        _through_the_node(ready, out, outcome, console)
    else:
        write_page(out, outcome)
    return outcome


def write_page(out: Path, outcome: Outcome) -> None:
    """Write ``out``/index.html."""
    (out / PAGE).write_text(render(outcome), encoding="utf-8")


def prepare(out: Path) -> None:
    """Make ``out``, without what an earlier run left there; ConfigurationError if it holds anything else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
        problem = Problem(
            str(out), None, None, "--out", "", "this is not an empty folder, and no demonstration made it",
            "Name another folder; it is made if need be",
        )  # fmt: skip
        raise ConfigurationError([problem])
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    for folder in (SENT, RECEIVED):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in (PAGE, LOG):
        (out / file).unlink(missing_ok=True)


def synthetic_study(folder: Path, console: Console) -> list[Path]:
    """Write the phantom's study, as a modality would have it."""
    with console.status("generating a synthetic study"):
        folder.mkdir()
        files = []
        for number, ds in enumerate(phantom.study(SEED), 1):
            files.append(folder / f"{number}-{ds.Modality.lower()}.dcm")
            ds.save_as(files[-1], enforce_file_format=True)
    say(console, f"synthetic study: {len(files)} images in {folder}")
    return files


def _headers(files: Sequence[Path], outcome: Outcome) -> list[Path]:
    """The files that can be sent, each with its place in ``outcome``; the others are noted there."""
    ready: list[Path] = []
    first: dict[str, Path] = {}
    for path in files:
        try:
            uid = str(read_header(path).SOPInstanceUID)
        except Refused as refused:
            outcome.not_sent.append((path.name, NotAnalysed(refused.reason, refused.remedy)))
            continue
        if uid in first:
            reason = NotAnalysed(f"it has the same SOP Instance UID as {first[uid].name}")
            outcome.not_sent.append((path.name, reason))
            continue
        first[uid] = path
        ready.append(path)
        outcome.images.append(ImageOutcome(len(ready), path.name, uid))
    return ready


def _through_the_node(files: list[Path], out: Path, outcome: Outcome, console: Console) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pacs-node-demo-") as folder,
        Destination(out / RECEIVED) as archive,
    ):
        with console.status("starting the node"):
            node = RunningNode(Path(folder), out / LOG, ARCHIVE, archive.port)
            node.start()
        try:
            at = f"node {AE_TITLE} on 127.0.0.1:{node.port}, archive {ARCHIVE} on 127.0.0.1:{archive.port}"
            say(console, at)
            _send_and_follow(files, node, outcome, console)
            outcome.received = archive.received()
            node.terminate()  # while it ends, the page is made
            write_page(out, outcome)
        finally:
            with console.status("stopping the node"):
                node.stop()


def _send_and_follow(files: list[Path], node: RunningNode, outcome: Outcome, console: Console) -> None:
    outcome.sender, send = sender()
    begun = time.time()
    say(console, f"sending {len(files)} images with {outcome.sender}")
    failures = {failure.path: failure.reason for failure in send(files, node.port, AE_TITLE)}
    by_file = dict(zip(files, outcome.images, strict=True))
    for path, reason in failures.items():
        outcome.images.remove(by_file[path])
        outcome.not_sent.append((path.name, NotAnalysed(f"the node did not take it: {reason}")))
    watcher = Watcher(node.config_path, outcome.images, begun)
    try:
        with Display(console, _sampling()) as display:
            _follow(watcher, node, display, begun)
    finally:
        watcher.close()
    outcome.seconds = time.time() - begun
    outcome.study_bars, outcome.failures = watcher.study_bars, watcher.failures


def _follow(watcher: Watcher, node: RunningNode, display: Display, begun: float) -> None:
    """Until everything is done; raises NodeFailedError if the node dies or nothing happens for long."""
    last, changed = "", time.monotonic()
    while True:
        complete = watcher.poll(time.time())
        display.show(watcher.seen, time.time() - begun)
        if complete:
            return
        node.check()
        picture = repr([[p.state for p in seen.progress.values()] for seen in watcher.seen])
        if picture != last:
            last, changed = picture, time.monotonic()
        if time.monotonic() - changed > STALL_SECONDS:
            raise NodeFailedError(
                f"nothing has happened for {STALL_SECONDS:.0f} s", node.log, "See what its log says"
            )
        time.sleep(POLL_SECONDS)


def _sampling() -> dict[str, str]:
    """By task, how its model samples ("20 ddim steps"); what is wrong with a model shows in its results."""
    said: dict[str, str] = {}
    try:
        cards = [Catalog(()).card(task) for task in (Task.BONE_SUPPRESSION, Task.RESTORATION)]
    except ModelError:
        return said
    for card in cards:
        if card.sampler is not None:
            said[card.task.value] = counted(card.sampler.steps, f"{card.sampler.name} step")
    return said
