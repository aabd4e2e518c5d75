"""``pacs-node echo`` and ``send``: is a destination there, and does it take these files."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pacs_node.config.model import Config, DicomDestination
    from pacs_node.deliver import Destination

_NAME = typer.Argument(
    help="A destination of the configuration, or AE@host:port for any DICOM node.", show_default=False
)
_CONFIG = typer.Option(
    "--config",
    "-c",
    help="Configuration. Default: PACS_NODE_CONFIG, ./pacs-node.yaml, /etc/pacs-node/pacs-node.yaml. "
    "Not needed for AE@host:port.",
    show_default=False,
)
_CALLING = typer.Option(
    help="AE title to call with. Default: the destination's calling_ae_title, or node.ae_title.",
    show_default=False,
)
_AD_HOC = re.compile(r"(?P<ae_title>[^@]+)@(?P<host>.+):(?P<port>[0-9]+)\Z")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command()
    def echo(
        name: Annotated[str, _NAME],
        config: Annotated[Path | None, _CONFIG] = None,
        calling_ae: Annotated[str | None, _CALLING] = None,
    ) -> None:
        """Ask a destination whether it is there and lets this node in: C-ECHO, QIDO-RS, or a look at the
        folder.

        Example: [bold]pacs-node echo pacs[/bold]

        Example: [bold]pacs-node echo ORTHANC@192.0.2.7:4242 --calling-ae PACS_NODE[/bold]

        Exit code 1 if it does not answer, 2 if there is no such destination.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            typer.echo(_destination(name, config, calling_ae).echo())

    @app.command()
    def send(
        name: Annotated[str, _NAME],
        paths: Annotated[
            list[Path], typer.Argument(help="DICOM files, or folders of them.", show_default=False)
        ],
        config: Annotated[Path | None, _CONFIG] = None,
        calling_ae: Annotated[str | None, _CALLING] = None,
    ) -> None:
        """Send files to a destination as they are, as the node itself would; nothing is retried.

        A compressed file is decoded only for a destination that does not take its transfer syntax.

        Example: [bold]pacs-node send pacs results/[/bold]

        Example: [bold]pacs-node send PACS_NODE@localhost:11112 chest.dcm[/bold]

        Exit code 1 if any file was not taken; each is named with its reason.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            raise typer.Exit(_send(_destination(name, config, calling_ae), paths))


def _send(destination: Destination, paths: list[Path]) -> int:
    import time
    import warnings

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from pacs_node.errors import DeliveryError
    from pacs_node.pipeline.files import collect

    # What pydicom thinks of odd values in files that are only passed on.
    warnings.simplefilter("ignore")
    files = collect(paths)
    console = Console(stderr=True)
    taken: list[Path] = []
    refused: list[Path] = []
    began = time.monotonic()
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(files))

        def report(path: Path, failure: str | None) -> None:
            progress.update(bar, advance=1)
            if failure is None:
                taken.append(path)
            else:
                refused.append(path)
                console.print(
                    f"{path}: {failure}", style="red", markup=False, highlight=False, soft_wrap=True
                )

        try:
            destination.send(files, report)
        except DeliveryError:
            if len(taken) + len(refused) < len(files):
                raise  # some were not even tried: the message says why
    size = sum(path.stat().st_size for path in taken)
    seconds = time.monotonic() - began
    typer.echo(
        f"{len(taken)} of {len(files)} sent to {destination.name}: {size / 1e6:.1f} MB in {seconds:.1f} s"
    )
    return 0 if len(taken) == len(files) else 1


def _destination(name: str, path: Path | None, calling_ae: str | None) -> Destination:
    """The destination that the argument names. Raises ConfigurationError."""
    from pacs_node.config.load import load, locate
    from pacs_node.config.model import Config
    from pacs_node.deliver import open_destination
    from pacs_node.errors import ConfigurationError

    if _AD_HOC.match(name):
        try:
            config = load(locate(path))
        except ConfigurationError:
            if path is not None:
                raise
            config = Config()
        settings = _ad_hoc(name)
        return open_destination(name, settings, calling_ae or config.node.ae_title)
    config = load(locate(path))
    if name not in config.destinations:
        raise _unknown(name, config, locate(path))
    chosen = config.destinations[name]
    if calling_ae is not None and chosen.type == "dicom":
        chosen = chosen.model_copy(update={"calling_ae_title": calling_ae})
    return open_destination(name, chosen, config.node.ae_title)


def _ad_hoc(name: str) -> DicomDestination:
    from pydantic import ValidationError

    from pacs_node.config.model import DicomDestination
    from pacs_node.errors import ConfigurationError, Problem

    match = _AD_HOC.match(name)
    values = {**match.groupdict(), "port": int(match["port"])} if match else {}
    try:
        return DicomDestination.model_validate({"type": "dicom", **values})
    except ValidationError as error:
        raise ConfigurationError(
            [
                Problem(
                    name,
                    None,
                    None,
                    ".".join(map(str, found["loc"])),
                    str(found["input"]),
                    found["msg"],
                    "Give it as AE@host:port, such as ORTHANC@localhost:4242",
                )
                for found in error.errors()
            ]
        ) from error


def _unknown(name: str, config: Config, file: Path) -> Exception:
    from pacs_node.errors import ConfigurationError, Problem

    known = ", ".join(config.destinations) or "none"
    close = difflib.get_close_matches(name, config.destinations, 1)
    remedy = f"Did you mean {close[0]}? " if close else ""
    remedy += f"Known here: {known}. Or give AE@host:port"
    return ConfigurationError(
        [Problem(str(file), None, None, "destinations", name, "there is no such destination", remedy)]
    )
