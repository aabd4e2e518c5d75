"""Which provider is chosen, that it is told, and that a graph is what its card says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TINY, smooth, variant

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.infer import Settings, load, providers, read_card
from pacs_node.infer.providers import choices
from pacs_node.infer.session import open_session

MakeModel = Callable[..., Path]


def names(settings: Settings, there: tuple[str, ...]) -> list[str]:
    return [choice.provider for choice in choices(settings, there=there)]


def test_the_default_order_passes_over_what_is_not_there_in_silence() -> None:
    assert names(Settings(), ("cuda", "cpu")) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert names(Settings(), ("openvino", "cpu")) == ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    best = choices(Settings(), there=("openvino", "cpu"))[0]
    assert best.warnings == ()
    assert "fastest that is there" in best.reason


def test_a_provider_asked_for_but_absent_is_a_warning_of_the_next() -> None:
    first, second = choices(Settings(("tensorrt", "cuda", "cpu", "openvino")), there=("openvino", "cpu"))
    assert first.provider == "CPUExecutionProvider"
    assert [w.split()[2] for w in first.warnings] == ["tensorrt", "cuda"]
    assert second.provider == "OpenVINOExecutionProvider"


def test_none_of_those_asked_for_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"\(tensorrt, cuda\).*openvino, cpu.*infer\.providers"):
        choices(Settings(("tensorrt", "cuda")), there=("openvino", "cpu"))
    with pytest.raises(ModelError, match="no provider 'gpu'"):
        choices(Settings(("gpu",)), there=("cpu",))


@pytest.mark.parametrize(
    ("flag", "exact", "configured", "expected"),
    [
        ("amx_bf16", False, "auto", "bf16"),
        ("avx512_bf16", False, "auto", "bf16"),
        (None, False, "auto", "f32"),
        ("amx_bf16", True, "auto", "f32"),
        ("amx_bf16", False, "f32", "f32"),
        (None, True, "bf16", "bf16"),
    ],
)
def test_bf16_only_where_it_is_native_and_may_be(
    monkeypatch: pytest.MonkeyPatch, flag: str | None, exact: bool, configured: str, expected: str
) -> None:
    monkeypatch.setattr(providers, "native_bf16", lambda: flag)
    settings = Settings(precision=configured)  # type: ignore[arg-type]
    openvino, cpu = choices(settings, exact=exact, there=("openvino", "cpu"))
    assert openvino.precision == expected
    assert expected in openvino.reason
    assert cpu.precision == "f32"


def test_a_missing_provider_is_logged_and_stands_in_the_result(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    if "cuda" in providers.available():
        pytest.skip("this machine has CUDA")
    card = read_card(make_model("tiny-restoration"))
    with caplog.at_level(logging.WARNING):
        model = load(card, Settings(("cuda", "cpu")))
    result = model(smooth(80, 80), Conditions(), 0)
    assert result.parameters["provider"] == "CPUExecutionProvider"
    assert result.parameters["warnings"] == [
        "the provider cuda was asked for, but the installed ONNX Runtime does not have it"
    ]
    assert "tiny-restoration: the provider cuda was asked for" in caplog.text


def test_a_provider_that_does_not_start_is_told(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with CUDA whose libraries are missing: the runtime has it by name, and then falls back by itself."""
    there = providers.available()
    if "cuda" in there:
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(providers, "available", lambda: ("cuda", *there))
    card = read_card(make_model("tiny-restoration"))
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        session = open_session(card, "denoiser", Settings(("cuda", "cpu")))
    assert session.choice.provider == "CPUExecutionProvider"
    assert "the provider cuda could not be started" in session.choice.warnings[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong_name.onnx", "its inputs are x, condition, timestep, but must be sample, condition, timestep"),
        ("wrong_rank.onnx", r"its input 'sample' is tensor\(float\) of \['N', 64, 64\], but must be"),
        ("wrong_size.onnx", r"\['N', 1, 32, 32\], but must be tensor\(float\) of \['N', 1, 64, 64\]"),
    ],
)
def test_a_graph_that_is_not_what_its_card_says(make_model: MakeModel, name: str, words: str) -> None:
    card = read_card(make_model("tiny-restoration", files={"denoiser.onnx": variant(name)}))
    with pytest.raises(ModelError, match=words):
        load(card, Settings(("cpu",)))


def test_another_tasks_graph(make_model: MakeModel) -> None:
    content = (TINY / "tiny-anomaly" / "model.onnx").read_bytes()
    card = read_card(make_model("tiny-restoration", files={"denoiser.onnx": content}))
    with pytest.raises(ModelError, match="its inputs are image, conditions"):
        load(card, Settings(("cpu",)))


def test_bytes_that_are_no_model(make_model: MakeModel) -> None:
    card = read_card(make_model("tiny-restoration", files={"denoiser.onnx": b"\x08\x08"}))
    with pytest.raises(ModelError, match=r"no provider takes this model: .*Export or copy it again"):
        load(card, Settings())


def test_a_role_may_ask_for_full_precision(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    if "openvino" not in providers.available():
        pytest.skip("the installed ONNX Runtime has no openvino")
    monkeypatch.setattr(providers, "native_bf16", lambda: "amx_bf16")
    line = 'licence = "Apache-2.0"'
    card = read_card(make_model("tiny-bone", replace={line: f'{line}\nfull_precision = ["decoder"]'}))
    precisions = {s.path.stem: s.choice.precision for s in load(card, Settings(("openvino",))).sessions}
    assert precisions == {"encoder": "bf16", "denoiser": "bf16", "decoder": "f32"}


def test_what_is_not_finite_is_an_error(make_model: MakeModel) -> None:
    card = read_card(make_model("tiny-restoration", files={"denoiser.onnx": variant("not_finite.onnx")}))
    model = load(card, Settings(("cpu",)))
    with pytest.raises(
        ModelError, match=r"output 'prediction' holds values that are not finite.*infer\.providers"
    ):
        model(smooth(80, 80), Conditions(), 0)


def test_external_data_inside_the_folder_runs(make_model: MakeModel) -> None:
    files = {"denoiser.onnx": variant("external_inside.onnx"), "weights.bin": variant("weights.bin")}
    replace = {"v_prediction": "sample"}
    card = read_card(make_model("tiny-restoration", files=files, replace=replace))
    image = smooth(64, 64)
    result = load(card, Settings(("cpu",)))(image, Conditions(), 0)
    assert abs(result.image - (image + 0.125)).max() < 1e-5


def test_threads() -> None:
    assert providers.threads(Settings(threads=3)) == 3
    assert providers.threads(Settings()) >= 1
