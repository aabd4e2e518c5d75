"""How commands end when something is wrong: a readable message on stderr and the contract's exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from pacs_node.errors import ConfigurationError, PacsNodeError

WORK_FAILED, WRONG_USAGE = 1, 2


@contextmanager
def ends_readably() -> Iterator[None]:
    """Turn the node's own errors and those of the file system into a message and an exit code, without a
    traceback.
    """
    try:
        yield
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(WRONG_USAGE) from error
    except (PacsNodeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(WORK_FAILED) from error
