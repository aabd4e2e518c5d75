"""How long each task takes on one image with the shipped models, and what share of it is the model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from pacs_node.config import Config
from pacs_node.phantom.dicom import Acquisition, study
from pacs_node.pipeline.analysis import Analyst, open_source
from pacs_node.tasks import Task

ROUNDS = 5
CONFIG = {"node": {"ae_title": "BENCH", "state_dir": "/nonexistent"}}


def table() -> str:
    """Median of ROUNDS runs after one that loads the model; read = open, decode, check; the rest is in the
    task.
    """
    config = Config.model_validate(CONFIG | {"destinations": {}, "rules": []})
    analyst = Analyst(config)
    lines = [
        f"One DX image of 2140 x 1760, median of {ROUNDS}:",
        "",
        "| task | model | provider | steps | seconds, pixels to file | of these in the model |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="pacs-node-bench-") as name:
        (image,) = study(1, (Acquisition(rows=2140, columns=1760, bits=12),))
        path = Path(name) / "in.dcm"
        image.save_as(path, enforce_file_format=True)
        source = open_source(path, config)
        for task in Task:
            runs = [analyst.attempt(source, task, Path(name) / "out.dcm") for _ in range(ROUNDS + 1)][1:]
            model, parameters = runs[0]["model"], runs[0]["parameters"]
            lines.append(
                f"| {task} | {model['name']} {model['version']} | {parameters['provider']} | "
                f"{parameters.get('steps', '')} | {median(r['seconds'] for r in runs):.2f} | "
                f"{median(r['model_seconds'] for r in runs):.2f} |"
            )
    return "\n".join(lines)
