"""The two published systems: shapes of their networks, noise, sampling and clipping, as their code has them.

Read off the authors' repositories, not off the papers, where the two differ:

BS-LDM
    github.com/diaoquesang/BS-LDM at 44a7246 (MIT), config.py, model.py, ldm_eval.py; Sun et al., JBHI 2025,
    arXiv 2412.15670.
GL-LCM
    github.com/diaoquesang/GL-LCM at 271e373 (MIT), codes/config.py, model.py, batch_lcm_eval.py; Sun et al.,
    MICCAI 2025.

Both take the latent after quantisation as condition and as training target, and decode what they have sampled
without quantising it: ``encode_stage_2_inputs`` and ``decode`` of MONAI's generative models 0.2.2, which both
name in their requirements, are so (only ``decode_stage_2_outputs`` would quantise).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.bone_suppression import unet, vqgan

#: Side of the images in pixels, for both.
SIZE = 1024


@dataclass(frozen=True)
class Published:
    """One published system. ``diffusion``, ``sampler`` and ``local`` are tables of its card.

    ``sampler`` is the authors' own; ``quick`` is what a converted model samples by unless the configuration
    says otherwise. ``local`` is None without a path of its own for the lungs.
    """

    title: str
    source: str
    autoencoder: vqgan.Shape
    denoiser: unet.Shape
    diffusion: Mapping[str, Any]
    sampler: Mapping[str, Any]
    quick: Mapping[str, Any]
    local: Mapping[str, Any] | None = None
    #: Whether the diffusion works on latents after quantisation.
    quantised: bool = True
    #: Trained by a site with this project's recipe (own.py), not by the authors.
    own: bool = False


#: The limit on the clean estimate grows by 0.003 with each of the 1000 steps (config.clip_rate). The code
#: gives beta_start and beta_end, too, which the schedule squaredcos_cap_v2 does not use.
#:
#: The quick sampler leads, as the authors' does, and so starts at step 940. At 999 this schedule leaves 5e-5
#: of the image, and a clean estimate from the noise found there is rounding magnified 20,000 times, limited
#: to +-1.4. Measured in 20 steps on a network in small that predicts noise (trained for half an hour): from
#: 999 int8 makes an image 32 dB from float32's, and another seed one 17 dB from it; from 940 51 and 27 dB.
#: From the truth both are 10 dB.
BS_LDM = Published(
    title="BS-LDM",
    source="github.com/diaoquesang/BS-LDM",
    autoencoder=vqgan.Shape(),
    denoiser=unet.Shape(),
    diffusion={
        "schedule": "squaredcos_cap_v2",
        "train_steps": 1000,
        "prediction": "epsilon",
        "clip_start": 1.4,
        "clip_slope": 0.003,
    },
    sampler={"name": "ddpm", "steps": 1000, "spacing": "leading"},
    quick={"name": "dpmpp_multistep", "steps": 20, "spacing": "leading"},
)

#: The limits grow by 0.025 with each of 50 steps, which is every 20th of 1000: 0.00125 a training step. They
#: are the authors' for SZCH-X-Rays; for JSRT they start from 1.7 (image) and 3 (lungs).
GL_LCM = Published(
    title="GL-LCM",
    source="github.com/diaoquesang/GL-LCM",
    autoencoder=vqgan.Shape(codes=1024),
    denoiser=unet.Shape(new_attention_order=True),
    diffusion={
        "schedule": "scaled_linear",
        "train_steps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction": "epsilon",
        "clip_start": 2.0,
        "clip_slope": 0.00125,
    },
    sampler={"name": "lcm", "steps": 50},
    quick={"name": "lcm", "steps": 50},
    local={"clip_start": 3.5, "guidance": 3.0},
)

PUBLISHED = {"bs-ldm": BS_LDM, "gl-lcm": GL_LCM}
