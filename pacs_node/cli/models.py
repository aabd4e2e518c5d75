"""``pacs-node models``: which models are there, whether they are in order, and taking in another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pacs_node.config import Config
    from pacs_node.infer import AnomalyResult, Card, ImageResult, Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="PACS_NODE_CONFIG",
        help="Configuration with the folders of models and the providers; without it, the defaults.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(no_args_is_help=True, help="The models: list them, verify them, add one.")
    app.add_typer(group, name="models")

    @group.command("list")
    def list_models(config: ConfigOption = None) -> None:
        """List the models with the graphs that each has, the provider that it would run on, and why.

        Example: [bold]pacs-node models list --config pacs-node.yaml[/bold]

        Exit code 1 if a card is wrong; what is wrong goes to stderr.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            raise typer.Exit(_list(_config(config)))

    @group.command()
    def verify(
        name: Annotated[
            str | None, typer.Argument(help="One model; without it, all.", show_default=False)
        ] = None,
        build: Annotated[
            bool,
            typer.Option(
                "--build", help="Also build the TensorRT engines for this machine's GPU: minutes a model."
            ),
        ] = False,
        config: ConfigOption = None,
    ) -> None:
        """Compare every file with its digest and run each model once on a drawn image.

        Each variant of its graphs that can run here is run too. With [bold]--build[/bold], TensorRT's engines
        are kept in node.state_dir and used from then on, until the model, the GPU, its driver or TensorRT
        changes.

        Example: [bold]pacs-node models verify[/bold]

        Exit code 1 if a model fails, or its engines cannot be built.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            raise typer.Exit(_verify(name, build, _config(config)))

    @group.command()
    def add(
        folder: Annotated[
            Path, typer.Argument(help="The model: a folder with card.toml and its files.", show_default=False)
        ],
        to: Annotated[
            Path | None,
            typer.Option(
                "--to", help="The folder of models; default: the first of models.folders.", show_default=False
            ),
        ] = None,
        config: ConfigOption = None,
    ) -> None:
        """Try a model out and copy it into the site's folder of models; an older version there is replaced.

        Example: [bold]pacs-node models add ~/downloads/bones-512 --config pacs-node.yaml[/bold]

        A different model of the same name and version is never overwritten. A running node takes the model
        up when it is started again, if the configuration names it or it is the only one for its task.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            _add(folder, to, _config(config))


def _config(path: Path | None) -> Config:
    from pacs_node.config import Config, load

    return load(path) if path else Config()


def _settings(config: Config, card: Card) -> Settings:
    from pacs_node.infer import Settings

    return Settings.configured(config, card.task)


def _list(config: Config) -> int:
    from rich.console import Console
    from rich.table import Table

    from pacs_node.infer import shipped_models
    from pacs_node.infer.catalog import scan
    from pacs_node.infer.providers import choices_for

    shipped = shipped_models()
    cards, problems = scan([shipped, *config.models.folders])
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("name", "task", "version", "digest", "graphs", "size", "from", "runs on"):
        table.add_column(column, no_wrap=True)
    reasons: dict[str, None] = {}
    for card in cards:
        first = [choices_for(card, role, _settings(config, card))[0] for role in card.files]
        runs_on = ", ".join(dict.fromkeys(f"{_short(c.provider)} {c.precision}" for c in first))
        for choice in first:
            why = "; ".join((choice.reason, *choice.warnings))
            reasons[f"{_short(choice.provider)} {choice.precision}: {why}."] = None
        table.add_row(
            card.name,
            card.task.value,
            card.version,
            card.digest.removeprefix("sha256:")[:8],
            " ".join(card.precisions),
            _bytes(card.size),
            "shipped" if card.folder.parent == shipped else str(card.folder.parent),
            runs_on,
        )
    console = Console(highlight=False)
    # As wide as it is: a name or a version that is cut off cannot be copied into a configuration.
    console.width = max(
        console.width, console.measure(table, options=console.options.update(width=999)).maximum
    )
    console.print(table if cards else "No models.")
    for reason in reasons:
        console.print(reason, markup=False)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _verify(name: str | None, build_engines: bool, config: Config) -> int:
    import difflib

    from pacs_node.errors import ModelError
    from pacs_node.infer import shipped_models
    from pacs_node.infer.catalog import scan
    from pacs_node.infer.manage import build, try_out, try_variants

    cards, broken = scan([shipped_models(), *config.models.folders])
    problems = [str(problem) for problem in broken if name in (None, problem.name)]
    if name is not None:
        near = difflib.get_close_matches(name, [card.name for card in cards], 1)
        cards = [card for card in cards if card.name == name]
        if not (cards or problems):
            hint = f" Did you mean {near[0]!r}?" if near else " See: pacs-node models list"
            problems.append(f"There is no model {name!r}.{hint}")
    for card in cards:
        label, settings = f"{card.name} {card.version}", _settings(config, card)
        try:
            done = try_out(card, settings)
            typer.echo(f"{label}: files as the card says; {_ran(done)}")
            for remark in card.unused():
                typer.echo(f"{label}: {remark}")
            for tried in try_variants(card, settings, done):
                told = _ran(tried.result) if tried.result else f"not run here: {tried.why_not}"
                typer.echo(f"{label}, {tried.variant}: {told}")
            if build_engines:
                typer.echo(f"{label}, TensorRT engines: built; {_ran(build(card, settings))}")
        except ModelError as error:
            problems.append(f"{label}: {error}")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def _ran(result: AnomalyResult | ImageResult) -> str:
    parameters = result.parameters
    warnings = "".join(f"; {warning}" for warning in parameters["warnings"])
    return f"ran on {parameters['provider']} in {parameters['precision']}, {result.seconds:.1f} s{warnings}"


def _add(folder: Path, to: Path | None, config: Config) -> None:
    from pacs_node.errors import ModelError
    from pacs_node.infer import Catalog, read_card
    from pacs_node.infer.manage import add

    target = to or next(iter(config.models.folders), None)
    if target is None:
        raise ModelError(
            "There is no folder for the site's models. Set models.folders in the configuration, or give --to."
        )
    # A target that is still to be made holds no models.
    folders = {path.resolve() for path in (*config.models.folders, target)}
    catalog = Catalog([path for path in sorted(folders) if path.is_dir()])
    added = add(folder, target, catalog, _settings(config, read_card(folder)))
    card = added.card
    if added.already:
        typer.echo(f"{card.name} {card.version} is there already, just the same: {card.folder}")
    elif added.replaced:
        typer.echo(f"{card.name} {card.version} takes the place of {added.replaced}: {card.folder}")
    else:
        typer.echo(f"{card.name} {card.version} added: {card.folder}")
    typer.echo(f"Model digest {card.digest}")
