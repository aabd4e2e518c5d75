"""Bone suppression's recipe in miniature: every loss falls, the adversary learns; resumed, and on two
processes, it is the same training; what cannot be trained is said.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch side is not installed (make test-all)")
pytestmark = pytest.mark.torch

import torch  # noqa: E402

from export.__main__ import main  # noqa: E402
from export.bone_suppression import recipes  # noqa: E402
from export.bone_suppression.convert import Request, convert  # noqa: E402
from export.bone_suppression.data import (  # noqa: E402
    Order,
    Squares,
    blurred,
    cut,
    draw,
    left_out,
    levelled,
    opacities,
    processed,
    vary,
)
from export.bone_suppression.losses import difference  # noqa: E402
from export.bone_suppression.own import own  # noqa: E402
from export.bone_suppression.pairs import digest  # noqa: E402
from export.bone_suppression.pickled import read_checkpoint  # noqa: E402
from export.bone_suppression.train import load_autoencoder, merged, plan  # noqa: E402
from export.bone_suppression.unet import Shape, UNet  # noqa: E402
from export.bone_suppression.weights import Graph  # noqa: E402
from export.devices import DeviceError, Place, place  # noqa: E402
from export.training import TrainingError, averaged, learn, read, run  # noqa: E402
from pacs_node.conditions import Conditions  # noqa: E402
from pacs_node.infer import Settings, make, read_card  # noqa: E402
from tests.export import training_system as small  # noqa: E402

STEPS = 70


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pairs() -> list[Squares]:
    return small.pairs(small.planes())


def mean(reports: list[dict[str, float]], name: str) -> float:
    return float(np.mean([report[name] for report in reports]))


def test_every_loss_of_the_autoencoder_falls_and_its_adversary_learns(pairs: list[Squares]) -> None:
    training = small.autoencoder(small.system(varied=True, unquantised=30), pairs)
    reports = [training.step() for _ in range(STEPS)]
    first, last = reports[:4], reports[-10:]
    for name in ("l1", "ms_ssim", "perceptual"):
        assert mean(last, name) < 0.8 * mean(first, name), name
    assert mean(last, "quantisation") < 0.05
    # 0.25 of the weight is an adversary that cannot tell; an early decoder is easily told.
    assert mean(last, "opponent") < min(0.25 * training.recipe.adversarial, 0.6 * mean(first, "opponent"))
    assert mean(last, "adversarial") > 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_denoiser_learns_whatever_it_predicts(pairs: list[Squares], prediction: str) -> None:
    chosen = small.system().changed([f"prediction={prediction}"])
    training = small.denoiser(chosen, pairs)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    level = torch.tensor([10, 400, 900])
    noisy = training.alpha[level][:, None, None, None] * clean
    noisy = noisy + training.sigma[level][:, None, None, None] * noise
    back = training.clean(training.target(clean, noise, level), noisy, level)
    assert torch.allclose(back, clean, atol=1e-3)
    reports = [training.step() for _ in range(STEPS)]
    assert mean(reports[-10:], "error") < 0.9 * mean(reports[:4], "error")
    soft, less = training.suppress(draw(pairs[0], np.random.default_rng(0)).images[0][None])
    assert soft.shape == less.shape == (1, 1, small.SIDE, small.SIDE)
    assert torch.isfinite(soft).all()


@pytest.mark.parametrize("stage", [small.autoencoder, small.denoiser])
def test_a_resumed_training_is_the_same_bit_by_bit(tmp_path: Path, pairs: list[Squares], stage) -> None:  # type: ignore[no-untyped-def]
    chosen = small.system(varied=True, accumulate=2)
    training = stage(chosen, pairs, Place(precision=torch.bfloat16))
    for _ in range(4):
        training.step()
    training.trainer.save(tmp_path / "a.pt")
    onward = [training.step() for _ in range(3)]
    again = stage(chosen, pairs, Place(precision=torch.bfloat16))
    again.trainer.load(tmp_path / "a.pt")
    assert [again.step() for _ in range(3)] == onward
    for name, value in training.trainer.average.state_dict().items():
        assert torch.equal(value, again.trainer.average.state_dict()[name]), name


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path, pairs: list[Squares]) -> None:
    planes, out = tmp_path / "planes.npy", tmp_path / "two.pt"
    np.save(planes, np.stack([p.planes for p in pairs]))
    root = Path(__file__).resolve().parent.parent.parent
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
            *(small.__file__, str(planes), str(out)),
        ],
        check=True,
        timeout=240,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    two = torch.load(out, weights_only=True)
    assert two.pop("world") == 2
    one, start = (small.several_steps(Place(), pairs, steps) for steps in (3, 0))
    assert one.keys() == two.keys()
    moved = [name for name in one if (one[name].float() - start[name].float()).abs().max() > 1e-4]
    assert len(moved) > 50
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), rtol=1e-4, atol=2e-6), name


def test_portions_add_up_to_the_whole_batch(pairs: list[Squares]) -> None:
    states = []
    for accumulate in (1, 4):
        training = small.denoiser(small.system(accumulate=accumulate, epsilon=1e-2), pairs)
        for _ in range(2):
            training.step()
        states.append(training.trainer.model.state_dict())
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=2e-4), name


def test_each_epoch_takes_every_item_once_in_another_order() -> None:
    order = Order(items=10, batch=4, seed=1)
    drawn = [order(n // 4, n % 4) for n in range(20)]
    assert Counter(drawn[:10]) == Counter(drawn[10:]) == Counter(range(10))
    assert drawn[:10] != drawn[10:]


def test_variation_changes_bones_and_tone_but_nothing_outside_the_bones(pairs: list[Squares]) -> None:
    planes = [plane.astype(np.float32) / 65535 for plane in pairs[0].planes]
    bones = planes[0] != planes[1]
    for seed in range(20):
        radiograph, soft, lungs = vary(planes, np.random.default_rng(seed))
        assert min(radiograph.min(), soft.min()) >= 0
        assert max(radiograph.max(), soft.max()) <= 1
        assert np.array_equal(lungs, planes[2])
        assert np.array_equal(radiograph[~bones], soft[~bones])
        assert ((radiograph - soft) * (planes[0] - planes[1])).min() >= 0


def test_soft_tissue_of_a_source_gets_one_brightness(pairs: list[Squares]) -> None:
    """Whatever each maker's processing gave it, and however strong the bones are."""
    shares, strengths = (0.85, 1.0, 0.95), (1.0, 3.0, 0.5)
    site = []
    for p, share, strength in zip(pairs, shares, strengths, strict=True):
        radiograph, soft, lungs = p.planes.astype(np.float64)
        bones = np.clip(strength * (radiograph - soft), 0, None)
        shown = np.clip(np.stack([soft + bones, share * soft, lungs]), 0, 65535)
        site.append(replace(p, name=f"site/{p.name}", planes=shown.astype(np.uint16)))
    alike = [replace(p, name=f"another/{p.name}", planes=site[0].planes) for p in pairs]
    *even, first, second, third = levelled([*site, *alike])
    own, wanted = np.array([p.brightness for p in even]).T
    assert own == pytest.approx(shares, rel=0.02)
    assert wanted == pytest.approx([np.mean(shares)] * 3, rel=0.02)
    assert [first, second, third] == alike  # one brightness already: left as it is
    for p, share in zip(even, shares, strict=True):
        radiograph, soft = (x.numpy()[0] / 2 + 0.5 for x in draw(p, np.random.default_rng(0)).images)
        np.testing.assert_allclose(radiograph * 65535, p.planes[0], atol=0.1)
        whole = (soft > 0) & (p.planes[1] < share * 65000)
        assert soft[whole] / (p.planes[1][whole] / 65535) == pytest.approx(wanted[0] / share, rel=0.02)
    # However bones and tone are varied, what lies beside them has that brightness.
    soft, _, lungs = pairs[0].planes
    bare = Squares("site/bare", "0", np.stack([soft, soft * 0.85, lungs]).astype(np.uint16), (0.85, 0.93))
    for seed in range(5):
        drawn = draw(bare, np.random.default_rng(seed), varied=True)
        radiograph, soft = (x.numpy()[0] / 2 + 0.5 for x in drawn.images)
        np.testing.assert_allclose(soft, 0.93 * radiograph, atol=1e-3)


def test_masked_samples_are_black_outside_the_lungs(pairs: list[Squares]) -> None:
    training = small.autoencoder(small.system(masked=True), pairs)
    assert Counter(item.masked for item in training.items) == {True: 3, False: 3}
    alone = small.autoencoder(small.system(masked=True, bones=0.0), pairs)
    assert Counter((item.masked, item.plane) for item in alone.items) == dict.fromkeys(
        [(True, 0), (True, 1), (False, 0), (False, 1)], 3
    )
    assert alone.sample(0, 0).shape == (1, 1, 48, 48)
    assert training.sample(0, 0).shape == (2, 1, 48, 48)
    whole, masked = (
        draw(pairs[0], np.random.default_rng(0), masked=m).images[0][0].numpy() for m in (False, True)
    )
    lungs = pairs[0].planes[2] == 65535
    assert (masked[pairs[0].planes[2] == 0] == -1).all()
    assert np.array_equal(masked[lungs], whole[lungs])
    bare = [Squares(p.name, p.patient, p.planes[:2]) for p in pairs]
    with pytest.raises(TrainingError, match="no pair has a lung mask"):
        small.autoencoder(small.system(masked=True), bare)


def test_latents_of_images_that_never_vary_are_made_once(pairs: list[Squares]) -> None:
    training = small.denoiser(small.system(varied=False, crop=0, bones=0.0), pairs)
    encoded = []
    training.autoencoder.encoder.register_forward_hook(lambda *_: encoded.append(1))
    for _ in range(4):
        training.step()
    assert len(encoded) == 2 * len(pairs)


def test_published_numbers_are_the_defaults() -> None:
    bs_ldm, gl_lcm = recipes.system("published"), recipes.system("gl-lcm")
    first, second = bs_ldm.autoencoder, bs_ldm.denoiser
    assert (first.batch, first.rate, first.opponent_rate) == (4, 1e-4, 5e-4)
    assert (first.l1, first.perceptual, first.adversarial, first.ms_ssim) == (1, 0.001, 0.01, 1)
    assert (second.rate, second.average, second.offset_noise) == (2e-4, 0.995, 0.1)
    assert bs_ldm.diffusion["prediction"] == "epsilon"
    # 100 pairs in batches of 4: 25 iterations an epoch.
    last, milestones = plan(second, 100)
    assert last == 2500 * 25
    assert [i for i, _ in milestones] == [e * 25 for e in (200, 400, 750, 1500)]
    assert milestones[1][1] == pytest.approx(2e-6)
    assert gl_lcm.autoencoder.masked
    assert gl_lcm.denoiser.masked
    assert gl_lcm.autoencoder_shape.codes == 1024


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("batch", "write key=value"),
        ("batches=3", "is no setting; choose among accumulate"),
        ("denoiser.perceptual=1", "is no setting"),
        ("batch=2.5", "must be a whole number"),
        ("varied=7", "must be true or false"),
        ("milestones=a", "numbers like"),
        ("rate=0", "must be more than 0"),
        ("denoiser.crop=200", "multiple of 64 up to 1024"),
        ("autoencoder.crop=2048", "multiple of 8 up to 1024"),
    ],
)
def test_a_setting_that_is_none_is_said(setting: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        recipes.system("small", [setting])


def test_settings_reach_the_stage_that_is_meant() -> None:
    chosen = recipes.system(
        "small", ["batch=2", "denoiser.rate=1e-5", "milestones=5,9", "schedule=linear", "varied=false"]
    )
    assert (chosen.autoencoder.batch, chosen.denoiser.batch) == (2, 2)
    assert chosen.autoencoder.rate != chosen.denoiser.rate == 1e-5
    assert chosen.denoiser.milestones == (5, 9)
    assert chosen.diffusion["schedule"] == "linear"
    assert not chosen.denoiser.varied


def test_what_cannot_be_trained_is_said(tmp_path: Path, pairs: list[Squares]) -> None:
    with pytest.raises(TrainingError, match="no system 'tiny'; choose among published"):
        recipes.system("tiny")
    with pytest.raises(TrainingError, match="schedule"):
        small.denoiser(small.system().changed(["schedule=diagonal"]), pairs)
    with pytest.raises(TrainingError, match="cannot be taken in 3 equal portions"):
        small.autoencoder(small.system(accumulate=3), pairs)
    with pytest.raises(DeviceError, match="multiple of 3"):
        Place(world=3).part(4)
    with pytest.raises(DeviceError, match="--device cpu"), place("cuda:99"):
        pass
    with pytest.raises(DeviceError, match="is not known"), place("abacus"):
        pass
    with pytest.raises(TrainingError, match=r"no finite number \(l1 nan\)"):
        learn({"l1": torch.tensor(float("nan"), requires_grad=True)})
    training = small.autoencoder(small.system(), pairs)
    training.trainer.save(tmp_path / "a.pt")
    wider = replace(small.system(), autoencoder_shape=replace(training.system.autoencoder_shape, residual=16))
    with pytest.raises(TrainingError, match=r"was trained with shape .* another folder"):
        small.autoencoder(wider, pairs).trainer.load(tmp_path / "a.pt")
    with pytest.raises(TrainingError, match="choose its system by --shape"):
        load_autoencoder(wider, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:999])
    with pytest.raises(TrainingError, match="no checkpoint of this project"):
        training.trainer.load(tmp_path / "b.pt")


def test_progress_is_told_and_the_clock_stops_it(
    tmp_path: Path, pairs: list[Squares], capsys: pytest.CaptureFixture[str]
) -> None:
    training = small.autoencoder(small.system(), pairs)
    looks: list[int] = []
    run(
        training.trainer,
        training.step,
        tmp_path / "a.pt",
        minutes=1,
        iterations=5,
        every=2,
        look=lambda: looks.append(training.trainer.iteration),
        look_every=2,
    )
    assert looks == [2, 4, 5]
    assert "4/5" in capsys.readouterr().out
    run(training.trainer, training.step, tmp_path / "a.pt", minutes=0)
    assert training.trainer.iteration == 5
    assert "goes on at iteration 5" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_trains_both_stages_of_a_folder_of_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[Squares]
) -> None:
    monkeypatch.setitem(recipes.SYSTEMS, "small", small.system())
    folder, runs = tmp_path / "pairs", tmp_path / "runs"
    for part, plane in (("cxr", 0), ("soft_tissue", 1), ("lungs", 2)):
        (folder / part).mkdir(parents=True)
        for squares in pairs:
            # 12 bits; the mask's values are those of a mask nevertheless
            cv2.imwrite(str(folder / part / f"{squares.patient[:6]}.png"), squares.planes[plane] >> 4)
    command = ["train", "bone_suppression", "--pairs", str(folder), "--runs", str(runs), "--device", "cpu"]
    main([*command, "--iterations", "3", "--look", "2", "--set", "masked=true", "--set", "batch=2"])
    out = runs / "bone_suppression" / "small"
    assert read(out / "denoiser.pt")["settings"]["diffusion"]["latent_scale"] > 0
    # What `convert` takes from it are the averaged weights, under the published names.
    weights, (_, averages) = (
        read_checkpoint(out / "denoiser.pt").weights,
        averaged(out / "denoiser.pt", Shape),
    )
    assert weights.keys() == averages.keys() == UNet(small.system().denoiser_shape).state_dict().keys()
    assert all(torch.equal(weights[name], averages[name]) for name in weights)
    for stage, columns in (("autoencoder", {"psnr", "ssim"}), ("denoiser", {"psnr", "bsr", "replaced_psnr"})):
        with (out / "validation" / f"{stage}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["iteration"] for row in rows] == ["2", "3"]
        assert columns <= rows[0].keys()
        assert rows[0]["source"] == "pairs"
        picture = cv2.imread(str(out / "validation" / f"{stage}-000003.png"), cv2.IMREAD_GRAYSCALE)
        assert picture.std() > 10
    one = ["--stage", "denoiser", "--iterations", "4", "--set", "batch=2"]
    with pytest.raises(SystemExit, match="was trained with diffusion"):
        main([*command, *one, "--set", "prediction=epsilon"])
    (out / "denoiser.pt").unlink()
    with pytest.raises(SystemExit, match="holds another network or shape"):
        main([*command, *one, "--start-from", str(out / "autoencoder.pt")])


def test_one_patient_stays_on_one_side() -> None:
    patients = [digest(str(n)) for n in range(400)]
    out = left_out(patients)
    assert 30 < len(out) < 70
    assert left_out(patients[:200]) == out & set(patients[:200])
    assert len(left_out(patients[:2])) == 1


def test_what_was_trained_here_is_converted_with_its_own_noise(tmp_path: Path, pairs: list[Squares]) -> None:
    settings = ["quantised=true", "prediction=v_prediction", "schedule=scaled_linear", "latent_scale=0.5"]
    chosen = small.system().changed(settings)
    files = [tmp_path / "autoencoder.pt", tmp_path / "denoiser.pt"]
    for stage, path in zip((small.autoencoder, small.denoiser), files, strict=True):
        stage(chosen, pairs).trainer.save(path)
    request = Request(*files, out=tmp_path, name="mine", variants=(), size=small.SIDE)
    card = read_card(convert(request, say=lambda line: None))
    noise = card.diffusion
    assert (noise.prediction, noise.schedule, noise.latent_scale) == ("v_prediction", "scaled_linear", 0.5)
    assert "trained by its owner" in card.summary
    image = pairs[0].planes[0].astype(np.float32) / 65535
    model = make(card, Settings(steps=2))
    assert np.isfinite(model(image, Conditions(), 0).image).all()
    with pytest.raises(TrainingError, match="check their order"):
        own(files[1], files[0])


def test_a_denoiser_of_latents_that_are_not_quantised_is_converted_as_such(
    tmp_path: Path, pairs: list[Squares]
) -> None:
    files = [tmp_path / "autoencoder.pt", tmp_path / "denoiser.pt"]
    for stage, path in zip((small.autoencoder, small.denoiser), files, strict=True):
        stage(small.system(), pairs).trainer.save(path)
    request = Request(*files, out=tmp_path, name="mine", variants=(), size=small.SIDE, result="subtract")
    card = read_card(convert(request, say=lambda line: None))
    found = own(*files)
    assert found is not None
    assert not found.quantised
    assert (card.sampler.name, card.sampler.steps) == ("ddim", small.system().denoiser.steps)
    assert not Graph(card.path("encoder")).quantises
    bones = make(card, Settings())(pairs[0].planes[0].astype(np.float32) / 65535, Conditions(), 0).bone
    assert bones.min() >= 0


def test_pairs_are_cut_turned_and_shown_with_opacities_that_both_have(pairs: list[Squares]) -> None:
    planes = [plane.astype(np.float32) / 65535 for plane in pairs[0].planes]
    turned = 0
    for seed in range(12):
        parts = cut(planes, 32, np.random.default_rng(seed))
        assert {part.shape for part in parts} == {(32, 32)}
        alike = cut([planes[0], planes[0]], 32, np.random.default_rng(seed))
        assert np.array_equal(alike[0], alike[1])  # a radiograph and its soft tissue stay together
        turned += not any(
            np.array_equal(parts[0], planes[0][y : y + 32, x : x + 32]) for y in range(33) for x in range(33)
        )
    assert 0 < turned < 12
    framed = 0
    for seed in range(24):  # what lies beyond an image is the same in both, and no lung
        grey = np.full((64, 64), 0.5, np.float32)
        radiograph, soft, inside = cut([grey] * 3, 64, np.random.default_rng(seed))
        assert np.array_equal(radiograph, soft)
        bordered = np.abs(radiograph - 0.5) > 1e-6
        assert inside.min() == 0 if bordered.any() else np.array_equal(inside, radiograph)
        framed += bool(bordered.any())
    assert 4 <= framed <= 16
    sizes = []
    for seed in range(40):
        spots = opacities((512, 512), 1024, np.random.default_rng(seed))
        assert -0.31 < spots.min() <= 0 <= spots.max() < 0.61  # several may overlap
        sizes.append(float((spots != 0).mean()))
    assert min(sizes) == 0 < np.median(sizes) < 0.2
    flat = Squares("flat/0", "0", np.full((2, 64, 64), 30000, np.uint16))
    both = [draw(flat, np.random.default_rng(seed), varied=True).images for seed in range(20)]
    assert all(torch.equal(*images) for images in both)
    shown = [draw(flat, np.random.default_rng(seed), varied=True, as_they_are=1.0) for seed in range(20)]
    assert all(torch.equal(*example.images) for example in shown)
    assert max(example.images[0].std() for example in shown) > 0.01
    for example in shown:  # where they are is told, and belongs to the same pixels
        elsewhere = example.images[0][example.opacities == 0]
        assert elsewhere.min() == elsewhere.max()
        assert (example.images[0][example.opacities == 1] != elsewhere[0]).all()


def test_processing_is_the_same_for_a_radiograph_and_its_soft_tissue(pairs: list[Squares]) -> None:
    planes = [plane.astype(np.float32) / 65535 for plane in pairs[0].planes]
    changed = coarse = grainy = 0
    for seed in range(40):
        radiograph, soft, lungs = processed([planes[0], planes[0], planes[2]], np.random.default_rng(seed))
        assert np.array_equal(radiograph, soft)
        assert lungs is planes[2]
        assert 0 <= radiograph.min() <= radiograph.max() <= 1
        changed += not np.array_equal(radiograph, planes[0])
        dark, light = (np.full((64, 64), grey, np.float32) for grey in (0.3, 0.6))
        dark, light = processed([dark, light], np.random.default_rng(seed))
        coarse += dark.std() < 1e-4
        grainy += dark.std() > 0.004
        assert np.allclose(light - dark, 0.3, atol=1e-4)  # what is between the two is left and gets no grain
    assert 20 <= changed < 40
    assert coarse + grainy == 40
    assert 4 <= grainy <= 20
    wide = cv2.GaussianBlur(planes[0], (0, 0), 8)
    assert np.abs(blurred(planes[0], 8) - wide).max() < 0.1 * np.ptp(planes[0])
    assert np.abs(blurred(planes[0], 1.5) - cv2.GaussianBlur(planes[0], (0, 0), 1.5)).max() < 1e-6


def test_a_residual_denoiser_begins_with_the_radiograph_itself() -> None:
    shape = replace(small.system().denoiser_shape, residual=True)
    sample, condition = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = recipes.side_by_side(UNet(shape), sample, condition, torch.tensor([999.0]))
    assert torch.equal(made, condition)


def test_the_mean_of_networks_has_the_mean_of_each_weight() -> None:
    shape = small.system().denoiser_shape
    networks = [UNet(shape) for _ in range(3)]
    for number, network in enumerate(networks):
        network.load_state_dict(
            {k: torch.full_like(w, float(number**2)) for k, w in network.state_dict().items()}
        )
    assert all((weight == torch.tensor(5 / 3)).all() for weight in merged(networks).state_dict().values())
    assert all((weight == 4).all() for weight in merged(networks[2:]).state_dict().values())


def test_what_is_decoded_counts_for_the_denoiser(pairs: list[Squares]) -> None:
    """The error of the decoded bones goes down the decoder into the denoiser, not into the decoder."""
    training = small.denoiser(small.system(bones=5.0), pairs)
    samples = [training.sample(0, index) for index in range(2)]
    images = [torch.stack(members) for members in zip(*(s.shown.images for s in samples), strict=True)]
    condition = training.encode(images[0]) * training.diffusion.latent_scale
    made = condition.clone().requires_grad_()
    missed = training.bones_missed(samples, condition, made)  # nothing is taken away: all bones are missed
    there = torch.stack([s.shown.opacities for s in samples])
    assert missed.item() == pytest.approx(
        difference(torch.zeros_like(images[0]), images[0] - images[1], there).item()
    )
    missed.backward()
    assert made.grad.abs().max() > 0
    assert "bones" in training.step()
    assert "bones" not in small.denoiser(small.system(bones=0.0), pairs).step()
    assert all(p.grad is None for p in training.autoencoder.parameters())


def test_samples_are_as_they_are_as_often_as_was_said(pairs: list[Squares]) -> None:
    flat = Squares("flat/0", "0", np.full((2, 64, 64), 30000, np.uint16))
    shown = [
        draw(flat, np.random.default_rng(seed), varied=True, as_they_are=0.5).images[0].numpy()
        for seed in range(60)
    ]
    kept = sum(np.isclose(np.median(image), 30000 / 65535 * 2 - 1) for image in shown)  # but for opacities
    assert 18 < kept < 42
