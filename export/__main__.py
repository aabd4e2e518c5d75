"""``python -m export train|onnx|evaluate TASK``: from radiographs to a model folder with its card."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

TASKS = ("bone_suppression", "restoration", "anomaly")


def main(argv: list[str] | None = None) -> None:
    """Each task's own steps are in ``export.<task>.command``: train(args), onnx(args), evaluate(args)."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        epilog="example: python -m export train anomaly --minutes 40 --threads 2 && "
        "python -m export onnx anomaly && python -m export evaluate anomaly",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for action, text in {
        "train": "train or go on training; a checkpoint each minute",
        "onnx": "write the ONNX files and the card from the checkpoint, parity with torch enforced",
        "evaluate": "measure the shipped files through the runtime; figures go into the card",
    }.items():
        one = actions.add_parser(action, help=text, description=text)
        one.add_argument("task", choices=TASKS)
        one.add_argument(
            "--data", type=Path, default=Path("../shared/data"), help="folder of the training data"
        )
        one.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints, caches, pictures")
        one.add_argument("--models", type=Path, default=Path("onnx_models"), help="folder of model folders")
        one.add_argument(
            "--threads", type=int, default=0, help="processor threads of torch, 0 for its choice"
        )
        if action == "train":
            one.add_argument("--minutes", type=float, default=60, help="time to train, on top of what was")
            one.add_argument("--iterations", type=int, help="stop at this iteration even before that")
            one.add_argument("--stage", help="one stage alone (bone_suppression: autoencoder, denoiser)")
        elif action == "onnx":
            one.add_argument("--version", default="1.0.0", help="version of the model, for the card")
    arguments = parser.parse_args(argv)
    command = importlib.import_module(f"export.{arguments.task}.command")
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    getattr(command, arguments.action)(arguments)


if __name__ == "__main__":
    main()
