"""``pacs-node explain``: which rule fires for a file and why, what would be made, where it would go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pacs_node.config import Config
    from pacs_node.tasks import Task

_STYLES = {"good": "green", "bad": "red", "quiet": "dim", "head": "bold", "plain": ""}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command()
    def explain(
        paths: Annotated[
            list[Path], typer.Argument(help="DICOM files, or folders of them.", show_default=False)
        ],
        config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                "-c",
                help="Configuration. Default: PACS_NODE_CONFIG, ./pacs-node.yaml, "
                "/etc/pacs-node/pacs-node.yaml.",
                show_default=False,
            ),
        ] = None,
        calling_ae: Annotated[
            str | None,
            typer.Option(
                help="As if sent by this AE title. Default: the one that the file names as its source, if "
                "any.",
                show_default=False,
            ),
        ] = None,
        called_ae: Annotated[
            str | None,
            typer.Option(help="As if sent to this AE title. Default: node.ae_title.", show_default=False),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
    ) -> None:
        """Say which rule fires for a file and why, what would be made of it and where it would go.

        Nothing is made, stored or sent, and the pixels are not looked at. Values of the header are shown, and
        may identify the patient.

        Example: [bold]pacs-node explain chest.dcm --calling-ae XRAY_1[/bold]

        Exit code 1 if a file is not readable as DICOM.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            from pacs_node.config.load import load, locate
            from pacs_node.pipeline.files import collect
            from pacs_node.pipeline.models import models_by_task

            settings = load(locate(config))
            models = models_by_task(settings)
            records = [
                _explain(path, settings, models, calling_ae, called_ae, quiet=as_json)
                for path in collect(paths)
            ]
            if as_json:
                typer.echo(json.dumps({"files": records}, indent=2, ensure_ascii=False))
            raise typer.Exit(1 if any(record.get("unreadable") for record in records) else 0)


def _explain(
    path: Path,
    config: Config,
    models: dict[Task, tuple[str, str] | str],
    calling_ae: str | None,
    called_ae: str | None,
    *,
    quiet: bool,
) -> dict[str, Any]:
    import warnings

    from rich.console import Console

    from pacs_node.dicom.files import read_header
    from pacs_node.errors import Refused
    from pacs_node.route import decide
    from pacs_node.route.explain import as_record, lines

    console = Console(quiet=quiet, highlight=False, markup=False, emoji=False)

    def say(style: str, text: str) -> None:
        # A header's control characters must not reach the terminal
        console.print(_printable(text), style=_STYLES[style] or None, soft_wrap=True)

    say("head", str(path))
    with warnings.catch_warnings():
        # What pydicom thinks of odd values is not what was asked
        warnings.simplefilter("ignore")
        try:
            header = read_header(path)
        except Refused as refused:
            say("bad", f"  Not readable ({refused.code}): {refused}.")
            return {"path": str(path), "unreadable": {"code": refused.code, "reason": refused.reason}}
        source = str(getattr(header, "file_meta", {}).get("SourceApplicationEntityTitle") or "")
        decision = decide(config.rules, header, calling_ae or source, called_ae or config.node.ae_title)
        record = as_record(decision, header, config, models)
    for style, text in lines(decision, record):
        say(style, text)
    say("plain", "")
    return {"path": str(path), **record}


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
