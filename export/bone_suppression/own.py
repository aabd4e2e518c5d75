"""Checkpoints of ``python -m export train``, described as the published ones are: so convert takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from export.bone_suppression import unet, vqgan
from export.bone_suppression.published import BS_LDM, GL_LCM, Published
from export.training import TrainingError, read


def own(autoencoder: Path, denoiser: Path) -> Published | None:
    """Shapes and noise of two checkpoints of ours; None if neither is. Raises TrainingError if they do not go
    together, or not with the graphs that convert writes.
    """
    found = [state(path) for path in (autoencoder, denoiser)]
    if found == [None, None]:
        return None
    first, second = found
    if first is None or second is None:
        ours, other = (denoiser, autoencoder) if first is None else (autoencoder, denoiser)
        raise TrainingError(f"{ours} was trained here and {other} was not; give two that belong together")
    settings = second["settings"]
    kinds = first["settings"].get("network"), settings.get("network")
    if kinds != ("autoencoder", "denoiser"):
        raise TrainingError(f"{autoencoder} is an {kinds[0]} and {denoiser} a {kinds[1]}; check their order")
    like = GL_LCM if settings["system"] == "gl-lcm" else BS_LDM
    return replace(
        like,
        title=f"{like.title}'s path in the shape {settings['system']!r}",
        source="python -m export train bone_suppression",
        autoencoder=vqgan.Shape(**tuples(first["shape"])),
        denoiser=unet.Shape(**tuples(second["shape"])),
        diffusion=settings["diffusion"],
        quick={"name": "ddim", "steps": settings["steps"], "spacing": "trailing"}
        if settings["diffusion"]["prediction"] == "sample"
        else like.quick,
        quantised=settings["quantised"],
        own=True,
    )


def state(path: Path) -> dict[str, Any] | None:
    """A checkpoint of ours, weights mapped and not read; None for one of others."""
    try:
        return read(path)
    except TrainingError:
        return None


def tuples(shape: dict[str, Any]) -> dict[str, Any]:
    """A shape as it was before it was kept."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in shape.items()}
