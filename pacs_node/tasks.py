"""The names of the three tasks, as they stand in configuration, file names and reports."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class Task(StrEnum):
    """What the node can make of a frontal chest radiograph."""

    BONE_SUPPRESSION = "bone_suppression"
    RESTORATION = "restoration"
    ANOMALY = "anomaly"


SamplerName = Literal[
    "ddpm",
    "ddim",
    "dpmpp_multistep",
    "dpmpp_singlestep",
    "sde_dpmpp",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "langevin",
    "reverse_diffusion",
    "euler_maruyama",
    "ancestral",
    "probability_flow",
]
"""How a diffusion model can be sampled: words of a model's card and of the configuration (infer/sampling)."""
