"""The page of a demonstration: one HTML file that needs nothing else and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from pacs_node import __version__
from pacs_node.demo import chart
from pacs_node.demo.outcome import ImageOutcome, NotAnalysed, Outcome
from pacs_node.demo.pictures import Picture, bone_image, picture, viewer_image
from pacs_node.dicom.identity import is_own_result
from pacs_node.dicom.report_text import report_text
from pacs_node.errors import ModelError
from pacs_node.infer import Card, Catalog
from pacs_node.tasks import Task
from pacs_node.words import counted

log = logging.getLogger(__name__)

REPORT_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage)
TITLES = {
    Task.BONE_SUPPRESSION: "Bone-suppressed",
    Task.RESTORATION: "Restored",
    Task.ANOMALY: "Anomaly heatmap",
}
METER_WIDTH = 240.0


@dataclass(frozen=True)
class Panel:
    """One picture of an image with its heading, or why it is missing."""

    name: str
    title: str
    caption: str
    picture: Picture | None
    missing: str = ""


@dataclass(frozen=True)
class Score:
    """One finding with the geometry of its meter (0 to METER_WIDTH)."""

    name: str
    score: float
    threshold: float
    decision: str
    meaning: str
    at: float
    threshold_at: float


@dataclass(frozen=True)
class Making:
    """How one result was made."""

    task: str
    model: str
    seconds: float
    parameters: str


@dataclass
class Section:
    """Everything that the page shows of one image."""

    number: int
    title: str
    facts: str
    refused: NotAnalysed | None
    panels: list[Panel] = field(default_factory=list)
    compare: list[Panel] = field(default_factory=list)
    heatmap: Panel | None = None
    scores: list[Score] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    making: list[Making] = field(default_factory=list)


@dataclass(frozen=True)
class ModelRow:
    """A model as the results name it, with what its card says if it is the installed one."""

    task: str
    name: str
    version: str
    digest: str
    how: str
    summary: str
    intended_use: str
    limits: Sequence[str]


def render(outcome: Outcome) -> str:
    """The page as HTML. What cannot be shown is named on it; nothing of a received object is trusted."""
    environment = Environment(
        loader=PackageLoader("pacs_node.demo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = (environment.get_template(name).render() for name in ("page.css", "page.js"))
    sections = [_section(image, outcome) for image in outcome.images]
    return environment.get_template("page.html").render(
        outcome=outcome,
        version=__version__,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores",
        sections=sections,
        reports=_reports(outcome),
        models=_models(outcome),
        chart=chart.timeline(outcome),
        lanes=chart.groups(outcome),
        legend=chart.LEGEND,
        geometry=chart,
        meter_width=METER_WIDTH,
        style=Markup(style),  # noqa: S704  our own file, without values
        script=Markup(script),  # noqa: S704  our own file, without values
        policy="default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}",
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


# -- one image -----------------------------------------------------------------------------------------------


def _section(image: ImageOutcome, outcome: Outcome) -> Section:
    original = _read(outcome.received.get(image.sop_instance_uid))
    section = Section(image.number, image.file, _facts(original), image.refused, warnings=image.warnings)
    results = {
        task: _read(outcome.received.get(str(done.get("sop_instance_uid", ""))))
        for task, done in image.tasks.items()
    }
    shown = _panel("original", "Original", "as received at the archive", original, image.number)
    section.panels.append(shown)
    if image.refused:
        return section
    for task in (Task.BONE_SUPPRESSION, Task.RESTORATION):
        panel = _task_panel(task, image, results.get(task))
        section.panels.append(panel)
        if panel.picture and shown.picture:
            section.compare.append(panel)
    section.panels.append(_bone_panel(original, results.get(Task.BONE_SUPPRESSION), image.number))
    section.heatmap = _task_panel(Task.ANOMALY, image, results.get(Task.ANOMALY))
    anomaly = image.tasks.get(Task.ANOMALY, {})
    section.scores = [_score(finding, anomaly) for finding in anomaly.get("findings", [])]
    section.making = [_making(task, done) for task, done in image.tasks.items()]
    section.problems = [
        f"{task.value.replace('_', ' ')} {done['status'].replace('_', ' ')}: {done.get('error', '')}"
        for task, done in image.tasks.items()
        if done["status"] != "done"
    ]
    return section


def _task_panel(task: Task, image: ImageOutcome, result: Dataset | None) -> Panel:
    done = image.tasks.get(task)
    if done is None:
        return Panel(task.value, TITLES[task], "", None, "this task was not asked for")
    if done["status"] != "done":
        return Panel(task.value, TITLES[task], "", None, str(done.get("error") or done["status"]))
    caption = ", ".join(filter(None, (_sampling(done), f"{done['seconds']:.1f} s")))
    return _panel(task.value, TITLES[task], caption, result, image.number)


def _panel(name: str, title: str, caption: str, ds: Dataset | None, number: int) -> Panel:
    if ds is None:
        return Panel(name, title, caption, None, "the archive has not received it")
    try:
        return Panel(name, title, caption, picture(viewer_image(ds), f"Image {number}, {title.lower()}"))
    # A user's own file may be anything; pydicom and its decoders raise many kinds of errors on it.
    except Exception as error:  # noqa: BLE001
        log.debug("cannot be shown: %s", type(error).__name__)
        return Panel(name, title, caption, None, f"the pixels cannot be decoded ({type(error).__name__})")


def _bone_panel(original: Dataset | None, suppressed: Dataset | None, number: int) -> Panel:
    title = "Bone image"
    if original is None or suppressed is None:
        return Panel("bone", title, "", None, "there is no bone-suppressed image to compare with")
    try:
        image, gain = bone_image(original, suppressed)
    except ValueError as error:
        return Panel("bone", title, "", None, str(error))
    caption = f"original minus suppressed, contrast × {gain:.0f}"
    return Panel("bone", title, caption, picture(image, f"Image {number}, difference image of the bones"))


def _facts(ds: Dataset | None) -> str:
    if ds is None:
        return ""
    view = f"chest {ds.get('ViewPosition')}" if ds.get("ViewPosition") in ("PA", "AP") else ""
    matrix = f"{ds.get('Rows')} × {ds.get('Columns')}" if ds.get("Rows") else ""
    bits = f"{ds.get('BitsStored')} bit" if ds.get("BitsStored") else ""
    syntax = ds.file_meta.TransferSyntaxUID.name if "TransferSyntaxUID" in ds.file_meta else ""
    facts = (ds.get("Modality"), view, ds.get("PhotometricInterpretation"), matrix, bits, syntax)
    return " · ".join(str(fact) for fact in facts if fact)


def _score(finding: dict[str, Any], done: dict[str, Any]) -> Score:
    score, threshold = float(finding["score"]), float(finding["threshold"])
    low = min(0.0, score, threshold)
    card = _card(Task.ANOMALY, done["model"]["digest"])
    meaning = card.anomaly.score_meaning if card and card.anomaly else ""
    span = max(score, threshold, 1e-9) * 1.25 - low
    return Score(
        str(finding["name"]), score, threshold, str(finding["decision"]), meaning,
        (score - low) / span * METER_WIDTH, (threshold - low) / span * METER_WIDTH,
    )  # fmt: skip


def _making(task: Task, done: dict[str, Any]) -> Making:
    model = done.get("model", {})
    said = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in done.get("parameters", {}).items()
        if isinstance(value, str | int | float)
    ]
    name = f"{model.get('name', '')} {model.get('version', '')}"
    return Making(task.value.replace("_", " "), name, float(done.get("seconds", 0)), ", ".join(said))


def _sampling(done: dict[str, Any]) -> str:
    """Sampler and steps of a result, as far as it has them."""
    parameters = done.get("parameters", {})
    said = [str(parameters["sampler"]).upper()] if parameters.get("sampler") else []
    if steps := parameters.get("steps"):
        said.append(counted(steps, "step"))
    return " ".join(said)


def _read(path: Path | None) -> Dataset | None:
    return None if path is None else dcmread(path)


# -- the study -----------------------------------------------------------------------------------------------


def _reports(outcome: Outcome) -> list[str]:
    """The node's reports among what was received, as text, in the order of arrival."""
    texts = []
    for path in outcome.received.values():
        ds = dcmread(path, stop_before_pixels=True)
        if ds.SOPClassUID in REPORT_CLASSES and is_own_result(ds):
            texts.append(report_text(ds))
    return texts


def _models(outcome: Outcome) -> list[ModelRow]:
    rows: dict[tuple[str, str, str], ModelRow] = {}
    for image in outcome.images:
        for task, done in image.tasks.items():
            model = done.get("model")
            if not model:
                continue
            parameters = done.get("parameters", {})
            card = _card(task, model["digest"])
            how = [_sampling(done)]
            how += [f"{key} {parameters[key]}" for key in ("provider", "precision") if parameters.get(key)]
            rows[(task, model["name"], model["digest"])] = ModelRow(
                task.value.replace("_", " "), model["name"], model["version"], model["digest"],
                ", ".join(filter(None, how)),
                card.summary if card else "", card.intended_use if card else "",
                card.limits.texts if card and card.limits else (),
            )  # fmt: skip
    return list(rows.values())


def _card(task: Task, digest: str) -> Card | None:
    try:
        card = Catalog(()).card(task)
    except ModelError:
        return None  # the page then says only what the results say
    return card if card.digest == digest else None
