"""The steps of ``python -m export … anomaly``."""

from __future__ import annotations

from argparse import Namespace

FOLDER = "anomaly-256"


def train(arguments: Namespace) -> None:
    """Trains the extractor."""
    from export.anomaly.network import Shape
    from export.anomaly.train import train as run

    run(
        arguments.data,
        arguments.runs / "anomaly",
        shape=Shape(),
        minutes=arguments.minutes,
        iterations=arguments.iterations,
    )


def onnx(arguments: Namespace) -> None:
    """Fits the Gaussian, writes graph and card."""
    from export.anomaly.ship import ship

    fitted, errors = ship(
        arguments.runs / "anomaly" / "anomaly.pt",
        arguments.data,
        arguments.runs / "cache",
        arguments.models / FOLDER,
        version=arguments.version,
    )
    print(f"thresholds {fitted.thresholds}; largest differences to torch (score, heatmap): {errors}")


def evaluate(arguments: Namespace) -> None:
    """Figures on the test patients, into the card too."""
    from export.anomaly.evaluate import evaluate as measure
    from export.anomaly.evaluate import table
    from export.shipping import put_figures

    found = measure(arguments.models / FOLDER, arguments.data, arguments.runs / "eval")
    put_figures(arguments.models / FOLDER, found)
    print(table(found))
