"""What made a result: which task, which model in which version, with which settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from pydicom.dataset import Dataset

from pacs_node.dicom import uids
from pacs_node.dicom.codes import CodedName
from pacs_node.tasks import Task

Scalar = str | int | float | bool | None

TITLES: dict[Task, str] = {
    Task.BONE_SUPPRESSION: "AI bone suppression",
    Task.RESTORATION: "AI restoration",
    Task.ANOMALY: "AI anomaly detection",
}
"""How each task is called in Series Description, Derivation Description and on images."""

NOT_FOR_DIAGNOSIS = "not for diagnosis"
"""Stands in every Series Description and legend."""

CONTENT_PARAMETERS = ("sampler", "steps", "seed", "eta")
"""The parameters that make another result of the same source and model, and so another SOP Instance UID.

The provider and the time taken are recorded too, but they do not make another object.
"""


@dataclass(frozen=True)
class Derivation:
    """Task, model and settings of a result.

    ``model_digest`` is the model's ``sha256:…``; ``parameters`` are plain values (sampler, steps, seed,
    provider, threshold …). ``created`` is when the work was ordered or received: taken from the job's record
    and not from the clock, it makes a re-run the same bytes. Without it, results carry the source's content
    date and time.
    """

    task: Task
    model_name: str
    model_version: str
    model_digest: str
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    qualification: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    created: datetime | None = None

    @property
    def title(self) -> str:
        """The task in words."""
        return TITLES[self.task]

    @property
    def revision(self) -> str:
        """What of the settings makes another result, as canonical text; empty when there are none."""
        settings = {key: self.parameters[key] for key in CONTENT_PARAMETERS if key in self.parameters}
        return json.dumps(settings, sort_keys=True) if settings else ""

    def instance_uid(self, source: Dataset) -> str:
        """SOP Instance UID of this result of ``source``."""
        return uids.instance(str(source.SOPInstanceUID), self.task, self.model_digest, self.revision)

    def series_uid(self, source: Dataset) -> str:
        """Series Instance UID of this result of ``source``."""
        return uids.series(str(source.SeriesInstanceUID), self.task, self.model_digest)

    def in_words(self) -> str:
        """One sentence: what was done, by which model, with which settings; ASCII, no patient data."""
        settings = ", ".join(f"{key} {value}" for key, value in self.parameters.items() if value is not None)
        text = f"{self.title} by model {self.model_name} {self.model_version} ({self.model_digest[:23]})"
        return ascii_text(f"{text}: {settings}" if settings else text)


class Finding(Protocol):
    """One thing that a model evaluated on an image.

    ``decision`` is abnormal/normal for how the image compares with normal ones, present/absent for a named
    finding; ``score`` and ``threshold`` are on the model's own scale.
    """

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> CodedName | None: ...
    @property
    def score(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def decision(self) -> str: ...


def ascii_text(text: str) -> str:
    """``text`` with whatever is not printable ASCII replaced: fits every Specific Character Set."""
    plain = text.encode("ascii", "replace").decode().replace("\\", "/")
    return "".join(c if c.isprintable() else " " for c in plain)
