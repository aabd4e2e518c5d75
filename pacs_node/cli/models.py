"""``pacs-node models``: which models are there, whether they are in order, and taking in another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pacs_node.config import Config
    from pacs_node.infer import Card, Settings

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
        """List the models with the provider that each would run on, and why.

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
        config: ConfigOption = None,
    ) -> None:
        """Compare every file with its digest and run each model once on a drawn image.

        Example: [bold]pacs-node models verify[/bold]

        Exit code 1 if a model fails.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            raise typer.Exit(_verify(name, _config(config)))

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

    return Settings.configured(config.infer, card.task)


def _list(config: Config) -> int:
    from rich.console import Console
    from rich.table import Table

    from pacs_node.infer import shipped_models
    from pacs_node.infer.catalog import scan
    from pacs_node.infer.providers import choices

    shipped = shipped_models()
    cards, problems = scan([shipped, *config.models.folders])
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("name", "task", "version", "digest", "from", "runs on"):
        table.add_column(column, overflow="fold", no_wrap=column != "from", min_width=7)
    reasons: dict[str, None] = {}
    for card in cards:
        choice = choices(_settings(config, card), exact=all(map(card.exact, card.files)))[0]
        runs_on = f"{choice.provider.removesuffix('ExecutionProvider')} {choice.precision}"
        reasons[f"{runs_on}: {'; '.join((choice.reason, *choice.warnings))}."] = None
        table.add_row(
            card.name,
            card.task.value,
            card.version,
            card.digest.removeprefix("sha256:")[:8],
            "shipped" if card.folder.parent == shipped else str(card.folder.parent),
            runs_on,
        )
    console = Console(highlight=False)
    console.print(table if cards else "No models.")
    for reason in reasons:
        console.print(reason, markup=False)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def _verify(name: str | None, config: Config) -> int:
    import difflib

    from pacs_node.errors import ModelError
    from pacs_node.infer import shipped_models
    from pacs_node.infer.catalog import scan
    from pacs_node.infer.manage import try_out

    cards, problems = scan([shipped_models(), *config.models.folders])
    if name is not None:
        near = difflib.get_close_matches(name, [card.name for card in cards], 1)
        cards = [card for card in cards if card.name == name]
        if not cards:
            hint = f" Did you mean {near[0]!r}?" if near else " See: pacs-node models list"
            problems.append(f"There is no model {name!r}.{hint}")
    for card in cards:
        try:
            result = try_out(card, _settings(config, card))
        except ModelError as error:
            problems.append(f"{card.name} {card.version}: {error}")
            continue
        provider, precision = result.parameters["provider"], result.parameters["precision"]
        typer.echo(
            f"{card.name} {card.version}: files as the card says; ran on {provider} in {precision}, "
            f"{result.seconds:.1f} s"
        )
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


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
