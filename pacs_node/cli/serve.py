"""``pacs-node serve``, ``worker`` and ``web``: the node itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_CONFIG = typer.Option(
    "--config",
    "-c",
    help="Configuration. Default: PACS_NODE_CONFIG, ./pacs-node.yaml, /etc/pacs-node/pacs-node.yaml.",
    show_default=False,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command()
    def serve(config: Annotated[Path | None, _CONFIG] = None) -> None:
        """Run the node: receive, analyse, deliver. Ends on SIGTERM; SIGHUP reloads the configuration.

        The receiver, the worker and the DICOMweb service (if web is configured) are processes of their own,
        started again if they die; nothing that was received is lost by that.

        Example: [bold]pacs-node serve --config pacs-node.yaml[/bold]
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            from pacs_node import log
            from pacs_node.config.load import locate
            from pacs_node.pipeline import serve as supervisor
            from pacs_node.pipeline.node import Node

            path = locate(config)
            log.configure("node")
            # Wrong at the start is an error to be read here; wrong later keeps the node as it was.
            settings = supervisor.preflight(path)
            log.configure("node", settings.node.log_level)
            Node.open(settings)
            raise typer.Exit(supervisor.run(path, supervisor.wanted(settings)))

    @app.command()
    def worker(config: Annotated[Path | None, _CONFIG] = None) -> None:
        """Run only the worker: analyse and deliver what a receiver elsewhere on this machine has taken in.

        Example: [bold]pacs-node worker --config pacs-node.yaml[/bold]
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            from pacs_node.config.load import locate
            from pacs_node.pipeline import worker as process

            raise typer.Exit(process.run(locate(config)))

    @app.command()
    def web(config: Annotated[Path | None, _CONFIG] = None) -> None:
        """Run only the DICOMweb service: take in by STOW-RS, answer QIDO-RS and WADO-RS.

        Example: [bold]pacs-node web --config pacs-node.yaml[/bold]
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            from pacs_node.config.load import locate
            from pacs_node.dicomweb import server as process

            raise typer.Exit(process.run(locate(config)))
