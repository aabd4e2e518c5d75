"""int8 graphs of a bone suppression model, and whether they are good enough.

The gate: with int8 graphs the model's image must be within ``min_psnr`` of the one that it makes with float32
graphs alone, from the same seed, on each of the images that it is tried on. 40 dB, the default, is an rms
difference of 1 % of the image's range: an eighth to a third of what separates a radiograph from its twin
without bones (22 to 30 dB in dual-energy pairs). If the three graphs do not pass together, each is tried by
itself, and those that pass are tried together; a graph that does not pass is thrown away, and its role runs
as it did. If the denoiser passes, every other step is tried by its first level alone, too (see shallow.py).
Ranges are found on other images than those of the gate where there are two or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.activating import approximate_silu
from export.bone_suppression.shallow import cut
from export.normalising import normalise_by_channel
from export.quantising import quantise, ranges
from export.rewriting import plane_shapes
from export.shipping import save_graph, write_card
from pacs_node.conditions import Conditions
from pacs_node.infer import Settings, make, read_card
from pacs_node.infer.cards import Card
from pacs_node.infer.diffusion import Count, Diffusion, encode
from pacs_node.infer.geometry import Frame
from pacs_node.infer.sampling.noise import Noise
from pacs_node.infer.sampling.plans import plan
from pacs_node.infer.session import open_session
from pacs_node.infer.tables import asked_for
from pacs_node.phantom import Phantom

Array = NDArray[np.float32]
ROLES = ("encoder", "denoiser", "decoder")
SHALLOW = "shallow.int8.onnx"
PROCESSOR = ("openvino", "cpu")


@dataclass(frozen=True)
class Int8:
    """``min_psnr`` in dB; ``steps`` of the sampling in the gate; ``levels`` of noise at which the denoiser's
    ranges are found; ``shallow``: whether a shallow graph is tried.
    """

    min_psnr: float = 40.0
    steps: int = 20
    levels: int = 8
    shallow: bool = True


@dataclass(frozen=True)
class Found:
    """``files`` by role, for the card's [variants.int8]; its ``deep_reach`` if ``shallow`` is among them."""

    files: dict[str, str]
    deep_reach: float | None
    figures: dict[str, Any]


def int8(
    folder: Path, content: dict[str, Any], images: Sequence[Array], how: Int8, say: Callable[[str], None]
) -> Found:
    """Writes the int8 graphs that pass the gate into ``folder``, whose card (``content``) has float32 graphs.

    ``images``: radiographs, float32 in [0, 1]; none for drawn ones.
    """
    write_card(folder, content)
    card = read_card(folder)
    shown = list(images) or [Phantom(seed).render(max(64, card.input.size)).radiograph for seed in range(2)]
    tried, seen = (shown[:1], shown[1:]) if len(shown) > 1 else (shown, shown)
    files = {role: f"{role}.int8.onnx" for role in ROLES}
    for role, examples in _examples(card, seen, how).items():
        source = folder / card.files[role]
        found = ranges(source, examples)
        model = onnx.load(str(source))
        shapes = plane_shapes(source)
        normalise_by_channel(model, shapes)
        approximate_silu(model, shapes)
        quantise(model, found)
        save_graph(model, folder / files[role])
        del model
        say(f"{role}: int8 tried, {len(found)} convolutions' inputs rounded")

    exact = list(_results(folder, content, {}, tried, how.steps))

    def psnr(chosen: dict[str, str], reach: float | None = None) -> float:
        """The worst over the images that are tried, with these int8 graphs."""
        made = _results(folder, _reaching(content, reach), chosen, tried, how.steps)
        worst = min(_psnr(a, b) for a, b in zip(made, exact, strict=True))
        verdict = "good enough" if worst >= how.min_psnr else f"less than {how.min_psnr:g} dB"
        say(f"int8 {', '.join(chosen)}: {worst:.1f} dB from float32, {verdict}")
        return worst

    figures: dict[str, Any] = {"images": len(tried), "steps": how.steps, "psnr asked for": how.min_psnr}
    kept = files
    figures["psnr"] = psnr(kept)
    if figures["psnr"] < how.min_psnr:
        alone = {role: psnr({role: file}) for role, file in files.items()}
        figures["psnr alone"] = {role: round(value, 1) for role, value in alone.items()}
        kept = {role: file for role, file in files.items() if alone[role] >= how.min_psnr}
        if len(kept) > 1 and psnr(kept) < how.min_psnr:
            best = max(kept, key=lambda role: alone[role])
            kept = {best: files[best]}
    for role in files.keys() - kept.keys():
        _remove(folder / files[role])
        say(f"{role}: no int8 graph, as it does not hold the model's quality")

    reach = _spacing(card, how.steps) if how.shallow and "denoiser" in kept else None
    if reach is not None:
        whole, shallow = (folder / file for file in (files["denoiser"], SHALLOW))
        before = whole.read_bytes()
        more = kept | {"shallow": SHALLOW}
        if not cut(whole, shallow):
            reach = None
        elif (together := psnr(more, reach)) >= how.min_psnr:
            kept, figures["psnr"] = more, together
        else:
            reach = None
            _remove(shallow)
            whole.write_bytes(before)
            say("shallow: every step is made by the whole denoiser, to hold the model's quality")
    figures |= {"psnr": round(figures["psnr"], 1), "graphs": list(kept)}
    return Found(kept, reach, figures)


def _remove(graph: Path) -> None:
    """With the weights that lie beside it."""
    graph.unlink()
    graph.with_suffix(".data").unlink(missing_ok=True)


def _reaching(content: dict[str, Any], reach: float | None) -> dict[str, Any]:
    """The card with that deep_reach."""
    return content if reach is None else content | {"diffusion": content["diffusion"] | {"deep_reach": reach}}


def _spacing(card: Card, steps: int) -> float | None:
    """The longest way, in time steps, from one evaluation to the next; None for a single one."""
    if card.diffusion is None or card.sampler is None:
        raise ValueError(f"{card.folder}: a model without [diffusion]")
    walked = plan(Noise(card.diffusion), asked_for(card.sampler, None, steps), steps)
    times = [step.level.told for step in walked]
    return max((abs(b - a) for a, b in pairwise(times)), default=None)


def _examples(card: Card, images: Sequence[Array], how: Int8) -> dict[str, list[dict[str, Array]]]:
    """What each graph gets to see while its ranges are found.

    The denoiser sees the radiographs' latents at all levels of noise; the decoder also what is sampled, which
    goes further than the codes do.
    """
    if card.diffusion is None:
        raise ValueError(f"{card.folder}: a model without [diffusion]")
    table, size, noise = card.diffusion, card.input.size, Noise(card.diffusion)
    exactly = Settings(PROCESSOR, precision="f32", steps=how.steps)
    squares = [encode(Frame(*image.shape, size).to_square(image), card) for image in images]
    encoder = open_session(card, "encoder", exactly)
    scale = np.float32(table.latent_scale)
    latents = [scale * encoder.run(image=square)["latent"] for square in squares]
    diffusion = Diffusion(card, open_session(card, "denoiser", exactly), exactly)
    count = Count(diffusion.evaluations, None)
    sampled = [diffusion.sample(latent, 0, count) for latent in latents]
    rng = np.random.default_rng(0)

    def noisy(latent: Array) -> Iterator[dict[str, Array]]:
        for t in np.linspace(table.train_steps - 1, 0, how.levels).round():
            level = noise.at(float(t))
            sample = level.alpha * latent + level.sigma * rng.standard_normal(latent.shape)
            yield {
                "sample": sample.astype(np.float32),
                "condition": latent,
                "timestep": np.array([level.told], np.float32),
            }

    return {
        "encoder": [{"image": square} for square in squares],
        "denoiser": [example for latent in latents for example in noisy(latent)],
        "decoder": [{"latent": latent / scale} for latent in (*latents, *sampled)],
    }


def _results(
    folder: Path, content: dict[str, Any], files: dict[str, str], images: Sequence[Array], steps: int
) -> Iterator[Array]:
    """The model's images with these int8 graphs."""
    write_card(folder, content | {"variants": {"int8": files}} if files else content)
    settings = Settings(PROCESSOR, precision="int8" if files else "f32", steps=steps)
    model = make(read_card(folder), settings)
    for image in images:
        result = model(image, Conditions(50.0, "F", "PA"), 0)
        yield result.image


def _psnr(image: Array, reference: Array) -> float:
    """dB, for images in [0, 1]; 200 for equal ones."""
    return float(-10 * np.log10(max(np.square(image - reference).mean(dtype=np.float64), 1e-20)))
