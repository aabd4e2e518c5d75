"""The measurements of bone suppression, where the right figure is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch side (make test-all)")
pytest.importorskip("SimpleITK", reason="the torch side (make test-all)")

from export.__main__ import main
from export.anomaly.data import part_of
from export.bone_suppression.data import held_out
from export.bone_suppression.evaluation import nodules, readers, steps, texture, variations
from export.bone_suppression.evaluation.cases import cases, radiographs, trained_on
from export.bone_suppression.evaluation.lungs import lungs
from export.bone_suppression.evaluation.pairs import affine
from export.bone_suppression.evaluation.statistics import interval, summary
from export.bone_suppression.pairs import Found, digest
from export.shipping import put_figures
from pacs_node.infer import Card, read_card
from pacs_node.phantom import Phantom, PhantomImages
from pacs_node.phantom.physics import mu

pytestmark = pytest.mark.torch

TINY = Path(__file__).parent.parent / "infer" / "fixtures" / "models" / "tiny-bone"
SHIPPED = Path(__file__).parent.parent.parent / "onnx_models" / "bone-suppression-1024"


@pytest.fixture(scope="module")
def phantom() -> PhantomImages:
    return Phantom(7).render(512)


def told(card: Card, pairs: dict[str, object]) -> Card:
    return card.model_copy(update={"training": card.training.model_copy(update={"pairs": pairs})})


def test_intervals_are_of_patients_and_only_of_enough_of_them() -> None:
    values, patients = [0.0, 1.0] * 8, [str(i // 2) for i in range(16)]
    assert interval(values, patients) == (0.5, 0.5)  # each patient has both values
    low, high = interval(values, [str(i) for i in range(16)]) or (0, 0)
    assert 0.2 <= low < 0.4 < 0.6 < high <= 0.8
    assert interval(values[:14], patients[:14]) is None
    assert summary("x", [1.0, 2.0], ["a", "b"], 1) == {"x": 1.5, "x_each": [1.0, 2.0]}


def test_the_unseen_radiographs_are_of_both_views_and_of_many_patients(
    data_dir: Path, tmp_path: Path
) -> None:
    by_view = radiographs(data_dir)
    assert by_view.keys() == {"PA", "AP"}
    for view, records in by_view.items():
        assert {r.view for r in records} == {view}
        assert {part_of(r.patient) for r in records} == {"test"}
        patients = [r.patient for r in records]
        # Everybody once before anybody twice.
        assert len(set(patients[: len(set(patients))])) == len(set(patients)) >= 50
        assert len({r.path for r in records}) == len(records)
    assert radiographs(tmp_path) == {}


def test_the_card_says_what_was_trained_on(tmp_path: Path) -> None:
    card = read_card(TINY)
    pair = Found("somewhere/7", digest("7.png"), tmp_path, tmp_path)
    assert trained_on(card, pair) is None
    assert trained_on(told(card, {"elsewhere": "all"}), pair) is False
    assert trained_on(told(card, {"somewhere": "all"}), pair) is True
    assert trained_on(told(card, {"somewhere": ["7"]}), pair) is True
    assert trained_on(told(card, {"somewhere": ["8"]}), pair) is False
    assert trained_on(told(card, {"somewhere": "split"}), pair) is not held_out(pair.patient)


def test_pairs_trained_on_are_measured_only_where_there_are_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    for path in (folder / part / f"{n}.png" for part in ("cxr", "soft_tissue") for n in range(4)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    card = told(read_card(TINY), {"site": ["0", "2"]})
    assert [c.name for c in cases(card, [folder])["site"]] == ["site/1", "site/3"]
    everything = cases(told(card, {"site": "all"}), [folder], most=2)["site"]
    assert [(c.name, c.seen) for c in everything] == [("site/0", True), ("site/2", True)]


def test_an_affine_tone_curve_is_taken_out(phantom: PhantomImages) -> None:
    truth = phantom.soft_tissue
    np.testing.assert_allclose(affine(0.3 * truth + 0.2, truth), truth, atol=1e-5)
    np.testing.assert_allclose(affine(np.full_like(truth, 0.4), truth), truth.mean(), atol=1e-5)


def test_a_ball_of_water_attenuates_as_it_should() -> None:
    z, y, x = np.mgrid[-25:26, -25:26, -25:26]
    ball = nodules.Patch((np.sqrt(x**2 + y**2 + z**2) <= 6).astype(np.float32), 12.0)
    for diameter in (12.0, 24.0):
        seen = nodules.projected(ball, diameter, 0.25, np.random.default_rng(0))
        assert seen.max() == pytest.approx(mu(60)[0] / 1.06 * diameter / 10, rel=0.1)
        # A ball is over half of its height on a disc of sqrt(3) / 2 of its diameter.
        disc = 2 * np.sqrt((seen > seen.max() / 2).sum() * 0.25**2 / np.pi)
        assert disc == pytest.approx(diameter * 0.866, rel=0.06)


def test_the_share_of_contrast_that_is_kept_is_found(phantom: PhantomImages) -> None:
    image = phantom.radiograph
    y, x = np.mgrid[:512, :512] - 250
    signal = (0.1 * np.exp(-(x**2 + y**2) / 200)).astype(np.float32)
    spot = nodules.Spot((250, 250), 15, 1.0, signal, 0.9)
    (pair,) = cases_of(phantom)
    added, plain = image + signal, image - 0.02
    (kept,) = nodules.compared(added, plain + 0.7 * signal, image, plain, [spot], pair)
    assert kept.share == pytest.approx(0.7, abs=1e-3)
    assert kept.spot.position == "under bones"
    white = np.ones_like(image)  # a nodule that was lost in white already says nothing
    assert nodules.compared(white, white, white, white, [spot], pair) == []


def cases_of(phantom: PhantomImages) -> list[nodules.Case]:
    return [nodules.Case(Found("phantom/7", digest("7"), Path(), Path()), None)]


def test_nodules_lie_in_the_lungs_under_bones_and_between(phantom: PhantomImages) -> None:
    image, truth = phantom.radiograph, phantom.soft_tissue
    ball = nodules.Patch(np.pad(np.ones((6, 6, 6), np.float32), 4), 7.0)
    rng = np.random.default_rng(3)
    spots = [s for n in range(6) for s in nodules.draw(image, truth, phantom.lung_mask, [ball], rng, n)]
    assert len(spots) >= 12
    assert all(phantom.lung_mask[s.centre] for s in spots)
    assert {"under bones", "between bones"} <= {s.position for s in spots}
    on_ribs = [phantom.rib_mask[s.signal > s.signal.max() / 2].mean() for s in spots]
    of = {
        p: [r for r, s in zip(on_ribs, spots, strict=True) if s.position == p]
        for p in {s.position for s in spots}
    }
    assert np.mean(of["under bones"]) > np.mean(of["between bones"]) + 0.3


def test_lung_fields_of_a_phantom_lie_in_its_lungs(phantom: PhantomImages) -> None:
    found = lungs(phantom.radiograph)
    assert found is not None
    assert (found & phantom.lung_mask).sum() > 0.9 * found.sum()
    assert found.sum() > 0.4 * phantom.lung_mask.sum()
    assert lungs(np.full((256, 256), 0.5, np.float32)) is None


def test_spectra_tell_what_was_smoothed(phantom: PhantomImages) -> None:
    image, pitch = phantom.radiograph, phantom.pixel_spacing_mm
    inside, none = phantom.lung_mask, np.zeros_like(phantom.lung_mask)
    between, everywhere = texture.ratios(image, image, inside, none, pitch)
    np.testing.assert_allclose(between, 1)
    np.testing.assert_allclose(everywhere, between)
    smoothed = cv2.GaussianBlur(image, (0, 0), 1.0)
    blurred, _ = texture.ratios(image, smoothed, inside, none, pitch)
    assert blurred is not None
    assert blurred[0] > 0.7 > 0.2 > blurred[2]
    assert texture.ratios(image, image, inside, ~none, pitch)[0] is None


def test_what_is_far_from_bones() -> None:
    bone = np.zeros((41, 41), bool)
    bone[20, 20] = True
    away = texture.far(bone, pitch=1.0)
    assert not away[20, 24]
    assert away[20, 25]


def test_ribs_are_told_from_what_runs_otherwise(phantom: PhantomImages) -> None:
    inside = phantom.lung_mask
    with_ribs, without = (readers.energies(i, inside, 1.0) for i in (phantom.radiograph, phantom.soft_tissue))
    assert without["shadows"] < 0.7 * with_ribs["shadows"]
    assert without["edges"] < 0.9 * with_ribs["edges"]
    y, x = np.mgrid[:512, :512] * phantom.pixel_spacing_mm
    for axis, stronger in ((y, "shadows"), (x, "control")):
        found = readers.energies((0.5 + 0.1 * np.sin(2 * np.pi * axis / 22)).astype(np.float32), inside, 1.0)
        assert (found["shadows"] > found["control"]) is (stronger == "shadows")


def test_every_sampler_that_the_models_law_allows() -> None:
    asked = steps.allowed(read_card(SHIPPED))
    assert {name for name, _ in asked} == {
        "ddpm",
        "ddim",
        "dpmpp_multistep",
        "dpmpp_singlestep",
        "sde_dpmpp",
        "euler",
        "euler_ancestral",
        "heun",
        "lcm",
    }
    assert [count for name, count in asked if name == "ddim"] == list(steps.STEPS)


@pytest.mark.parametrize("apart", [False, True])
def test_what_other_pairs_gave_is_joined_to_nothing(tmp_path: Path, apart: bool) -> None:
    rows = [
        {"sampler": "ddpm", "steps": count, "psnr_gain": gain, "bsr": gain / 10, "nodule_contrast": 0.9}
        for count, gain in ((1, 3.0), (50, -2.0), (1000, 5.0))
    ]
    drawn = cv2.imread(str(steps.plot(rows, tmp_path / "steps.png", apart)))
    coloured = (np.ptp(drawn[40:390, 330:470].astype(int), axis=2) > 40).any(0)  # between 50 and 1000
    assert coloured.all() != apart
    assert coloured.any() != apart


def test_the_knee_is_the_fewest_steps_that_are_as_good() -> None:
    rows = [
        {"sampler": name, "steps": count, "psnr_gain": gain, "nodule_contrast": kept}
        for name, count, gain, kept in (
            ("ddim", 1, 2.0, 0.95),
            ("ddim", 4, 2.95, 0.95),
            ("heun", 4, 2.99, 0.95),
            ("ddim", 20, 3.0, 0.955),
            ("lcm", 2, 3.0, 0.8),
        )
    ]
    best, by = steps.knee(rows)
    assert (best["sampler"], best["steps"], by) == ("heun", 4, "0.1 dB and 1% of nodule contrast")
    worse = [row | {"nodule_contrast": 1.0} if row["psnr_gain"] == 2.0 else row for row in rows]
    best, by = steps.knee(worse)
    assert (best["sampler"], best["steps"]) == ("lcm", 2)
    assert "none" in by


def test_both_images_of_a_pair_are_varied_alike(phantom: PhantomImages) -> None:
    image, truth = phantom.radiograph, phantom.soft_tissue
    inside = phantom.lung_mask
    for name, vary in variations.VARIATIONS.items():
        varied, alike = vary(image, image)
        np.testing.assert_array_equal(varied, alike, err_msg=name)  # no bones, nothing to take away
        shown, soft = vary(image, truth)
        np.testing.assert_array_equal(shown, varied, err_msg=name)  # whatever its soft tissue
        assert soft.dtype == shown.dtype == np.float32, name
        assert (name == "as it is") == np.array_equal(shown, image), name
        assert (shown - soft)[inside].mean() > 0.002, name  # bones stay bright
    dot = np.zeros((101, 201), np.float32)
    dot[48:53, 148:153] = 1
    turned, _ = variations.placed(90)(dot, dot)
    assert turned[0:3, 98:103].min() == 1  # 50 to the right of the middle: now above it, counter-clockwise
    small, _ = variations.placed(size=0.5, border=0.3)(dot, dot)
    assert small[0, 0] == np.float32(0.3)
    assert np.unravel_index(small[:, 110:140].argmax(), (101, 30)) == (50, 15)


def write_pairs(folder: Path, count: int, size: int = 256) -> None:
    for number in range(count):
        shown = Phantom(100 + number).render(size)
        for part, image in (("cxr", shown.radiograph), ("soft_tissue", shown.soft_tissue)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / part / f"{number}.png"), np.round(image * 255).astype(np.uint8))


@pytest.mark.slow
def test_the_command_prints_tables_and_fills_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, site = tmp_path / "tiny-bone", tmp_path / "site"
    shutil.copytree(TINY, model)
    write_pairs(site, 1)
    put_figures(model, {"pairs": {"old": 1}, "texture": {"kept": 2}, "unknown": 3})
    digest_before = read_card(model).digest
    where = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), "--pairs", str(site)]
    asked = ["--part", "pairs", "--part", "readers", "--part", "variations"]
    main(["evaluate", "bone_suppression", "--model", str(model), *where, *asked])
    out = capsys.readouterr().out
    assert "| site | 1 | not said | as it is |" in out
    card = read_card(model)
    assert card.digest == digest_before
    assert card.figures.keys() == {"date", "pairs", "texture", "readers", "variations"}
    assert card.figures["texture"] == {"kept": 2}
    assert card.figures["pairs"]["site"]["as_it_is"]["psnr_gain"] < -10  # it halves what it sees
    assert card.figures["readers"]["site"]["shadows_left"] < 1
    varied = card.figures["variations"]["site"]
    assert varied["as_it_is"]["psnr_gain"] == pytest.approx(
        card.figures["pairs"]["site"]["as_it_is"]["psnr_gain"], abs=0.01
    )
    assert len(varied) == 2 + len(variations.VARIATIONS)
    written = tmp_path / "runs" / "eval" / "tiny-bone"
    assert (written / "pairs.md").read_text() in out
    assert cv2.imread(str(written / "pairs-site.png")).shape == (480, 2400, 3)
