"""The phantom keeps the physics that it claims: bone and soft tissue are known, a seed is a patient."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from pacs_node.phantom import Phantom, PhantomImages
from pacs_node.phantom.physics import (
    BONE_CM2_G,
    ENERGY_KEV,
    HIGH_KEV,
    LOW_KEV,
    SOFT_CM2_G,
    Exposure,
    Thickness,
    mu,
    separate,
)
from pacs_node.phantom.shapes import Grid, ellipsoid, tube

pytestmark = pytest.mark.xdist_group("phantom")  # its patients are drawn once for all of them
SIZE = 256
PATIENT = (2, "PA", "F", 40, 2)


@lru_cache
def rendered(*patient: int | str) -> PhantomImages:
    return Phantom(*patient).render(SIZE)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom(*PATIENT)


def test_images_are_what_they_say() -> None:
    images = rendered(*PATIENT)
    for image in (images.radiograph, images.soft_tissue):
        assert image.shape == (SIZE, SIZE)
        assert image.dtype == np.float32
        assert 0 <= image.min() < 0.05
        assert 0.95 < image.max() <= 1
    for mask in (images.lung_mask, images.rib_mask, images.nodule_mask):
        assert mask.dtype == bool
        assert mask.any()
        assert not mask.all()
    assert images.pixel_spacing_mm == 400 / SIZE


def test_bone_is_exactly_the_difference_of_the_two_images(phantom: Phantom) -> None:
    images = rendered(*PATIENT)
    np.testing.assert_array_equal(images.radiograph - images.soft_tissue, images.bone)
    far = ~(phantom.thickness(SIZE).bone > 0) & images.lung_mask
    ribs = images.rib_mask & images.lung_mask
    # Beside the bones the two differ only by what blur, scatter and the display's wide filters carry there.
    assert images.bone[ribs].mean() > 0.03
    assert abs(images.bone[far].mean()) < 0.5 * images.bone[ribs].mean()


def test_without_bones_the_radiograph_is_the_soft_tissue_image(
    phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    thickness = phantom.thickness(SIZE)
    exposure, pitch = phantom.exposure, 400 / SIZE
    boneless = thickness.without_bone()
    assert not boneless.bone.any()
    np.testing.assert_allclose(boneless.soft, thickness.soft + thickness.bone)
    np.testing.assert_array_equal(
        exposure.detected(boneless, pitch), exposure.detected(boneless.without_bone(), pitch)
    )
    # Through the whole chain: a phantom whose bones are taken away shows its own soft-tissue image.
    monkeypatch.setattr("pacs_node.phantom.skeleton.ribs", lambda grid, *_: grid.zeros())
    monkeypatch.setattr("pacs_node.phantom.skeleton.spine", lambda grid, *_: grid.zeros())
    monkeypatch.setattr("pacs_node.phantom.skeleton.sternum", lambda grid, *_: grid.zeros())
    monkeypatch.setattr("pacs_node.phantom.skeleton.shoulders", lambda grid, *_: grid.zeros())
    images = phantom.render(SIZE)
    np.testing.assert_array_equal(images.radiograph, images.soft_tissue)
    assert not images.bone.any()


def test_two_energies_give_both_materials_back(phantom: Phantom) -> None:
    truth = phantom.thickness(SIZE)
    found = separate(truth.attenuation(LOW_KEV), truth.attenuation(HIGH_KEV))
    np.testing.assert_allclose(found.soft, truth.soft, atol=2e-3)
    np.testing.assert_allclose(found.bone, truth.bone, atol=1e-3)


def test_beer_lambert_is_monotone_in_thickness_and_energy() -> None:
    steps = np.linspace(0, 30, 31, dtype=np.float32).reshape(1, -1)
    none = np.zeros_like(steps)
    for energy in ENERGY_KEV[1:]:
        soft, bone = Thickness(steps, none).attenuation(energy), Thickness(none, steps).attenuation(energy)
        assert (np.diff(soft) > 0).all()
        assert (bone[:, 1:] > soft[:, 1:]).all()  # bone attenuates more than soft tissue
        np.testing.assert_allclose(np.exp(-2 * soft), np.exp(-soft) ** 2, rtol=1e-5)
    by_energy = [mu(e) for e in np.linspace(20, 100, 50)]
    assert (np.diff(by_energy, axis=0) < 0).all()


def test_table_rows_are_met_exactly_and_the_range_is_kept() -> None:
    for energy, soft, bone in zip(ENERGY_KEV, SOFT_CM2_G, BONE_CM2_G, strict=True):
        assert mu(float(energy)) == pytest.approx((soft * 1.06, bone * 1.92))
    with pytest.raises(ValueError, match="outside the table"):
        mu(150)


def test_noise_follows_the_photons_and_scatter_lifts_the_dark() -> None:
    even = np.full((256, 256), 2.0, np.float32)
    rng = np.random.default_rng(0)
    few = Exposure(photons_per_mm2=1e5).noise(even, 1.0, rng).std()
    many = Exposure(photons_per_mm2=4e5).noise(even, 1.0, rng).std()
    assert few / many == pytest.approx(2, rel=0.05)
    slab = Thickness(np.full((128, 128), 20, np.float32), np.zeros((128, 128), np.float32))
    slab.soft[:64] = 5
    clean = Exposure(scatter_ratio=0).detected(slab, 2.0)
    hazy = Exposure(scatter_ratio=0.3).detected(slab, 2.0)
    assert hazy[70, 64] < clean[70, 64]


def test_thickness_of_simple_bodies() -> None:
    grid = Grid(400, 400)
    ball = ellipsoid(grid, (0, 200), (50, 50, 50))
    assert ball.max() == pytest.approx(100, rel=1e-3)
    assert ball.sum() == pytest.approx(4 / 3 * np.pi * 50**3, rel=1e-3)  # 1 mm pixels: the sum is the volume
    pipe = grid.zeros()
    tube(pipe, grid, [(-100, 200), (100, 200)], 10)
    assert pipe.sum() == pytest.approx(200 * np.pi * 10**2 + 4 / 3 * np.pi * 10**3, rel=5e-3)
    hollow = grid.zeros()
    tube(hollow, grid, [(-100, 200), (100, 200)], 10, wall=2, core=0)
    assert hollow[200, 200] == pytest.approx(4, abs=0.3)  # two walls
    assert hollow[192, 200] > hollow[200, 200]  # the rim is denser than the middle


def test_a_seed_is_a_patient() -> None:
    seed, *rest = PATIENT
    images, again = rendered(*PATIENT), Phantom(*PATIENT).render(SIZE)
    other = rendered(seed + 1, *rest)
    np.testing.assert_array_equal(images.radiograph, again.radiograph)
    assert np.abs(images.radiograph - other.radiograph).mean() > 0.01


GOLDEN = {
    (1, "PA", "M", 55, 0): (0.42818, 0.41510, 0.25452),
    PATIENT: (0.41461, 0.40371, 0.20728),
    (3, "AP", "M", 78, 0): (0.42785, 0.40959, 0.21603),
}


@pytest.mark.parametrize("arguments", GOLDEN)
def test_golden_means(arguments: tuple[int, str, str, int, int]) -> None:
    """A change of these numbers is a change of the phantom that others test with: make it on purpose."""
    images = rendered(*arguments)
    found = images.radiograph.mean(), images.soft_tissue.mean(), images.lung_mask.mean()
    assert found == pytest.approx(GOLDEN[arguments], abs=2e-4)


@pytest.mark.slow
def test_the_same_patient_on_another_matrix() -> None:
    small, large = Phantom(5).render(128), Phantom(5).render(512)
    averaged = large.radiograph.reshape(128, 4, 128, 4).mean((1, 3))
    assert np.abs(averaged - small.radiograph).mean() < 0.02


def test_anatomy_lies_where_it_should() -> None:
    images = rendered(1, "PA", "M", 55, 0)
    image, lungs = images.soft_tissue, images.lung_mask
    left, right = lungs[:, : SIZE // 2], lungs[:, SIZE // 2 :]
    assert 0.05 < left.mean() < 0.35
    assert 0.05 < right.mean() < 0.35
    assert left.sum() > right.sum()  # the heart takes its room from the patient's left lung
    assert image[lungs].mean() < 0.45 < image[int(0.85 * SIZE), SIZE // 2]  # dark lungs, bright belly
    assert image[4, 4] < 0.05  # beside the neck is air
    rows = np.nonzero(lungs.any(1))[0] / SIZE * 400
    assert 45 < rows.min() < 95
    assert 250 < rows.max() < 350


def test_the_bedside_view_is_another_picture() -> None:
    hearts = []
    for view in ("PA", "AP"):
        build = [Phantom(seed, view).build for seed in range(20)]
        hearts.append((np.mean([b.heart for b in build]), np.mean([b.breath for b in build])))
    assert hearts[1][0] > 1.05 * hearts[0][0]
    assert hearts[1][1] > hearts[0][1] + 8


def test_nodules_lie_in_the_lungs_and_are_denser() -> None:
    with_nodules, without = rendered(*PATIENT), rendered(*PATIENT[:-1], 0)
    mask = with_nodules.nodule_mask
    assert not without.nodule_mask.any()
    assert (with_nodules.lung_mask | ~mask).all()
    assert (with_nodules.radiograph - without.radiograph)[mask].mean() > 0.02


@pytest.mark.parametrize(
    "wrong",
    [{"view": "LL"}, {"sex": "X"}, {"age_years": 3}, {"nodules": -1}],
)
def test_wrong_arguments_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Phantom(1, **wrong)  # type: ignore[arg-type]


def test_size_is_bounded() -> None:
    with pytest.raises(ValueError, match="64 to 4096"):
        Phantom(1).render(60_000)
