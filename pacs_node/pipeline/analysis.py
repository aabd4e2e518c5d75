"""One image through the tasks: open, refuse or analyse, encode, check, write. The command line and the jobs
share it.

Everything that it makes is decided by the file, the model and the settings: the sampler's seed comes from the
SOP Instance UID and the model's digest, the UIDs and times of results from the source. Made again, it is the
same.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset

from pacs_node.conditions import Conditions
from pacs_node.config import Config
from pacs_node.dicom.derivation import Derivation
from pacs_node.dicom.derived import derived_image
from pacs_node.dicom.files import encode, open_dicom
from pacs_node.dicom.heatmap import heatmap_image
from pacs_node.dicom.pixels import Radiograph, conditions, read_radiograph
from pacs_node.errors import PacsNodeError, Refused
from pacs_node.files import atomic_write
from pacs_node.infer import AnomalyResult, Card, Catalog, Finding, ImageResult, Progress, Settings, load
from pacs_node.infer.likeness import check_chest
from pacs_node.pipeline.node import DONE, FAILED, NOT_ATTEMPTED
from pacs_node.tasks import Task

if TYPE_CHECKING:
    from pacs_node.infer.running import Model

log = logging.getLogger(__name__)

_MB = 1 << 20


@dataclass(frozen=True)
class Source:
    """An image that can be analysed: its data set, its pixels, and what its header says of the patient."""

    dataset: Dataset
    radiograph: Radiograph
    conditions: Conditions

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID."""
        return str(self.dataset.SOPInstanceUID)


def open_source(path: Path, config: Config) -> Source:
    """Read and decode one file. Raises Refused with the reason why it cannot be analysed, OSError."""
    dataset = open_dicom(path, config.receive.max_object_mb * _MB)
    radiograph = read_radiograph(dataset, config.limits.max_pixels)
    if config.limits.check_content:
        check_chest(radiograph.image)
    return Source(dataset, radiograph, conditions(dataset))


def seed_of(sop_instance_uid: str, model_digest: str) -> int:
    """The sampler's seed, 0 to 2**31 - 1: another image or model has another one, a re-run the same."""
    digest = hashlib.sha256(f"{sop_instance_uid} {model_digest}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


class Analyst:
    """Runs tasks as a configuration says. Models are loaded when they are first used and stay loaded."""

    def __init__(self, config: Config) -> None:
        """A folder of models or a card that is wrong is logged; what asks for that model will fail."""
        self.config = config
        self.catalog = Catalog(config.models.folders)
        for problem in self.catalog.problems:
            log.warning("%s", problem)

    def card(self, task: Task) -> Card:
        """The card of the model that is configured for ``task``. Raises ModelError."""
        return self.catalog.card(task, self.config.models.name_for(task))

    def settings(self, task: Task) -> Settings:
        """How the configuration wants that task's model to run."""
        return Settings.configured(self.config, task)

    def model(self, task: Task) -> Model:
        """The model of ``task``, loaded. Raises ModelError."""
        return load(self.card(task), self.settings(task))

    def attempt(
        self,
        source: Source,
        task: Task,
        output: Path,
        created: datetime | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Do one task on one image, write its result to ``output``, and say how it went (JSON).

        ``created``: when the image was received, for the times in the result; without it the source's own are
        taken. ``status`` is "done", "failed" (with ``error``) or "not_attempted" (the model refuses such an
        image); a task that fails says nothing about the others. Raises OSError if the result cannot be
        written.
        """
        started = time.perf_counter()
        outcome: dict[str, Any] = {"task": task.value}
        try:
            card = self.card(task)
            outcome["model"] = {"name": card.name, "version": card.version, "digest": card.digest}
            outcome["qualification"] = card.qualification
            outcome |= self._result(source, task, card, output, created, progress)
        except OSError:
            raise  # of the disk, not of the image: the whole job fails, and can be tried again
        except Refused as refused:
            outcome |= {"status": NOT_ATTEMPTED, "error": str(refused), "code": refused.code}
        except PacsNodeError as error:
            outcome |= {"status": FAILED, "error": str(error)}
        # The task's boundary: what a model or a codec raises on an odd image must not end the other tasks,
        # and is recorded where the reader of the report finds it.
        except Exception as error:
            log.exception("task failed", extra={"task": task.value, "error": type(error).__name__})
            outcome |= {"status": FAILED, "error": f"unexpected {type(error).__name__}: {error}"}
        outcome["seconds"] = round(time.perf_counter() - started, 3)
        return outcome

    def _result(
        self,
        source: Source,
        task: Task,
        card: Card,
        output: Path,
        created: datetime | None,
        progress: Progress | None,
    ) -> dict[str, Any]:
        model = self.model(task)
        seed = seed_of(source.sop_instance_uid, card.digest)
        result = model(source.radiograph.image, source.conditions, seed, progress)
        derivation = Derivation(
            task, card.name, card.version, card.digest, _plain(result.parameters), card.qualification, created
        )
        dataset = _dataset(source, result, derivation)
        atomic_write(output, encode(dataset))
        outcome: dict[str, Any] = {
            "status": DONE,
            "file": output.name,
            "sop_class_uid": str(dataset.SOPClassUID),
            "sop_instance_uid": str(dataset.SOPInstanceUID),
            "series_instance_uid": str(dataset.SeriesInstanceUID),
            "parameters": result.parameters,
            "model_seconds": round(result.seconds, 3),
        }
        if isinstance(result, AnomalyResult):
            outcome["findings"] = [_finding(finding) for finding in result.findings]
        return outcome


def _dataset(source: Source, result: ImageResult | AnomalyResult, derivation: Derivation) -> Dataset:
    if isinstance(result, ImageResult):
        return derived_image(source.dataset, source.radiograph, result.image, derivation)
    heatmap = max(result.findings, key=lambda finding: finding.score / finding.threshold).heatmap
    return heatmap_image(source.dataset, source.radiograph, heatmap, result.findings, derivation)


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if isinstance(value, str | int | float | bool)}


def _finding(finding: Finding) -> dict[str, Any]:
    code = finding.code
    return {
        "name": finding.name,
        "code": None
        if code is None
        else {"value": code.value, "scheme": code.scheme, "meaning": code.meaning},
        "score": finding.score,
        "threshold": finding.threshold,
        "decision": finding.decision,
    }
