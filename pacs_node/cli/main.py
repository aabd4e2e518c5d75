"""The command ``pacs-node``. Each module of this package registers the commands that it holds.

Exit codes: 0 done, 1 work failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pacs_node import __version__
from pacs_node.cli import analyze, config, demo, explain, jobs, models, network, serve

app = typer.Typer(
    name="pacs-node",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="The AI node for chest radiographs that stands beside a PACS. Research software: not for diagnosis.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pacs-node {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


for commands in (serve, demo, analyze, jobs, models, network, config, explain):
    commands.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
