"""A synthetic frontal chest radiograph whose bone and soft tissue are known exactly.

Analytic anatomy (`anatomy`, `skeleton`) gives the thickness of soft tissue and of dense bone under every
pixel; `physics` turns both into an image by Beer-Lambert transmission, scatter, quantum noise and a display
tone. It is a test object with the look of a radiograph, not a model of any person.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pacs_node.phantom import anatomy, skeleton
from pacs_node.phantom.physics import Exposure, Thickness, Tone
from pacs_node.phantom.shapes import Array, Grid, Mask

VIEWS, SEXES = ("PA", "AP"), ("M", "F")


@dataclass(frozen=True)
class PhantomImages:
    """One rendering: arrays of shape (size, size), images float32 in [0, 1], bone-bright (MONOCHROME2 look).

    ``soft_tissue`` is the same exposure of the same patient, same noise, with soft tissue in the place of the
    bones; ``bone`` is ``radiograph - soft_tissue``. The masks are bool; ``rib_mask`` holds no other bones.
    """

    radiograph: Array
    soft_tissue: Array
    bone: Array
    lung_mask: Mask
    rib_mask: Mask
    nodule_mask: Mask
    pixel_spacing_mm: float


@dataclass(frozen=True)
class _Parts:
    thickness: Thickness
    lung_mask: Mask
    rib_mask: Mask
    nodule_mask: Mask


class Phantom:
    """A synthetic patient: the same for the same arguments, whatever the matrix it is rendered on.

    ``view`` is "PA" or "AP" (bedside: larger heart, higher diaphragm, shoulder blades on the lungs), ``sex``
    "M" or "F", ``nodules`` the number of round opacities in the lungs. Raises ValueError for anything else.
    """

    def __init__(
        self, seed: int, view: str = "PA", sex: str = "M", age_years: float = 55, nodules: int = 0
    ) -> None:
        if view not in VIEWS or sex not in SEXES:
            raise ValueError(f"view must be one of {VIEWS} and sex one of {SEXES}, not {view!r} and {sex!r}")
        if not 18 <= age_years <= 110 or nodules < 0:
            raise ValueError(
                f"age must be 18 to 110 years and nodules not negative, not {age_years} and {nodules}"
            )
        self.seed, self.view, self.sex, self.age_years, self.nodules = seed, view, sex, age_years, nodules
        self.build = anatomy.Build.drawn(self._rng(0), view, sex, age_years)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])

    @cached_property
    def exposure(self) -> Exposure:
        """The beam of this patient's examination."""
        rng = self._rng(1)
        bedside = self.view == "AP"
        return Exposure(
            energy_kev=float(rng.uniform(46, 54) if bedside else rng.uniform(50, 60)),
            photons_per_mm2=float(rng.uniform(1.5e6, 3e6)),
            scatter_ratio=float(rng.uniform(0.3, 0.5) if bedside else rng.uniform(0.15, 0.3)),
        )

    def thickness(self, size: int = 1024) -> Thickness:
        """Soft tissue and dense bone under every pixel, in cm: the ground truth behind the images."""
        return self._parts(size).thickness

    def _parts(self, size: int) -> _Parts:
        grid = Grid(size, anatomy.FIELD_MM)
        pair = anatomy.lungs(self.build, self._rng(2))
        chest = anatomy.chest(grid, self.build, pair, self.nodules, self._rng(3))
        rng = self._rng(4)
        ribs = skeleton.ribs(grid, self.build, pair, rng)
        others = skeleton.spine(grid, self.build, rng) + skeleton.sternum(grid, self.build)
        others += skeleton.shoulders(grid, self.build, rng)
        solid = np.maximum(chest.body - chest.air, 0)
        grain = 1 + 0.06 * anatomy.texture(grid, self._rng(6), (7, 2.5))  # trabeculae are not even
        bone = np.minimum((ribs + others) * grain, 0.9 * solid)
        thickness = Thickness(soft=(solid - bone) / 10, bone=bone / 10)
        return _Parts(thickness, chest.lung_mask, ribs > 0.3, chest.nodule_mask)

    def render(self, size: int = 1024) -> PhantomImages:
        """Expose and process; ``size`` x ``size`` pixels over a field of 400 mm."""
        if not 64 <= size <= 4096:
            raise ValueError(f"size must be 64 to 4096 pixels, not {size}")
        parts = self._parts(size)
        pitch = anatomy.FIELD_MM / size
        with_bone = self.exposure.detected(parts.thickness, pitch)
        without = self.exposure.detected(parts.thickness.without_bone(), pitch)
        inside = parts.thickness.soft > 3.0
        tone = Tone.fitted(with_bone, inside)
        noise = self.exposure.noise(with_bone, pitch, self._rng(5))
        radiograph = tone.show(with_bone + noise, pitch)
        soft_tissue = tone.show(without + noise, pitch)
        return PhantomImages(
            radiograph=radiograph,
            soft_tissue=soft_tissue,
            bone=radiograph - soft_tissue,
            lung_mask=parts.lung_mask,
            rib_mask=parts.rib_mask,
            nodule_mask=parts.nodule_mask,
            pixel_spacing_mm=pitch,
        )
