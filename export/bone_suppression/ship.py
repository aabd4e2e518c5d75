"""The bone suppression model as ONNX with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.bone_suppression.recipes import system
from export.bone_suppression.train import (
    AUTOENCODER,
    DENOISER,
    load_autoencoder,
    load_denoiser,
    load_diffusion,
)
from export.shipping import export_graph, parity, write_card

SIZE, STEPS = 512, 4


def card(version: str, scale: float) -> dict[str, Any]:
    """What the card says; ``evaluate`` fills in the figures."""
    return {
        "name": f"bone-suppression-{SIZE}",
        "task": "bone_suppression",
        "version": version,
        "summary": "BS-LDM's path in small: vector-quantised autoencoder (1/8 of the side, 256 codes) and "
        "conditional diffusion of the soft-tissue latent; 9 million parameters.",
        "intended_use": "Research: a second look at frontal chest radiographs of adults with the bones "
        "suppressed, beside the original. Not for diagnosis.",
        "qualification": "RESEARCH",
        "licence": "Apache-2.0",
        # In bf16 a latent between two codes takes the other: 46 dB from f32; 67 dB with these two in f32.
        "full_precision": ["encoder", "decoder"],
        "files": {"encoder": "encoder.onnx", "denoiser": "denoiser.onnx", "decoder": "decoder.onnx"},
        "input": {"size": SIZE, "range": [-1.0, 1.0], "channels": 1},
        "diffusion": {
            "schedule": "squaredcos_cap_v2",
            "train_steps": 1000,
            "prediction": "sample",
            "latent_scale": round(scale, 4),
            "clip_start": 4.0,
            "clip_slope": 0.002,
        },
        "sampler": {"name": "ddim", "steps": STEPS, "eta": 0.0, "spacing": "trailing"},
        "training": {
            "data": [
                "JSRT bone suppression pairs (Juhasz et al.), 128 less those held out (one in "
                "eight, by a hash of the name)",
                "5 dual-energy pairs published with xU-NetFullSharp (Gusarev et al.)",
                "32 synthetic radiographs of this project's chest phantom",
                "NIH ChestX-ray14, 300 radiographs, for the autoencoder only",
            ],
            "terms": [
                "JSRT database: research and education; Shiraishi et al., AJR 2000",
                "Gusarev pairs: published in an MIT repository, terms of the images unclear",
                "NIH Clinical Center: free use with attribution; Wang et al., ChestX-ray8, CVPR 2017",
            ],
            "recipe": "python -m export train bone_suppression --shape present --minutes 70 && "
            "python -m export onnx bone_suppression",
            "notes": [
                "The bones of the training pairs are varied from 0.8 to 3.5 times their "
                "strength, with random tone curves.",
                "The suppression of the JSRT pairs is algorithmic, not dual-energy.",
                "The SZCH dual-energy pairs (MIT) were not trained on; they measure the model, and the "
                "number of steps was chosen on them and on 5 held-out JSRT pairs (1, 2, 4, 8, 20 steps: "
                "fewer are better).",
            ],
            "pairs": {"jsrt_bse": "split", "des_gusarev": "all"},
        },
        "figures": {},
        "limits": {
            "texts": [
                "Ribs are weakened, not removed; clavicles, the spine and overlapping ribs least of all.",
                "On images of makers that it has not seen the suppression is weaker; later "
                "models adapt to a site.",
                "Works at 512 x 512; finer detail of the native matrix is kept, bone texture "
                "finer than that stays too.",
                "Nodules are weakened too: inserted ones kept a median of 83% of their contrast, those under "
                "bones 75%, those of 5 mm 99%, of 10 mm 86%, of 15 to 30 mm 71 to 75% (287 nodules, 18 "
                "radiographs not trained on). Large round opacities are partly taken for bone.",
                "The shadows of ribs go, their edges stay: of rib edges of 4 to 6 mm 97% is left.",
                "Weakest on films with a wide white border, with effusion or small lungs, turned or crooked "
                "patients, tubes and leads, and pale films: the worst of 72 that were looked at.",
                "Whatever looks like bone may be weakened: calcified nodules, pleural plaques, "
                "lines and devices. "
                "Always read beside the original.",
            ]
        },
    }


class Encoder(nn.Module):
    """image -> latent."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image)


class Decoder(nn.Module):
    """latent -> nearest codes -> image."""

    def __init__(self, codes: Tensor, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("codes", codes)

    def forward(self, latent: Tensor) -> Tensor:
        # ||x - e||^2 less ||x||^2, a 1 x 1 convolution; its smallest is the nearest code.
        cost = nn.functional.conv2d(latent, -2 * self.codes[:, :, None, None], self.codes.square().sum(1))
        return self.decoder(self.codes[cost.argmin(1)].permute(0, 3, 1, 2))


def ship(runs: Path, folder: Path, *, version: str) -> dict[str, float]:
    """Writes the three graphs and ``card.toml``; returns each one's largest difference to torch."""
    present = system("present")
    checkpoints = runs / "bone_suppression" / present.name
    autoencoder = load_autoencoder(present, checkpoints / AUTOENCODER)
    denoiser = load_denoiser(present, checkpoints / DENOISER)
    scale = load_diffusion(checkpoints / DENOISER)["latent_scale"]
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, SIZE, SIZE, generator=generator) * 2 - 1
    latent = autoencoder.encode(image)
    noise = torch.randn(latent.shape, generator=generator)
    graphs: dict[str, tuple[nn.Module, dict[str, Tensor], str]] = {
        "encoder": (Encoder(autoencoder.encoder), {"image": image}, "latent"),
        "denoiser": (
            denoiser,
            {"sample": noise, "condition": latent * scale, "timestep": torch.tensor([999.0, 124.0])},
            "prediction",
        ),
        "decoder": (Decoder(autoencoder.quantiser.codes, autoencoder.decoder), {"latent": latent}, "image"),
    }
    errors = {}
    for role, (module, inputs, output) in graphs.items():
        path = folder / f"{role}.onnx"
        # The codes stay float32: neighbours among them are told apart by less than half precision holds.
        export_graph(module, path, inputs, [output], smallest=autoencoder.quantiser.codes.numel() + 1)
        # A latent that lies between two codes may take the other one after rounding: the decoder is held to
        # its
        # typical places by feeding it codes themselves.
        if role == "decoder":
            inputs = {"latent": autoencoder.quantiser(latent)[0]}
        (errors[role],) = parity(module, path, inputs, tolerance=5e-3)
    write_card(folder, card(version, scale))
    return errors
