"""Whether a model's files are those that its card was written for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pacs_node.errors import ModelError
from pacs_node.infer.external_data import NotWholeError, external_files

_REMEDY = "correct [digests] in card.toml and give the model a new version"


def problems(folder: Path, digests: Mapping[str, str], graphs: Iterable[str]) -> list[str]:
    """One sentence for each of the ONNX files ``graphs`` in ``folder``, and of the files that they draw their
    weights from, that is missing, a link out of the folder, not of its digest, or not among the digests.
    """
    return list(dict.fromkeys(p for graph in sorted(set(graphs)) for p in _of_graph(folder, digests, graph)))


def _of_graph(folder: Path, digests: Mapping[str, str], graph: str) -> list[str]:
    path = folder / graph
    if problem := _of_file(path, digests[graph]):
        return [problem]
    try:
        locations = external_files(path)
    except ModelError as error:
        return [str(error)]
    # A location that is a path is never a key of the digests, so nothing outside is ever looked at.
    outside = [
        f"{path}: it refers to external data in {location!r}, which is not a file of this card. External "
        "data must lie in the model's folder and stand in [digests]; save it with its weights inside."
        for location in locations
        if location not in digests
    ]
    inside = [name for name in locations if name in digests]
    return outside + [
        p for n in inside if (p := _of_file(folder / n, digests[n], f" with the weights of {graph}"))
    ]


def unused(folder: Path, digests: Mapping[str, str], graphs: Iterable[str]) -> list[str]:
    """A phrase for each digest that belongs to none of ``graphs``, and each ONNX file without a digest."""
    used = set(graphs)
    for graph in sorted(used):
        used.update(external_files(folder / graph))
    stray = sorted(path.name for path in folder.glob("*.onnx") if path.name not in digests)
    return [
        *(
            f"{folder / name}: [digests] has it, but no graph of the card uses it"
            for name in digests
            if name not in used
        ),
        *(f"{folder / name}: the card does not know this file" for name in stray),
    ]


def _of_file(path: Path, digest: str, what: str = "") -> str | None:
    if not path.is_file():
        return f"{path}: the file{what} is missing. Copy it there, or correct card.toml."
    # A link out of the folder would make the model depend on a place that nobody copies along with it.
    if path.resolve().parent != path.parent.resolve():
        return f"{path}: the file is a link that leads out of the model's folder. Put the file itself there."
    with path.open("rb") as file:
        found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        if path.suffix == ".onnx":
            try:
                external_files(path)
            except NotWholeError as error:
                return str(error)  # which says more than that it is another one
            except ModelError:
                pass
        return (
            f"{path}: the file's digest is {found}, the card says {digest}. Copy the file again; if the "
            f"change is meant, {_REMEDY}."
        )
    return None
