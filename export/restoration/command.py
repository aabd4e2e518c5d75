"""The steps of ``python -m export … restoration``."""

from __future__ import annotations

from argparse import Namespace

FOLDER = "restoration-512"


def train(arguments: Namespace) -> None:
    """Trains the denoiser."""
    from export.restoration.network import Shape
    from export.restoration.train import train as run

    run(
        arguments.data,
        arguments.runs / "restoration",
        shape=Shape(),
        minutes=arguments.minutes,
        iterations=arguments.iterations,
    )


def onnx(arguments: Namespace) -> None:
    """Writes graph and card."""
    from export.restoration.ship import ship

    errors = ship(
        arguments.runs / "restoration" / "restoration.pt",
        arguments.models / FOLDER,
        version=arguments.version,
    )
    print(f"largest difference to torch: {errors}")


def evaluate(arguments: Namespace) -> None:
    """Figures on the test radiographs, into the card too."""
    from export.restoration.evaluate import evaluate as measure
    from export.restoration.evaluate import table
    from export.shipping import put_figures

    found = measure(arguments.models / FOLDER, arguments.data, arguments.runs / "eval")
    put_figures(arguments.models / FOLDER, found)
    print(table(found))
