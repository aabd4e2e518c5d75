"""The restoration model as ONNX with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from export.restoration.train import SIZE, load_denoiser
from export.shipping import export_graph, parity, write_card

STEPS = 2  # on validation images more steps add texture and cost fidelity (card, limits)


def card(version: str, iterations: int) -> dict[str, Any]:
    """What the card says; ``evaluate`` fills in the figures."""
    return {
        "name": f"restoration-{SIZE}",
        "task": "restoration",
        "version": version,
        "summary": "Conditional diffusion in pixel space (SR3 / DiffusionXRay kind) that takes noise out of "
        "frontal chest radiographs; 3.3 million parameters.",
        "intended_use": "Research: a second look at degraded frontal chest radiographs of adults, beside the "
        "original. Not for diagnosis.",
        "qualification": "RESEARCH",
        "licence": "Apache-2.0",
        "files": {"denoiser": "denoiser.onnx"},
        "input": {"size": SIZE, "range": [-1.0, 1.0], "channels": 1},
        "diffusion": {
            "schedule": "squaredcos_cap_v2",
            "train_steps": 1000,
            "prediction": "sample",
            "latent_scale": 1.0,
            "clip_start": 1.0,
            "clip_slope": 0.0,
        },
        "sampler": {"name": "ddim", "steps": STEPS, "eta": 0.0, "spacing": "trailing"},
        "training": {
            "data": [
                "NIH ChestX-ray14, 456 radiographs of the training and validation patients",
                "JSRT, 86 radiographs (split by image)",
            ],
            "terms": [
                "NIH Clinical Center: free use with attribution; Wang et al., ChestX-ray8, CVPR 2017",
                "JSRT database: research and education; Shiraishi et al., AJR 2000",
            ],
            "recipe": f"python -m export train restoration --iterations {iterations} && "
            "python -m export onnx restoration",
            "notes": [
                "Degradations are simulated: down- and upsampling, blur, motion, scatter, low contrast, "
                "quantum and electronic noise, JPEG; one to three at a time, none in 15% of the examples.",
                "The shipped run took the recipe with two deviations: at iteration 720 it went on from its "
                "averaged weights with fresh optimiser moments, and up to iteration 1340 its loss weighed "
                "slopes by half and examples by the root of their damage.",
            ],
        },
        "figures": {},
        "limits": {
            "texts": [
                "Trained and measured on simulated degradations only; real ones may differ.",
                "What a degradation has destroyed is guessed, not measured: fine vessels and small "
                "nodules may be "
                "smoothed away or invented. Always read beside the original.",
                "It takes out noise. Blur, motion, low resolution and JPEG artefacts are hardly undone; "
                "where JPEG is the only fault it costs a little fidelity (see figures). More sampling steps "
                "give more texture, the model's and not the patient's: 2 are the default.",
                "Works at 512 x 512; finer detail of the native matrix is neither repaired nor lost.",
                "An undegraded image changes least in the lungs and most at letters and metal edges, "
                "which are softened a little.",
                "Low contrast and veil cannot be told from a naturally flat radiograph and are left almost "
                "as they are.",
            ]
        },
    }


def ship(checkpoint: Path, folder: Path, *, version: str) -> list[float]:
    """Writes ``denoiser.onnx`` and ``card.toml``; returns the differences to torch."""
    model = load_denoiser(checkpoint)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "sample": torch.randn(2, 1, SIZE, SIZE, generator=generator),
        "condition": torch.rand(2, 1, SIZE, SIZE, generator=generator) * 2 - 1,
        "timestep": torch.tensor([999.0, 124.0]),
    }
    path = folder / "denoiser.onnx"
    export_graph(model, path, inputs, ["prediction"])
    errors = parity(model, path, inputs, tolerance=5e-3)
    iterations = torch.load(checkpoint, weights_only=True)["iteration"]
    write_card(folder, card(version, iterations))
    return errors
