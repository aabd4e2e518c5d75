"""The way from material thickness to a displayed radiograph: attenuation, scatter, noise and tone.

Mass attenuation coefficients are those of J. H. Hubbell and S. M. Seltzer, "Tables of X-Ray Mass Attenuation
Coefficients and Mass Energy-Absorption Coefficients", NIST Standard Reference Database 126, for the ICRU-44
compositions of soft tissue (density 1.06 g/cm3) and cortical bone (1.92 g/cm3).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pacs_node.phantom.shapes import Array, Mask

ENERGY_KEV = np.array([20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0])
SOFT_CM2_G = np.array([0.8230, 0.3790, 0.2688, 0.2264, 0.2048, 0.1823, 0.1693])
BONE_CM2_G = np.array([4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855])
SOFT_G_CM3, BONE_G_CM3 = 1.06, 1.92

LOW_KEV, HIGH_KEV = 40.0, 60.0
"""The two effective energies: roughly those of 60 kV and of 120 kV beams behind a patient."""


def mu(energy_kev: float) -> tuple[float, float]:
    """Linear attenuation coefficients (soft tissue, cortical bone) in 1/cm; log-log between table rows."""
    if not ENERGY_KEV[0] <= energy_kev <= ENERGY_KEV[-1]:
        raise ValueError(
            f"energy {energy_kev} keV is outside the table ({ENERGY_KEV[0]} to {ENERGY_KEV[-1]} keV)"
        )
    at = np.log(energy_kev)
    soft = np.exp(np.interp(at, np.log(ENERGY_KEV), np.log(SOFT_CM2_G))) * SOFT_G_CM3
    bone = np.exp(np.interp(at, np.log(ENERGY_KEV), np.log(BONE_CM2_G))) * BONE_G_CM3
    return float(soft), float(bone)


@dataclass(frozen=True)
class Thickness:
    """What the beam crosses, in cm of each material, shape (size, size): together the whole patient.

    ``bone`` is dense (cortical) bone; spongiosa counts by its share of it. Where bone is, soft tissue is not:
    ``soft`` is what is left beside the bone, ``soft + bone`` the patient as if all of it were soft tissue.
    """

    soft: Array
    bone: Array

    def attenuation(self, energy_kev: float) -> Array:
        """The Beer-Lambert exponent of both materials, -ln(I / I0), at one energy."""
        soft, bone = mu(energy_kev)
        return np.asarray(soft * self.soft + bone * self.bone, np.float32)

    def without_bone(self) -> Thickness:
        """The same patient with soft tissue in the place of the bones."""
        return Thickness(self.soft + self.bone, np.zeros_like(self.bone))


def separate(low: Array, high: Array, low_kev: float = LOW_KEV, high_kev: float = HIGH_KEV) -> Thickness:
    """Dual-energy separation: both thicknesses from two Beer-Lambert exponents (a 2 x 2 linear system)."""
    (s_low, b_low), (s_high, b_high) = mu(low_kev), mu(high_kev)
    determinant = s_low * b_high - s_high * b_low
    soft = (b_high * low - b_low * high) / determinant
    bone = (s_low * high - s_high * low) / determinant
    return Thickness(soft.astype(np.float32), bone.astype(np.float32))


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur, done on a smaller matrix where the kernel is wide. ``sigma`` in pixels."""
    if sigma < 0.2:
        return image
    if sigma <= 12:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32)
    rows, columns = image.shape
    small = cv2.resize(image, (columns // 8, rows // 8), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / 8, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR), np.float32)


@dataclass(frozen=True)
class Exposure:
    """How the patient is imaged."""

    energy_kev: float = HIGH_KEV
    photons_per_mm2: float = 2.0e6  # on the detector without a patient
    scatter_ratio: float = 0.25  # scatter to primary behind the grid, where the patient is average
    scatter_mm: float = 30.0
    focus_mm: float = 0.22  # blur of focal spot and detector (standard deviation)

    def detected(self, thickness: Thickness, pitch: float) -> Array:
        """-ln of detected intensity over open beam: Beer-Lambert, blur and scatter, no noise."""
        primary = blur(np.exp(-thickness.attenuation(self.energy_kev)), self.focus_mm / pitch)
        scatter = self.scatter_ratio * blur(primary, self.scatter_mm / pitch)
        return np.asarray(-np.log((primary + scatter) / (1 + self.scatter_ratio)), np.float32)

    def noise(self, detected: Array, pitch: float, rng: np.random.Generator) -> Array:
        """Quantum noise of ``detected``: its variance is one over the number of photons in a pixel."""
        photons = self.photons_per_mm2 * pitch**2 * np.exp(-detected)
        white = rng.standard_normal(detected.shape, dtype=np.float32) / np.sqrt(photons)
        return blur(white.astype(np.float32), 0.5)  # light spreads between neighbouring pixels


@dataclass(frozen=True)
class Tone:
    """The display processing of a radiography system: edge emphasis, then a window with soft ends."""

    low: float
    high: float
    emphasis: float = 0.55
    emphasis_mm: float = 7.0
    detail: float = 0.9
    detail_mm: float = 1.3
    balance: float = 0.42
    balance_mm: float = 35.0

    @classmethod
    def fitted(cls, detected: Array, inside: Mask, **options: float) -> Tone:
        """The window that shows the pixels of ``inside`` (bool) from just above black to just below white."""
        low, high = np.percentile(detected[inside], [1.0, 99.8])
        return cls(float(low), float(high), **options)

    def show(self, detected: Array, pitch: float) -> Array:
        """Display values in [0, 1], dense is bright. Rising in ``detected`` but for the local emphasis."""
        emphasised = detected + self.emphasis * (detected - blur(detected, self.emphasis_mm / pitch))
        emphasised += self.detail * (detected - blur(detected, self.detail_mm / pitch))
        wide = blur(detected, self.balance_mm / pitch)
        middle = (self.low + self.high) / 2
        emphasised = emphasised - self.balance * (np.clip(wide, self.low, self.high) - middle)
        scale = (self.high - self.low) * (1 - self.balance) * 0.5
        u = (emphasised - middle) / max(scale, 1e-6)
        return np.asarray(0.5 + 0.5 * np.tanh(0.9 * u) / np.tanh(1.1), np.float32).clip(0, 1)
