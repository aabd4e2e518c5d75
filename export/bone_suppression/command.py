"""The steps of ``python -m export … bone_suppression``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

FOLDER = "bone-suppression-512"
STAGES = ("autoencoder", "denoiser")


def options(action: str, one: ArgumentParser) -> None:
    """What only this task takes."""
    if action == "train":
        one.add_argument("--stage", choices=STAGES, help="one stage alone")


def train(arguments: Namespace) -> None:
    """Trains the autoencoder, then the denoiser; half of the minutes each, or one stage alone."""
    from export.bone_suppression.train import train_autoencoder, train_denoiser

    stages = [arguments.stage] if arguments.stage else list(STAGES)
    for stage in stages:
        print(f"-- {stage}", flush=True)
        {"autoencoder": train_autoencoder, "denoiser": train_denoiser}[stage](
            arguments.data,
            arguments.runs / "bone_suppression",
            minutes=arguments.minutes / len(stages),
            iterations=arguments.iterations,
        )


def onnx(arguments: Namespace) -> None:
    """Writes graphs and card."""
    from export.bone_suppression.ship import ship

    errors = ship(arguments.data, arguments.runs, arguments.models / FOLDER, version=arguments.version)
    print("largest difference to torch:", ", ".join(f"{role} {error:.1e}" for role, error in errors.items()))


def evaluate(arguments: Namespace) -> None:
    """Figures on pairs that were not trained on, into the card too, and pictures."""
    from export.bone_suppression.evaluate import evaluate as measure
    from export.bone_suppression.evaluate import table
    from export.shipping import put_figures

    found = measure(arguments.models / FOLDER, arguments.data, arguments.runs / "eval")
    put_figures(arguments.models / FOLDER, found)
    print(table(found))
