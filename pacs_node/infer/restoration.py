"""Restoration: a conditional diffusion model cleans the image; what it changes is brought up and added."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from pacs_node.conditions import Conditions
from pacs_node.infer.cards import Card
from pacs_node.infer.diffusion import Count, Diffusion, decode_difference, encode, run_parameters
from pacs_node.infer.geometry import Frame, check_image
from pacs_node.infer.providers import Settings
from pacs_node.infer.results import ImageResult, Progress
from pacs_node.infer.session import open_session

Array = NDArray[np.float32]


class Restoration:
    """clean = sample(denoiser | image); result = image + (clean - image), difference at model size.

    The conditional diffusion of SR3 (Saharia et al., arXiv 2104.07636) as DiffusionXRay uses it. What is
    finer than the model's pixels is the image's own and stays.
    """

    def __init__(self, card: Card, settings: Settings) -> None:
        self.card, self.settings = card, settings
        self._denoiser = open_session(card, "denoiser", settings)
        self.sessions = (self._denoiser,)
        self._diffusion = Diffusion(card, self._denoiser, settings)

    def __call__(
        self, image: Array, conditions: Conditions, seed: int, progress: Progress | None = None
    ) -> ImageResult:
        """``image`` float32 (H, W) in [0, 1], bone bright, as check_image says. The conditions are not used.

        Raises Refused or ValueError on an unfit image, ModelError if the model fails.
        """
        started = time.perf_counter()
        check_image(image)
        frame = Frame(image.shape[0], image.shape[1], self.card.input.size)
        count = Count(self._diffusion.evaluations + 1, progress)
        given = encode(frame.to_square(image), self.card)
        clean = self._diffusion.sample(given, seed, count)
        difference = frame.to_native(decode_difference(clean - given, self.card))
        result = np.clip(image + difference, 0.0, 1.0)
        count()
        return ImageResult(
            image=result,
            bone=None,
            parameters=self._diffusion.parameters(seed)
            | run_parameters(self.card, self.sessions, self.settings),
            seconds=time.perf_counter() - started,
        )
