"""The three tasks on tiny real models whose right answer is known (fixtures/make.py)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SHALLOW, SHALLOW_FILES, TINY, blocks, smooth

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError, Refused
from pacs_node.infer import AnomalyResult, Card, ImageResult, Settings, load, read_card
from pacs_node.infer.providers import available

MakeModel = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
CPU = Settings(("cpu",))
PLAIN = Conditions()


@pytest.fixture(params=["cpu", "openvino"])
def exactly(request: pytest.FixtureRequest) -> Settings:
    """Both providers in f32."""
    if request.param not in available():
        pytest.skip(f"the installed ONNX Runtime has no {request.param}")
    return Settings((request.param,), precision="f32")


def image_result(
    name: str, image: np.ndarray, settings: Settings = CPU, seed: int = 0, **kwargs
) -> ImageResult:
    result = load(read_card(TINY / name), settings)(image, PLAIN, seed, **kwargs)
    assert isinstance(result, ImageResult)
    assert result.image.dtype == np.float32
    assert result.image.shape == image.shape
    assert result.image.min() >= 0
    assert result.image.max() <= 1
    return result


def test_bone_suppression_takes_half_of_the_block_means(exactly: Settings) -> None:
    image = blocks(64, 64, 8)
    result = image_result("tiny-bone", image, exactly)
    np.testing.assert_allclose(result.image, image / 2, atol=1e-5)
    assert result.bone is not None
    np.testing.assert_allclose(result.bone, image / 2, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
@pytest.mark.parametrize(
    "replace",
    [
        {},
        {'"ddim"': '"ddpm"'},
        {"steps = 5": "steps = 5\neta = 0.7"},
        {"steps = 5": 'steps = 5\nspacing = "leading"'},
        {"steps = 5": "steps = 1"},
        {"steps = 5": "steps = 40"},
    ],
)
def test_every_sampler_finds_the_one_point(make_model: MakeModel, replace: dict[str, str], seed: int) -> None:
    image = blocks(64, 64, 8)
    card = read_card(make_model("tiny-bone", replace=replace))
    result = load(card, CPU)(image, PLAIN, seed)
    # One step from pure noise divides the noise's rounding by alpha = 5e-5.
    np.testing.assert_allclose(
        result.image, image / 2, atol=2e-3 if replace == {"steps = 5": "steps = 1"} else 1e-5
    )


def with_shallow(make_model: MakeModel, **more: str) -> Card:
    """The card of tiny-bone with a shallow graph; ``more`` is replaced in it, too."""
    return read_card(make_model("tiny-bone", files=SHALLOW_FILES, replace=SHALLOW | more))


@pytest.mark.parametrize(
    ("steps", "kept", "shallow"),
    [
        (5, 0.5, 2),  # the last one is whole
        (6, 0.5, 2),  # two whole ones, one shallow, one whole, one shallow, one whole
        (7, 0.75, 3),
        (20, 0.5, 8),
        (4, 0.5, 0),  # 250 time steps apart
        (1, 0.5, 0),
    ],
)
@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_every_other_evaluation_is_shallow_where_it_may_be(
    make_model: MakeModel, provider: str, steps: int, kept: float, shallow: int
) -> None:
    if provider not in available():
        pytest.skip(f"the installed ONNX Runtime has no {provider}")
    image = blocks(64, 64, 8)
    told: list[tuple[int, int]] = []
    model = load(with_shallow(make_model), Settings((provider,), precision="int8", steps=steps))
    result = model(image, PLAIN, 0, lambda *count: told.append(count))
    # OpenVINO computes what an int8 graph leaves in floating point in bf16, where it can.
    atol = 2e-3 if steps == 1 else 1e-5 if provider == "cpu" else 0.02
    np.testing.assert_allclose(result.image, image * kept, atol=atol)
    assert result.parameters.get("shallow_evaluations", 0) == shallow
    assert told[-1] == (steps + 3, steps + 3)
    assert {session.path.name for session in model.sessions} >= {"whole.onnx"}
    assert ("shallow.onnx" in {session.path.name for session in model.sessions}) == bool(shallow)


def test_without_the_variant_every_evaluation_is_whole(make_model: MakeModel, exactly: Settings) -> None:
    image = blocks(64, 64, 8)
    result = load(with_shallow(make_model), dataclasses.replace(exactly, steps=7))(image, PLAIN, 0)
    np.testing.assert_allclose(result.image, image / 2, atol=1e-5)
    assert "shallow_evaluations" not in result.parameters


def test_a_whole_denoiser_must_give_what_the_shallow_one_takes(make_model: MakeModel) -> None:
    card = with_shallow(make_model, **{'"whole.onnx"\n': '"denoiser.onnx"\n'})
    told = r"denoiser\.onnx: its outputs are prediction, but must be prediction, deep\."
    with pytest.raises(ModelError, match=told):
        load(card, Settings(("cpu",), precision="int8"))


def test_bone_suppression_keeps_native_detail() -> None:
    """What is finer than the model's pixels stays: the image changes by a smooth bone image only."""
    detail = np.random.default_rng(2).uniform(-0.1, 0.1, (512, 320)).astype(np.float32)
    base = smooth(512, 320)
    result = image_result("tiny-bone", base + detail)
    bone = image_result("tiny-bone", base).bone
    assert result.bone is not None
    assert bone is not None
    # The detail averages out in the model's pixels (64 native pixels each and 8 x 8 of them to a latent one).
    np.testing.assert_allclose(result.bone, bone, atol=0.01)
    np.testing.assert_allclose(result.image, base + detail - bone, atol=0.01)


def test_bone_suppression_never_brightens(make_model: MakeModel) -> None:
    """With an input range of [-1, 1], half of a dark block's latent is brighter: that must not show."""
    card = read_card(make_model("tiny-bone", replace={"[0.0, 1.0]": "[-1.0, 1.0]"}))
    image = blocks(64, 64, 8)
    result = load(card, CPU)(image, PLAIN, 0)
    assert (image < 0.5).any()
    np.testing.assert_allclose(result.image, image - np.maximum(image / 2 - 0.25, 0), atol=1e-5)


def test_image_and_bone_make_up_the_source() -> None:
    image = np.random.default_rng(3).random((200, 150), dtype=np.float32)
    result = image_result("tiny-bone", image)
    np.testing.assert_allclose(result.image + result.bone, image, atol=1e-6)


def test_restoration_adds_what_the_model_adds(exactly: Settings) -> None:
    image = smooth(333, 257)
    result = image_result("tiny-restoration", image, exactly)
    np.testing.assert_allclose(result.image, image + 0.05, atol=1e-5)
    assert result.bone is None


def test_results_stay_in_range() -> None:
    image = blocks(64, 64, 8)
    image[0, 0], image[0, 1] = 0.0, 1.0
    image_result("tiny-restoration", image)


@pytest.mark.parametrize(
    ("conditions", "told", "threshold"),
    [
        (Conditions(), 10000, 10000.5),
        (Conditions(50, "M", "PA"), 0.5 + 10 + 100 + 1000 + 10000, 11000.75),
        (Conditions(80, "F", "AP"), 0.8 + 10 - 100 - 1000 + 10000, 9010.5),
        (Conditions(0, None, "PA"), 10 + 1000 + 10000, 11000.75),
        (Conditions(None, "F", None), -100 + 10000, 10000.5),
    ],
)
def test_anomaly_score_conditions_and_threshold_of_the_view(
    exactly: Settings, conditions: Conditions, told: float, threshold: float
) -> None:
    image = blocks(64, 64, 16)
    result = load(read_card(TINY / "tiny-anomaly"), exactly)(image, conditions, 0)
    assert isinstance(result, AnomalyResult)
    (finding,) = result.findings
    assert finding.score == pytest.approx(told + image.mean(), abs=2e-3)  # float32 near 10,000
    assert finding.threshold == threshold
    assert finding.decision == ("abnormal" if told + image.mean() >= threshold else "normal")
    assert (finding.name, finding.code.value) == ("Brightness", "17621005")
    assert result.parameters["precision"] == "f32"


def test_anomaly_decides_at_the_threshold(make_model: MakeModel) -> None:
    image = blocks(64, 64, 16)
    score = load(read_card(TINY / "tiny-anomaly"), CPU)(image, PLAIN, 0).findings[0].score
    at = make_model("tiny-anomaly", folder="a", replace={"10000.5": repr(score)})
    above = make_model("tiny-anomaly", folder="b", replace={"10000.5": repr(score + 0.01)})
    decisions = [load(read_card(f), CPU)(image, PLAIN, 0).findings[0].decision for f in (at, above)]
    assert decisions == ["abnormal", "normal"]


def test_the_heatmap_lies_on_the_source(exactly: Settings) -> None:
    """A bright quarter of a tall image: hot there, cold elsewhere, mapped by heatmap_range 0.25 … 0.75."""
    image = np.full((400, 200), 0.3, np.float32)
    image[:200, :100] = 1.0
    result = load(read_card(TINY / "tiny-anomaly"), exactly)(image, PLAIN, 0)
    heatmap = result.findings[0].heatmap
    assert heatmap.shape == image.shape
    assert heatmap.dtype == np.float32
    np.testing.assert_allclose(heatmap[:140, :40], 1.0, atol=1e-5)
    np.testing.assert_allclose(heatmap[260:, 160:], 0.1, atol=1e-5)
    assert heatmap.min() >= 0
    assert heatmap.max() <= 1


@pytest.mark.parametrize("name", ["tiny-bone", "tiny-restoration"])
def test_same_seed_same_bits(make_model: MakeModel, name: str) -> None:
    image = np.random.default_rng(4).random((130, 100), dtype=np.float32)
    settings = Settings()  # bf16, where the processor has it
    first = image_result(name, image, settings, seed=7)
    assert image_result(name, image, settings, seed=7).image.tobytes() == first.image.tobytes()
    # Nor does it depend on what was loaded or run before: a copy of the model, loaded anew.
    again = load(read_card(make_model(name)), settings)(image, PLAIN, 7)
    assert again.image.tobytes() == first.image.tobytes()


def test_another_seed_is_another_sample(make_model: MakeModel) -> None:
    """Told a wrong kind of prediction, the tiny model no longer ends in its one point."""
    model = load(read_card(make_model("tiny-restoration", replace={"v_prediction": "epsilon"})), CPU)
    image = smooth(64, 64)
    images = [model(image, PLAIN, seed).image.tobytes() for seed in (1, 2, 1)]
    assert images[0] == images[2] != images[1]


def test_progress_counts_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    image_result("tiny-bone", smooth(64, 64), progress=lambda step, steps: calls.append((step, steps)))
    assert calls == [(i, 8) for i in range(1, 9)]
    calls.clear()
    image_result("tiny-restoration", smooth(64, 64), progress=lambda step, steps: calls.append((step, steps)))
    assert calls == [(i, 5) for i in range(1, 6)]


def test_parameters_tell_how_it_was_made() -> None:
    result = image_result("tiny-restoration", smooth(64, 64), seed=9)
    assert json.loads(json.dumps(result.parameters)) == result.parameters
    told = {key: result.parameters[key] for key in ("sampler", "steps", "eta", "spacing", "seed", "provider")}
    assert told == {
        "sampler": "ddpm",
        "steps": 4,
        "eta": 1.0,
        "spacing": "trailing",
        "seed": 9,
        "provider": "CPUExecutionProvider",
    }
    assert result.seconds > 0


def test_the_configured_steps_go_before_the_cards() -> None:
    settings = Settings(("cpu",), steps=2)
    assert image_result("tiny-bone", smooth(64, 64), settings).parameters["steps"] == 2
    with pytest.raises(
        ModelError, match="1001 sampling steps are asked for, but the model was trained with 1000"
    ):
        load(read_card(TINY / "tiny-bone"), Settings(("cpu",), steps=1001))


def test_a_model_is_loaded_once() -> None:
    first = load(read_card(TINY / "tiny-bone"), CPU)
    assert load(read_card(TINY / "tiny-bone"), CPU) is first
    assert load(read_card(TINY / "tiny-bone"), Settings(("cpu",), threads=1)) is not first


def test_an_altered_model_is_not_loaded(make_model: MakeModel) -> None:
    folder = make_model("tiny-bone")
    with (folder / "denoiser.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelError, match="digest"):
        load(read_card(folder), CPU)


@pytest.mark.parametrize("name", ["tiny-bone", "tiny-restoration", "tiny-anomaly"])
def test_unfit_images(name: str) -> None:
    model = load(read_card(TINY / name), CPU)
    with pytest.raises(Refused):
        model(np.full((100, 100), 0.5, np.float32), PLAIN, 0)
    with pytest.raises(ValueError, match="float32"):
        model(np.zeros((100, 100), np.uint8), PLAIN, 0)


MEMORY = """
import sys
sys.path.insert(0, "tests/infer")
from tiny_models import TINY, smooth
from pacs_node.conditions import Conditions
from pacs_node.infer import Settings, load, read_card
image, model = smooth(4000, 4000), load(read_card(TINY / sys.argv[1]), Settings(("cpu",)))
model(smooth(64, 64), Conditions(), 0)
# The peak so far would hide ours, so it is forgotten (proc(5), clear_refs).
open("/proc/self/clear_refs", "w").write("5")
def status(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) / 1024
before = status("VmRSS")
model(image, Conditions(), 0)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-bone", "tiny-restoration", "tiny-anomaly"])
def test_a_large_image_takes_little_memory(name: str) -> None:
    """4000 x 4000 float32 is 61 MiB; a task holds a few of them beside the source, not dozens."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert 50 < float(run.stdout) < 5 * 62
