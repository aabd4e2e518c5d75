"""GL-LCM's local path and result = "replace", on the tiny bone suppression whose right answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from test_fusion import exactly_fused
from tiny_models import SHALLOW, SHALLOW_FILES, blocks, variant

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.infer import Settings, load, read_card
from pacs_node.infer.providers import available

MakeModel = Callable[..., Path]
CPU = Settings(("cpu",))
LUNGS = np.zeros((64, 64), bool)
LUNGS[16:48, 8:56] = True
# The tiny denoiser's clean latent is half of the condition, which is 0.5 (latent_scale) of the block means.
LOCAL_LIMIT = 0.1
NO_FILES: Mapping[str, bytes] = {}


def with_lungs(
    make_model: MakeModel, folder: str = "local", files: Mapping[str, bytes] = NO_FILES, **replace: str
) -> Path:
    """tiny-bone with a local path limited to LOCAL_LIMIT, sampled by LCM; ``replace`` goes into the card."""
    changes = {
        'encoder = "encoder.onnx"': 'encoder = "encoder.onnx"\nlungs = "lungs.onnx"',
        '[sampler]\nname = "ddim"': f"[local]\nclip_start = {LOCAL_LIMIT}\nguidance = 1.0\n\n"
        '[sampler]\nname = "lcm"',
        'licence = "Apache-2.0"': 'licence = "Apache-2.0"\nresult = "replace"',
    }
    files = {"lungs.onnx": variant("lungs.onnx"), **files}
    return make_model("tiny-bone", folder=folder, replace=changes | replace, files=files)


def test_the_local_path_is_fused_into_the_lungs(make_model: MakeModel) -> None:
    image = blocks(64, 64, 8)
    result = load(read_card(with_lungs(make_model)), CPU)(image, Conditions(), 0)
    whole = image / 2
    local = np.where(LUNGS, np.minimum(whole, LOCAL_LIMIT / 0.5), 0).astype(np.float32)
    assert (whole[LUNGS] > LOCAL_LIMIT / 0.5).any()
    np.testing.assert_allclose(result.image, exactly_fused(whole, local, LUNGS), atol=2e-5)
    np.testing.assert_allclose(result.image[~LUNGS], whole[~LUNGS], atol=1e-5)
    assert np.abs(result.image - whole)[LUNGS].max() > 0.05
    np.testing.assert_array_equal(result.bone, image - result.image)
    assert result.parameters["sampler"] == "lcm"
    assert result.parameters["warnings"] == []


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_shallow_evaluations_are_of_both_paths(make_model: MakeModel, provider: str) -> None:
    """At once and, on OpenVINO, one by one; the last of seven is shallow and finds 0.75 in place of half."""
    if provider not in available():
        pytest.skip(f"the installed ONNX Runtime has no {provider}")
    folder = with_lungs(make_model, files=SHALLOW_FILES, **SHALLOW)
    image = blocks(64, 64, 8)
    settings = Settings((provider,), precision="int8", steps=7)
    result = load(read_card(folder), settings)(image, Conditions(), 0)
    whole = image * np.float32(0.75)
    local = np.where(LUNGS, np.minimum(whole, LOCAL_LIMIT / 0.5), 0).astype(np.float32)
    # OpenVINO computes what an int8 graph leaves in floating point in bf16, where it can.
    atol = 2e-5 if provider == "cpu" else 0.02
    np.testing.assert_allclose(result.image, exactly_fused(whole, local, LUNGS), atol=atol)
    assert result.parameters["shallow_evaluations"] == 3


def test_the_fused_image_is_subtracted_where_the_card_says_so(make_model: MakeModel) -> None:
    """image - (decode(z) - fused), nowhere brighter than the image."""
    replacing = load(read_card(with_lungs(make_model, "a")), CPU)
    folder = with_lungs(make_model, "b")
    card = folder / "card.toml"
    card.write_text(card.read_text().replace('result = "replace"\n', ""))
    subtracting = load(read_card(folder), CPU)
    image = blocks(64, 64, 8)
    fused = replacing(image, Conditions(), 0).image
    np.testing.assert_allclose(
        subtracting(image, Conditions(), 0).image, image - np.maximum(image - fused, 0), atol=1e-5
    )
    assert read_card(folder).digest != replacing.card.digest


def test_an_image_without_lungs_is_sampled_once_and_says_so(make_model: MakeModel) -> None:
    image = blocks(64, 64, 8)
    image[LUNGS] = 0
    result = load(read_card(with_lungs(make_model)), CPU)(image, Conditions(), 0)
    np.testing.assert_allclose(result.image, image / 2, atol=1e-5)
    (warning,) = result.parameters["warnings"]
    assert "no lungs were found" in warning


def test_guidance_makes_noise_in_the_local_path_alone_and_seeded(make_model: MakeModel) -> None:
    """g eps + (1 - g) z / std(eps): of the one-point model's prediction it is no longer that point."""
    image = blocks(64, 64, 8)
    folder = with_lungs(make_model, **{"steps = 5": "steps = 4"})
    card = folder / "card.toml"
    card.write_text(card.read_text().replace("guidance = 1.0", "guidance = 3.0").replace("0.1\n", "1.5\n"))
    model = load(read_card(folder), CPU)
    first, again, other = (model(image, Conditions(), seed).image for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    np.testing.assert_allclose(first[~LUNGS], image[~LUNGS] / 2, atol=1e-5)
    assert np.abs(first - image / 2)[LUNGS].max() > 0.05
    assert np.abs(first - other)[LUNGS].max() > 0.05


def test_a_mask_that_is_no_mask_of_the_image_is_refused(make_model: MakeModel) -> None:
    folder = make_model(
        "tiny-bone",
        replace={
            'encoder = "encoder.onnx"': 'encoder = "encoder.onnx"\nlungs = "encoder.onnx"',
            "[sampler]": "[local]\n[sampler]",
        },
    )
    with pytest.raises(ModelError, match=r"its outputs are latent, but must be mask"):
        load(read_card(folder), CPU)


def test_replacing_shows_the_decoded_image_itself(make_model: MakeModel) -> None:
    """As BS-LDM publishes it: decode(soft) on the native matrix, bones and detail alike."""
    folder = make_model(
        "tiny-bone", replace={'licence = "Apache-2.0"': 'licence = "Apache-2.0"\nresult = "replace"'}
    )
    image = np.random.default_rng(5).random((64, 64), dtype=np.float32)
    result = load(read_card(folder), CPU)(image, Conditions(), 0)
    means = image.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(result.image, np.kron(means / 2, np.ones((8, 8))), atol=1e-5)
