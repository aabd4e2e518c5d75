"""Bone suppression: a latent diffusion model finds the bones; they are subtracted from the image itself."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from pacs_node.conditions import Conditions
from pacs_node.infer import fusion
from pacs_node.infer.cards import Card
from pacs_node.infer.diffusion import Count, Diffusion, encode, run_parameters
from pacs_node.infer.geometry import Frame, check_image
from pacs_node.infer.providers import Settings
from pacs_node.infer.results import ImageResult, Progress
from pacs_node.infer.sampling.loop import Lane
from pacs_node.infer.session import open_session

Array = NDArray[np.float32]

NO_LUNGS = "no lungs were found, so the local path was left out"


class BoneSuppression:
    """z = encode(image); soft = sample(denoiser | z); bone = decode(z) - decode(soft); result = image - bone.

    After BS-LDM (Sun et al., arXiv 2412.15670), whose result is decode(soft): the card's ``result =
    "replace"``. Taking the difference of the two decoded images instead cancels most of what the autoencoder
    loses, and subtracting it from the native image leaves vessels, nodules and noise as they were taken.

    The bone image is limited to 0 and above, so the result is nowhere brighter than its source: no opacity
    can be added. It costs nothing: with the first weights, PSNR against dual energy changed by +0.1 dB
    (three SZCH pairs) and -0.05 dB (five Gusarev pairs), though a quarter of the pixels lay below 0 without
    it.

    With ``[local]`` in its card it is GL-LCM (Sun et al., arXiv 2508.03357): the same denoiser samples a
    second time, beside the first, given the lungs alone; that decoded image is set into the first one by
    Poisson fusion.
    """

    def __init__(self, card: Card, settings: Settings) -> None:
        self.card, self.settings = card, settings
        roles = ["encoder", "denoiser", "decoder", *(["lungs"] if card.local else [])]
        self.sessions = tuple(open_session(card, role, settings) for role in roles)
        self._encoder, denoiser, self._decoder = self.sessions[:3]
        self._lungs = self.sessions[3] if card.local else None
        self._diffusion = Diffusion(card, denoiser, settings)
        if self._diffusion.shallow is not None:
            self.sessions = (*self.sessions, self._diffusion.shallow)
        start = self._diffusion.table.clip_start
        self._lanes = [Lane(start)]
        if card.local is not None:
            local = start if card.local.clip_start is None else card.local.clip_start
            self._lanes.append(Lane(local, card.local.guidance))

    def __call__(
        self, image: Array, conditions: Conditions, seed: int, progress: Progress | None = None
    ) -> ImageResult:
        """``image`` float32 (H, W) in [0, 1], bone bright, as check_image says. The conditions are not used.

        Raises Refused or ValueError on an unfit image, ModelError if the model fails.
        """
        started = time.perf_counter()
        check_image(image)
        frame = Frame(image.shape[0], image.shape[1], self.card.input.size)
        count = Count(self._diffusion.evaluations + 3, progress)

        square = frame.to_square(image)
        lungs = self._mask(square)
        # Without lungs there is nothing that the local path could see.
        lanes = self._lanes if lungs is not None else self._lanes[:1]
        seen = [square] if lungs is None else [square, np.where(lungs, square, np.float32(0))]
        radiographs = self._encoder.run(image=np.concatenate([encode(s, self.card) for s in seen]))["latent"]
        count()
        scale = np.float32(self._diffusion.table.latent_scale)
        soft = self._diffusion.sample(scale * radiographs, seed, count, lanes) / scale
        replaces = self.card.result == "replace"
        with_bone = None if replaces else self._decode(radiographs[:1])[0]
        count()
        without_bone = self._fused(self._decode(soft), lungs)
        if with_bone is None:
            result = np.clip(frame.to_native(without_bone), 0.0, 1.0)
        else:
            bone = frame.to_native(with_bone - without_bone)
            result = np.clip(image - np.maximum(bone, 0.0), 0.0, 1.0)
        count()
        parameters = run_parameters(self.card, self.sessions, self.settings)
        if self._lungs is not None and lungs is None:
            parameters["warnings"] = [*parameters["warnings"], NO_LUNGS]
        return ImageResult(
            image=result,
            bone=image - result,
            parameters=self._diffusion.parameters(seed) | parameters,
            seconds=time.perf_counter() - started,
        )

    def _mask(self, square: Array) -> NDArray[np.bool_] | None:
        """Where the lungs are (S, S); None if the model has no local path, or sees none."""
        if self._lungs is None:
            return None
        mask = self._lungs.run(image=encode(square, self.card))["mask"][0, 0] >= 0.5
        lungs = fusion.without_dust(mask)
        return lungs if lungs.any() else None

    def _decode(self, latents: Array) -> Array:
        """(N, C, h, w) -> (N, S, S) in [0, 1] but for what overshoots."""
        low, high = self.card.input.range
        return np.asarray((self._decoder.run(latent=latents)["image"][:, 0] - low) / (high - low), np.float32)

    def _fused(self, decoded: Array, lungs: NDArray[np.bool_] | None) -> Array:
        """The global image with the local one's lungs in it."""
        whole: Array = decoded[0]
        if lungs is None:
            return whole
        # The authors first move the local image to the global one's mean in the lungs. That is in their
        # separate local image; in the fused one a constant makes no difference, as the membrane takes it up.
        return fusion.fuse(whole, decoded[1], lungs)
