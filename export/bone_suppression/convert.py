"""A published checkpoint becomes a model folder: ``python -m export convert bone_suppression``.

    python -m export convert bone_suppression --autoencoder VQGAN.pth --denoiser UNet.pth \\
        --out DIR --name NAME
    pacs-node models add DIR/NAME

The two files are those that BS-LDM and GL-LCM publish (whole pickled modules), state dicts of the same
networks, or what ``python -m export train`` wrote (own.py); no code of theirs is run (see pickled.py). GL-LCM
also wants ``--lungs MASK.onnx``, a graph image (N, 1, S, S) -> mask (N, 1, S, S) in 0 to 1, as its own is not
published; without it the model has the global path alone. The folder gets float32 graphs, each checked
against torch, and as variants:

f16
    for GPUs: half the memory, and the units for it.
int8
    for processors, each graph by itself only if it holds its quality, and with it a graph of the denoiser's
    first level alone, for every other step, if that holds it, too: see ``int8``.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from export.bone_suppression.graphs import Decoder, Denoiser, Encoder
from export.bone_suppression.int8 import Int8, int8
from export.bone_suppression.matching import restore
from export.bone_suppression.own import own
from export.bone_suppression.pickled import Checkpoint, CheckpointError, read_checkpoint
from export.bone_suppression.published import GL_LCM, PUBLISHED, Published
from export.bone_suppression.unet import UNet
from export.bone_suppression.vqgan import MLVQGAN
from export.shipping import (
    export_graph,
    half_precision,
    parity,
    put_figures,
    save_graph,
    set_sizes,
    write_card,
)
from pacs_node.errors import ModelError
from pacs_node.infer import Card, read_card
from pacs_node.infer.external_data import external_files

CODEBOOK = "quantizer.quantizer.embedding.weight"
#: Graphs are made and compared with torch on small images, as convolutions do not mind; the size comes after.
#: The side of the autoencoder's latent.
SMALL = 8
#: Largest difference to torch, relative to the largest value: float32 sums in another order; half weights.
TOLERANCE = {"float": 2e-5, "half": 5e-3}
#: Nodes that stay float32 in the f16 graphs: the nearest code is a matter of small differences.
EXACT = {"encoder": ("/codes",), "denoiser": ("/time/",), "decoder": ()}


@dataclass(frozen=True)
class Request:
    """What to convert. ``published``: None to tell it by the codes. ``variants``: of f16 and int8.

    ``weights``: float, or half to store the float32 graphs' weights in half the space (they take longer to
    load). ``size``: side of the images in pixels. ``images``: radiographs for int8, float32 in [0, 1].
    """

    autoencoder: Path
    denoiser: Path
    out: Path
    name: str
    version: str = "1.0.0"
    published: Published | None = None
    lungs: Path | None = None
    variants: tuple[str, ...] = ("f16", "int8")
    weights: str = "float"
    result: str = "replace"
    size: int = 1024
    images: Sequence[NDArray[np.float32]] = ()
    int8: Int8 = field(default_factory=Int8)


def convert(request: Request, say: Callable[[str], None] = print) -> Path:
    """The folder of the converted model. Raises CheckpointError or ModelError; then there is no folder."""
    place = request.out / request.name
    if place.exists():
        raise ModelError(f"{place}: there is something already. Choose another --name, or remove it.")
    codes, weights = (read_checkpoint(path) for path in (request.autoencoder, request.denoiser))
    published = request.published or own(request.autoencoder, request.denoiser) or recognised(codes)
    say(f"{published.title}: {len(codes.weights)} and {len(weights.weights)} tensors")
    check_attention(weights, published)
    content = card(request, published)
    check_request(request, published, content)
    autoencoder = restore(
        lambda: MLVQGAN(published.autoencoder), codes, f"{published.title}'s autoencoder (ML-VQGAN)"
    )
    denoiser = restore(lambda: UNet(published.denoiser), weights, f"{published.title}'s denoiser (UNetModel)")
    folder = request.out / f".{request.name}.{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        errors = write_graphs(folder, autoencoder, denoiser, request, published, say)
        if request.lungs is not None:
            copy_lungs(request.lungs, folder)
        if "f16" in request.variants:
            content["variants"] = {"f16": write_halves(folder, list(errors), say)}
        figures: dict[str, Any] = {"largest difference to torch": errors}
        if "int8" in request.variants:
            plain = {key: value for key, value in content.items() if key != "variants"}
            found = int8(folder, plain, request.images, request.int8, say)
            figures["int8"] = found.figures
            if found.files:
                content.setdefault("variants", {})["int8"] = found.files
            if found.deep_reach is not None:
                content["diffusion"]["deep_reach"] = found.deep_reach
        write_card(folder, content)
        put_figures(folder, figures)
        read_card(folder).verify()
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return place


def check_request(request: Request, published: Published, content: dict[str, Any]) -> None:
    """Raises ModelError, before the long work, if name, version or size will not do."""
    unit = 2 ** (len(published.autoencoder.channels) + len(published.denoiser.multipliers) - 1)
    if request.size % unit:
        raise ModelError(f"--size {request.size}: {published.title} takes multiples of {unit}. Choose one.")
    digests = dict.fromkeys(content["files"].values(), f"sha256:{64 * '0'}")
    try:
        Card.model_validate_json(json.dumps(content | {"digests": digests}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelError(f"{key} {first['input']!r} will not do: {first['msg']}. Choose another.") from error


def recognised(checkpoint: Checkpoint) -> Published:
    """The published system whose number of codes this autoencoder has."""
    codes = checkpoint.weights.get(CODEBOOK)
    count = len(codes) if codes is not None else None
    for published in PUBLISHED.values():
        if count in (published.autoencoder.codes, None):
            return published
    raise CheckpointError(
        f"{checkpoint.path}: {count} codes, where the published autoencoders have "
        f"{' or '.join(str(p.autoencoder.codes) for p in PUBLISHED.values())}. Say --published."
    )


def check_attention(checkpoint: Checkpoint, published: Published) -> None:
    """The order in which attention takes its channels is in no weight; a whole module's classes tell it.

    Raises CheckpointError if it is not the published one's.
    """
    found = {name.rsplit(".", 1)[-1] for name in checkpoint.classes.values()}
    wanted = published.denoiser.new_attention_order
    if (wanted and "QKVAttentionLegacy" in found) or (not wanted and "QKVAttention" in found):
        other = next(k for k, p in PUBLISHED.items() if p.denoiser.new_attention_order is not wanted)
        raise CheckpointError(
            f"{checkpoint.path}: its attention takes the channels in another order than {published.title}'s "
            f"does. It goes with the autoencoder of --published {other}."
        )


def write_graphs(
    folder: Path,
    autoencoder: MLVQGAN,
    denoiser: UNet,
    request: Request,
    published: Published,
    say: Callable[[str], None],
) -> dict[str, float]:
    """The three float32 graphs; each one's largest difference to torch. Raises ModelError above TOLERANCE."""
    factor = 2 ** len(published.autoencoder.channels)
    channels = published.autoencoder.code_dimension
    side, small = request.size // factor, 2 ** len(published.denoiser.multipliers)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    steps = published.diffusion["train_steps"]
    latent = (channels, side, side)
    image = (1, request.size, request.size)
    plan: dict[str, tuple[nn.Module, dict[str, Tensor], str, dict[str, tuple[int, ...]]]] = {
        "encoder": (
            Encoder(autoencoder, published.quantised),
            {"image": drawn(2, 1, SMALL * factor, SMALL * factor).clamp(-1, 1)},
            "latent",
            {"image": image, "latent": latent},
        ),
        "denoiser": (
            Denoiser(denoiser, steps),
            {
                "sample": drawn(2, channels, small, small),
                "condition": drawn(2, channels, small, small),
                "timestep": torch.tensor([steps - 1.0, 3.0]),
            },
            "prediction",
            {"sample": latent, "condition": latent, "prediction": latent},
        ),
        "decoder": (
            Decoder(autoencoder),
            {"latent": drawn(2, channels, SMALL, SMALL)},
            "image",
            {"latent": latent, "image": image},
        ),
    }
    errors = {}
    for role, (module, inputs, output, sizes) in plan.items():
        path = folder / f"{role}.onnx"
        export_graph(
            module,
            path,
            inputs,
            [output],
            half=request.weights == "half",
            # Codes and the time's table tell neighbours apart by less than half precision holds.
            smallest=1 + max(published.autoencoder.codes * channels, steps * published.denoiser.width),
            free={0: "N", 2: "h", 3: "w"},
        )
        try:
            # A latent between two codes may take the other one.
            (errors[role],) = parity(
                module,
                path,
                inputs,
                tolerance=TOLERANCE[request.weights],
                aside=0.02 if role == "encoder" and published.quantised else 0.0,
            )
        except ValueError as error:
            raise ModelError(
                f"{error}. Report it with the versions of torch, onnx and onnxruntime."
            ) from error
        set_sizes(path, sizes)
        say(f"{role}: written, differs from torch by {errors[role]:.1e}")
    return errors


def write_halves(folder: Path, roles: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
    """The f16 graphs, by role."""
    files = {}
    for role in roles:
        files[role] = f"{role}.f16.onnx"
        model = half_precision(folder / f"{role}.onnx", EXACT[role])
        save_graph(model, folder / files[role])
        say(f"{role}: f16 written")
    return files


def copy_lungs(source: Path, folder: Path) -> None:
    """The lungs' graph; pacs-node compares it with the contract when the model is added."""
    if not source.is_file():
        raise ModelError(f"{source}: there is no such file. Give the ONNX file of a lung segmentation.")
    if found := external_files(source):
        raise ModelError(f"{source}: its weights lie in {', '.join(found)}. Save it with its weights inside.")
    shutil.copyfile(source, folder / "lungs.onnx")


def card(request: Request, published: Published) -> dict[str, Any]:
    """The card but for digests and figures."""
    files = {role: f"{role}.onnx" for role in ("encoder", "denoiser", "decoder")}
    local = request.lungs is not None and published.local is not None
    if request.lungs is not None and published.local is None:
        raise ModelError(
            f"{request.lungs}: {published.title} has no path for the lungs. Leave --lungs out, or convert "
            f"{GL_LCM.title}'s checkpoints."
        )
    if local:
        files["lungs"] = "lungs.onnx"
    who = "its owner" if published.own else "others"
    limits = [
        f"Trained by {who}; measured here only as far as [figures] says. Validate it on your own images.",
        "Whatever looks like bone may be weakened or invented: read it beside the original.",
    ]
    if published.local is not None and not local:
        limits.append("The global path alone: there was no graph for the lungs.")
    return {
        "name": request.name,
        "task": "bone_suppression",
        "version": request.version,
        "summary": f"{published.title}, trained by {who} ({published.source}); converted from checkpoints.",
        "intended_use": "Research: frontal chest radiographs of adults with the bones suppressed, beside the "
        "original. Not for diagnosis.",
        "qualification": "RESEARCH",
        "licence": "as the owner of the weights says"
        if published.own
        else "as the source of the checkpoint says; the authors' code is under the MIT licence",
        **({"result": request.result} if request.result != "subtract" else {}),
        "files": files,
        "input": {"size": request.size, "range": [-1.0, 1.0], "channels": 1},
        "diffusion": dict(published.diffusion),
        "sampler": dict(published.quick),
        **({"local": dict(published.local)} if local and published.local else {}),
        "training": {
            "data": [f"As the source of the checkpoint says: {published.source}"],
            "terms": ["As the source of the checkpoint says"],
            "recipe": "python -m export convert bone_suppression --autoencoder … --denoiser …",
            "notes": [
                f"{what}: {path.name}, sha256 {digest(path)}"
                for what, path in (("autoencoder", request.autoencoder), ("denoiser", request.denoiser))
            ]
            + [f"Published with the sampler {', '.join(f'{k} {v}' for k, v in published.sampler.items())}."],
        },
        "figures": {},
        "limits": {"texts": limits},
    }


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
