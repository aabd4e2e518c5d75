"""``pacs-node check``, ``schema``, ``conformance``: the configuration, looked at without running the node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pacs_node.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_node.config import Config
    from pacs_node.errors import Problem

_CONFIG = typer.Option(
    "--config",
    "-c",
    help="Configuration. Default: PACS_NODE_CONFIG, ./pacs-node.yaml, /etc/pacs-node/pacs-node.yaml.",
    show_default=False,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command()
    def check(
        config: Annotated[Path | None, _CONFIG] = None,
        example: Annotated[
            bool, typer.Option("--example", help="Print the documented example configuration instead.")
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Write the problems to stdout as JSON.")
        ] = False,
    ) -> None:
        """Check the configuration: every mistake at once, each with its file, line, value and remedy.

        Looks at this machine too: is the port free, can the folders be written to, are the models there, can
        every rule fire. Makes nothing and sends nothing.

        Example: [bold]pacs-node check --config /etc/pacs-node/pacs-node.yaml[/bold]

        To begin: [bold]pacs-node check --example > pacs-node.yaml[/bold]

        Exit code 2 if there are errors, 0 if all is well or there are only warnings.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            if example:
                from pacs_node.config.check import example as text

                typer.echo(text(), nl=False)
                return
            raise typer.Exit(_check(config, as_json=as_json))

    @app.command()
    def schema() -> None:
        """Print the JSON Schema of the configuration, for completion and errors while typing in an editor.

        The first line of the example configuration points editors at a file of this name.

        Example: [bold]pacs-node schema > pacs-node.schema.json[/bold]
        """
        from pacs_node.config.schema import json_schema

        typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))

    @app.command()
    def conformance(config: Annotated[Path | None, _CONFIG] = None) -> None:
        """Print the DICOM conformance statement (PS3.2) of this configuration, as Markdown.

        Example: [bold]pacs-node conformance --config pacs-node.yaml > conformance.md[/bold]
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            from pacs_node.config.load import load, locate
            from pacs_node.conformance import statement

            typer.echo(statement(load(locate(config))), nl=False)


def _check(path: Path | None, *, as_json: bool) -> int:
    from pacs_node.config.check import check
    from pacs_node.config.load import load_with_source, locate
    from pacs_node.errors import ConfigurationError

    config = None
    try:
        file = locate(path)
        config, source = load_with_source(file)
        problems: Sequence[Problem] = check(config, source)
    except ConfigurationError as error:
        problems = error.problems
    errors = sum(problem.severity == "error" for problem in problems)
    if as_json:
        typer.echo(json.dumps([vars(problem) for problem in problems], indent=2, ensure_ascii=False))
    else:
        _print(problems)
        if config is not None and not errors:
            for line in summary(config):
                typer.echo(line)
        warnings = len(problems) - errors
        if problems:
            typer.echo(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}")
    return 2 if errors else 0


def _print(problems: Sequence[Problem]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for problem in problems:
        place = (
            problem.file if problem.line is None else f"{problem.file}:{problem.line}:{problem.column or 1}"
        )
        value = f" = {problem.value}" if problem.value else ""
        console.print(
            Text.assemble(
                (place, "bold"),
                ": ",
                (problem.severity, "red" if problem.severity == "error" else "yellow"),
                f": {problem.key}{value}: {problem.message}\n    {problem.remedy}",
            )
        )


def summary(config: Config) -> list[str]:
    """What a node of this configuration would do, in a few lines."""
    from pacs_node.route.explain import where

    receive = config.receive
    callers = ", ".join(c.ae_title for c in receive.callers) if receive.check_calling_ae else "anyone"
    lines = [
        f"Listens as {config.node.ae_title} on {receive.host}, port {receive.port}; may be called by "
        f"{callers}.",
        f"Keeps everything in {config.node.state_dir}, for {counted(config.retention.days, 'day')} after "
        "delivery.",
    ]
    for number, rule in enumerate(config.rules, 1):
        made = ", ".join(task.value for task in rule.tasks) or "nothing"
        sent = [*(["results"] if rule.tasks else []), *(["the original"] if rule.forward_original else [])]
        goes = (
            f"; {' and '.join(sent)} to {', '.join(rule.destinations)}" if sent and rule.destinations else ""
        )
        keys = ", ".join(rule.when) or "no conditions: every object"
        lines.append(f"Rule {number}, {rule.name} ({keys}): makes {made}{goes}.")
    lines += [f"Destination {name}: {where(config, name)}." for name in config.destinations]
    lines.append(f"The report follows when a study has been quiet for {config.study.quiet_seconds:g} s.")
    return lines
