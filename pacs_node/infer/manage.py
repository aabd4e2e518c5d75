"""Keeping models: try one out, and take one into the site's folder of models."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.files import fsync_folder, make_folder
from pacs_node.infer import AnomalyResult, ImageResult, make, nvidia
from pacs_node.infer.cards import CARD, Card, Variant, read_card
from pacs_node.infer.catalog import Catalog
from pacs_node.infer.providers import Settings, available
from pacs_node.infer.sampling.rules import fewest_steps
from pacs_node.infer.tables import asked_for


def try_out(card: Card, settings: Settings) -> AnomalyResult | ImageResult:
    """Verify the model's files and run it, in few sampling steps, on a drawn image of 600 x 500 pixels.

    Raises ModelError if a file is missing or altered, the graphs are not what the card says, or a result is
    not finite. Says nothing of the model's quality.
    """
    card.verify()
    return _run(card, settings)


@dataclass(frozen=True)
class Tried:
    """How one variant of a model's graphs did: its result, or why it cannot run on this machine."""

    variant: Variant
    result: AnomalyResult | ImageResult | None
    why_not: str = ""


def try_variants(card: Card, settings: Settings, done: AnomalyResult | ImageResult) -> Iterator[Tried]:
    """Run each variant of the model's graphs that a provider of this machine takes, as ``try_out`` does.

    ``done``: what that gave; a variant that it ran is not run again. Raises ModelError as that does.
    """
    homes = {"f16": ("cuda",), "int8": ("openvino", "cpu")}
    ran = done.parameters["precision"].split(", ")
    for variant in sorted(set(card.variants) - set(ran)):
        wish = replace(settings, precision=variant, providers=homes[variant], without=())
        there = [word for word in homes[variant] if word in available()]
        if not there:
            told = f"it is for {' or '.join(homes[variant])}, which the installed ONNX Runtime does not have"
            yield Tried(variant, None, told)
        elif variant == "f16" and (missing := nvidia.missing("cuda")):
            yield Tried(variant, None, missing)
        else:
            yield Tried(variant, _run(card, replace(wish, providers=tuple(there))))


def build(card: Card, settings: Settings) -> AnomalyResult | ImageResult:
    """Build the TensorRT engines of a model for this machine's device: minutes, once for each version.

    Raises ModelError saying what is missing.
    """
    if "tensorrt" not in available():
        raise ModelError(
            "TensorRT: the installed ONNX Runtime does not have it. Install pacs-node[gpu] and TensorRT."
        )
    if missing := nvidia.missing("tensorrt"):
        raise ModelError(f"TensorRT: {missing}. Install it; nothing was built.")
    folder = nvidia.engines(settings.cache, card)
    if folder is None:
        raise ModelError(
            "TensorRT: nvidia-smi names no device, or there is no folder for the engines (node.state_dir). "
            "Nothing was built."
        )
    make_folder(folder)
    result = _run(card, replace(settings, providers=("tensorrt",), without=()))
    nvidia.mark_built(folder, card)
    return result


def _run(card: Card, settings: Settings) -> AnomalyResult | ImageResult:
    if card.sampler is not None and card.diffusion is not None:
        sampler = asked_for(card.sampler, settings.sampler, settings.steps)
        settings = replace(settings, steps=fewest_steps(sampler, card.diffusion))
        if card.diffusion.deep_reach is not None:  # steps so far apart leave a shallow graph out otherwise
            anywhere = card.diffusion.model_copy(update={"deep_reach": float(card.diffusion.train_steps)})
            card = card.model_copy(update={"diffusion": anywhere})
    return make(card, settings)(_drawn_image(), Conditions(50.0, "F", "PA"), 0)


def _drawn_image() -> NDArray[np.float32]:
    """A bright body with two dark ovals and bright bars across them, in [0, 1]."""
    y, x = np.mgrid[-1:1:600j, -1:1:500j]
    image = (
        0.75
        - 0.5 * ((np.abs(x) - 0.45) ** 2 / 0.09 + y**2 / 0.4 < 1)
        + 0.1 * (np.sin(30 * y + 4 * x**2) > 0.5)
    )
    image += np.random.default_rng(0).normal(0, 0.01, image.shape)
    drawn: NDArray[np.float32] = np.clip(image, 0, 1).astype(np.float32)
    return drawn


@dataclass(frozen=True)
class Added:
    """What ``add`` did: the model as it is now there, and the version that it took the place of, if any.

    ``already``: the very same model was there, nothing was done.
    """

    card: Card
    replaced: str | None = None
    already: bool = False


def add(source: Path, target: Path, catalog: Catalog, settings: Settings) -> Added:
    """Take the model in the folder ``source`` into ``target``, one of the catalogue's site folders.

    Only the card and the files it lists are copied, after the model has been tried out; on return they are
    durable. Another version of the same name in ``target`` is replaced. Raises ModelError if the model is
    not in order, its name belongs to a shipped model or to one in another folder, or a different model of its
    name and version is there.
    """
    card = read_card(source)
    present = next((c for c in catalog.cards if c.name == card.name), None)
    if present is not None:
        if _same(card, present):
            card.verify()
            return Added(present, already=True)
        if catalog.is_shipped(present):
            raise ModelError(
                f"{source}: {card.name!r} is the name of a shipped model. Give yours another name."
            )
        if present.folder.parent.resolve() != target.resolve():
            raise ModelError(
                f"{source}: {card.name!r} is in {present.folder} already. Remove that one first."
            )
        if present.version == card.version:
            raise ModelError(
                f"{source}: a different model is there as {card.name} {card.version} ({present.folder}). "
                "Give this one a new version, so that results can be told apart."
            )
    for _ in try_variants(card, settings, try_out(card, settings)):
        pass  # what does not run here is no reason against a model that runs

    make_folder(target)
    place = present.folder if present else target / card.name
    if present is None and place.exists():
        raise ModelError(f"{place}: this folder is in the way, and it is not {card.name!r}. Move it away.")
    mark = secrets.token_hex(8)
    incoming, outgoing = target / f".{card.name}.{mark}.new", target / f".{card.name}.{mark}.old"
    incoming.mkdir()
    try:
        for name in (*card.digests, CARD):
            _copy(source / name, incoming / name)
        fsync_folder(incoming)
        read_card(incoming).verify()  # what was copied is what was tried
        if present is not None:
            place.rename(outgoing)
        incoming.rename(place)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    fsync_folder(target)
    shutil.rmtree(outgoing, ignore_errors=True)
    return Added(read_card(place), replaced=present.version if present else None)


def _same(card: Card, other: Card) -> bool:
    return (card.version, card.digest) == (other.version, other.digest)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())
