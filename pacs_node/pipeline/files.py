"""Files in, files out: the same analysis as the node's, without a network, a spool or a queue.

Writes, for each input, ``DIR/<SOP Instance UID>/`` with the results, the study's report and ``report.json``.
An input whose UID cannot be a folder's name goes to ``DIR/refused-<16 digits of its SHA-256>/``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydicom.dataset import Dataset

from pacs_node import __version__
from pacs_node.dicom.files import encode, read_header
from pacs_node.dicom.identity import is_own_result
from pacs_node.errors import ConfigurationError, Problem, Refused
from pacs_node.files import atomic_write, make_folder
from pacs_node.pipeline.analysis import Analyst, open_source
from pacs_node.pipeline.node import DONE
from pacs_node.pipeline.reporting import Analysed, study_report_of
from pacs_node.route.scope import out_of_scope
from pacs_node.tasks import Task

REPORT_JSON, REPORT_DCM = "report.json", "report.dcm"


class Watcher(Protocol):
    """Is told how an analysis of files goes on."""

    def begin(self, path: Path, number: int, of: int) -> None:
        """The next file is being worked on."""

    def task(self, task: Task, done: int, of: int) -> None:
        """A task has done so many of its steps."""

    def end(self, path: Path, record: dict[str, Any]) -> None:
        """The file is done, and its report.json written."""


@dataclass
class _Item:
    """One input on its way."""

    path: Path
    folder: Path
    record: dict[str, Any]
    study: str = ""
    header: Dataset | None = None
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    out_of_scope: bool = False


def collect(paths: Sequence[Path]) -> list[Path]:
    """The files that ``paths`` name: each file itself, and every file below a folder except hidden ones and
    DICOMDIR.

    Raises ConfigurationError for a path that does not exist or a folder without files.
    """
    found: list[Path] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(_below(path)) if path.is_dir() else []
        if not files:
            what = "this folder has no files" if path.is_dir() else "there is no such file or folder"
            raise ConfigurationError(
                [Problem(str(path), None, None, "PATH", "", what, "Give DICOM files or folders of them")]
            )
        found += files
    return list(dict.fromkeys(found))


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.name != "DICOMDIR":
            yield path


def analyse_files(
    files: Sequence[Path], output: Path, analyst: Analyst, tasks: Sequence[Task], watcher: Watcher
) -> list[dict[str, Any]]:
    """Analyse every file and write what came of it; the contents of each report.json, in the order of
    ``files``.

    Files of one study are reported together, whatever their order. Raises OSError if the output cannot be
    written.
    """
    make_folder(output)
    taken: dict[str, str] = {}
    items = [_item(path, output, taken) for path in files]
    number = 0
    for study in dict.fromkeys(item.study for item in items):
        together = [item for item in items if item.study == study]
        for item in together:
            number += 1
            watcher.begin(item.path, number, len(items))
            _analyse(item, analyst, tasks, watcher)
        _report(together)
        for item in together:
            text = json.dumps(item.record, indent=2, ensure_ascii=False)
            atomic_write(item.folder / REPORT_JSON, text.encode())
            watcher.end(item.path, item.record)
    return [item.record for item in items]


def succeeded(record: dict[str, Any]) -> bool:
    """Whether nothing of an input was refused and none of its tasks failed."""
    return record["refused"] is None and all(task["status"] == DONE for task in record["tasks"].values())


def _item(path: Path, output: Path, taken: dict[str, str]) -> _Item:
    """Read the header, decide where the results go, and whether the header already says no."""
    digest = _sha256(path)
    record: dict[str, Any] = {
        "node": {"name": "pacs-node", "version": __version__},
        "input": str(path),
        "source": None,
        "refused": None,
        "refused_code": None,
        "tasks": {},
        "report": None,
        "timings": {},
        "warnings": [],
    }
    item = _Item(path, output / f"refused-{digest[:16]}", record)
    try:
        header = read_header(path)
    except Refused as refused:
        _refuse(item, refused)
    else:
        uid = str(header.SOPInstanceUID)
        item.header, item.study = header, str(header.StudyInstanceUID)
        item.folder = output / uid
        record["source"] = {
            "sop_instance_uid": uid,
            "study_instance_uid": item.study,
            "sop_class_uid": str(header.SOPClassUID),
            "rows": _whole(header.get("Rows")),
            "columns": _whole(header.get("Columns")),
            "conditions": None,
        }
        if taken.setdefault(uid, digest) != digest:
            record["warnings"].append("another file has the same SOP Instance UID but other content")
            item.folder = output / f"{uid}-{digest[:12]}"
        if is_own_result(header):
            _refuse(item, Refused("own-result", "a pacs-node made this object, or had a part in making it"))
        elif refusal := out_of_scope(header):
            _refuse(item, refusal)
        item.out_of_scope = record["refused"] is not None
    make_folder(item.folder)
    return item


def _analyse(item: _Item, analyst: Analyst, tasks: Sequence[Task], watcher: Watcher) -> None:
    if item.record["refused"]:
        return
    started = time.perf_counter()
    try:
        source = open_source(item.path, analyst.config)
    except Refused as refused:
        _refuse(item, refused)
        return
    record = item.record
    record["timings"]["read_seconds"] = round(time.perf_counter() - started, 3)
    record["source"]["conditions"] = {
        "age_years": source.conditions.age_years,
        "sex": source.conditions.sex,
        "view": source.conditions.view,
    }
    item.warnings = source.radiograph.warnings
    record["warnings"] += item.warnings
    for task in tasks:
        outcome = analyst.attempt(source, task, item.folder / f"{task}.dcm", progress=_telling(watcher, task))
        item.outcomes.append(outcome)
        record["tasks"][task.value] = {key: value for key, value in outcome.items() if key != "task"}
        record["timings"][f"{task}_seconds"] = outcome["seconds"]
        record["warnings"] += outcome.get("parameters", {}).get("warnings", [])
    record["timings"]["total_seconds"] = round(time.perf_counter() - started, 3)


def _telling(watcher: Watcher, task: Task) -> Callable[[int, int], None]:
    return lambda done, of: watcher.task(task, done, of)


def _report(items: Sequence[_Item]) -> None:
    """The study's report, the same object in the folder of each of its images."""
    report = study_report_of(
        [
            Analysed(
                item.header, item.outcomes, item.record["refused"] or "", item.out_of_scope, item.warnings
            )
            for item in items
            if item.header is not None
        ]
    )
    if report is None:
        return
    for item in items:
        if item.outcomes:
            atomic_write(item.folder / REPORT_DCM, encode(report))
            item.record["report"] = {"file": REPORT_DCM, "sop_instance_uid": str(report.SOPInstanceUID)}


def _refuse(item: _Item, refused: Refused) -> None:
    item.record["refused"], item.record["refused_code"] = str(refused), refused.code


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
