"""``python -m export ACTION TASK``: from radiographs to a model folder with its card."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from pacs_node.errors import PacsNodeError

TASKS = ("bone_suppression", "restoration", "anomaly")
ACTIONS = {
    "pairs": "list the pairs that training would take, and everything that is wrong with the data",
    "project": "simulate dual-energy pairs from a CT with labelled bones, to train with",
    "train": "train or go on training; a checkpoint each minute",
    "adapt": "turn a model into a site's own by a handful of its pairs, measured on those left out",
    "convert": "turn published checkpoints into a model folder, without running code from them",
    "onnx": "write the ONNX files and the card from the checkpoint, parity with torch enforced",
    "evaluate": "measure the shipped files through the runtime; figures go into the card",
}


def parser() -> argparse.ArgumentParser:
    """Each task's actions are the functions of these names in ``export.<task>.command``; its ``options``, if
    it has any, adds what only that task takes.
    """
    outer = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        epilog="example: python -m export train anomaly --minutes 40 --threads 2 && "
        "python -m export onnx anomaly && python -m export evaluate anomaly",
    )
    actions = outer.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in ACTIONS.items():
        tasks = actions.add_parser(action, help=text, description=text).add_subparsers(
            dest="task", required=True, metavar="TASK"
        )
        for task in TASKS:
            command = importlib.import_module(f"export.{task}.command")
            if hasattr(command, action):
                one = tasks.add_parser(
                    task,
                    aliases=[task.replace("_", "-")] if "_" in task else [],
                    help=text,
                    description=text,
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                )
                common(action, one)
                getattr(command, "options", lambda action, one: None)(action, one)
    return outer


def common(action: str, one: argparse.ArgumentParser) -> None:
    """What every task takes."""
    one.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the training data")
    one.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints, caches, pictures")
    one.add_argument("--models", type=Path, default=Path("onnx_models"), help="folder of model folders")
    one.add_argument("--threads", type=int, default=0, help="processor threads of torch, 0 for its choice")
    if action == "train":
        one.add_argument("--minutes", type=float, default=60, help="time to train, on top of what was")
        one.add_argument("--iterations", type=int, help="stop at this iteration even before that")
    elif action == "onnx":
        one.add_argument("--version", default="1.0.0", help="version of the model, for the card")


def main(argv: list[str] | None = None) -> None:
    """Runs one action of one task; a fault of its input ends it with one message and exit code 1."""
    arguments = parser().parse_args(argv)
    arguments.task = arguments.task.replace("-", "_")
    command = importlib.import_module(f"export.{arguments.task}.command")
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    try:
        getattr(command, arguments.action)(arguments)
    except PacsNodeError as error:
        sys.exit(f"python -m export {arguments.action} {arguments.task}: {error}")


if __name__ == "__main__":
    main()
