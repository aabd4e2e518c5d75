"""Which provider is chosen, that it is told, and that a graph is what its card says."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, smooth, variant

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.infer import Settings, load, nvidia, providers, read_card
from pacs_node.infer.providers import Choice, choices
from pacs_node.infer.session import open_session
from pacs_node.infer.starting import provider_options

MakeModel = Callable[..., Path]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with the driver and TensorRT; which provider is chosen does not ask the device more."""
    monkeypatch.setattr(nvidia, "missing", lambda word: None)


def names(settings: Settings, there: tuple[str, ...], **more: Any) -> list[str]:
    return [choice.word for choice in choices(settings, there=there, **more)]


ALL = ("tensorrt", "cuda", "openvino", "cpu")


@pytest.mark.usefixtures("gpu")
def test_the_default_order() -> None:
    assert names(Settings(), ALL) == ["cuda", "openvino", "cpu"]
    assert names(Settings(), ALL, built=True) == ["tensorrt", "cuda", "openvino", "cpu"]
    assert names(Settings(("cpu", "tensorrt")), ALL) == ["cpu", "tensorrt"]  # asked for, so built when needed
    assert names(Settings(without=("cuda",)), ALL) == ["openvino", "cpu"]
    best = choices(Settings(), there=("openvino", "cpu"))[0]
    assert best.warnings == ()
    assert "fastest that is there" in best.reason


def test_a_provider_asked_for_but_absent_is_a_warning_of_the_next() -> None:
    first, second = choices(Settings(("tensorrt", "cuda", "cpu", "openvino")), there=("openvino", "cpu"))
    assert first.provider == "CPUExecutionProvider"
    assert [w.split()[2] for w in first.warnings] == ["tensorrt", "cuda"]
    assert second.provider == "OpenVINOExecutionProvider"


def test_a_gpu_build_without_a_driver_is_a_warning_of_the_next() -> None:
    if nvidia.missing("cuda") is None:
        pytest.skip("this machine has an NVIDIA driver")
    (only,) = choices(Settings(), there=("tensorrt", "cuda", "cpu"))
    assert only.word == "cpu"
    assert only.warnings == ("the provider cuda cannot start: there is no NVIDIA driver (libcuda.so.1)",)


def test_none_of_those_asked_for_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"\(tensorrt, cuda\).*openvino, cpu.*infer\.providers"):
        choices(Settings(("tensorrt", "cuda")), there=("openvino", "cpu"))
    with pytest.raises(ModelError, match="no provider 'gpu'"):
        choices(Settings(("gpu",)), there=("cpu",))


ARITHMETIC = [
    # provider, processor, the card's variants, exact, configured: computed in, and a word of the warning
    ("openvino", "amx_bf16", (), False, "auto", "bf16", ""),
    ("openvino", "avx512_bf16 AuthenticAMD", (), False, "auto", "bf16", ""),
    ("openvino", "avx512_bf16 GenuineIntel", (), False, "auto", "f32", ""),
    ("openvino", "avx512_bf16 GenuineIntel amx_bf16", (), False, "auto", "bf16", ""),
    ("openvino", "avx512_bf16 GenuineIntel", (), False, "bf16", "bf16", ""),
    ("openvino", "", (), False, "auto", "f32", ""),
    ("openvino", "amx_bf16", (), True, "auto", "f32", ""),
    ("openvino", "amx_bf16", (), False, "f32", "f32", ""),
    ("openvino", "", (), True, "bf16", "bf16", ""),
    ("openvino", "", ("int8",), False, "int8", "int8", ""),
    ("openvino", "avx512_vnni", ("int8",), False, "auto", "int8", ""),
    ("openvino", "avx512_vnni", ("int8",), True, "auto", "f32", ""),
    ("openvino", "amx_bf16", ("int8",), False, "auto", "bf16", ""),
    ("openvino", "", ("f16",), False, "int8", "f32", "the model has no int8 graph"),
    ("openvino", "amx_bf16", ("f16",), False, "f16", "f32", "does not compute in"),
    ("cpu", "amx_bf16", (), False, "auto", "f32", ""),
    ("cpu", "amx_bf16", (), False, "bf16", "f32", "bf16 was asked for, which the provider cpu"),
    ("cuda", "", ("f16", "int8"), False, "auto", "f16", ""),
    ("tensorrt", "", ("f16",), False, "auto", "f16", ""),
    ("cuda", "", ("int8",), False, "auto", "f32", ""),
    ("cuda", "", ("f16",), True, "auto", "f32", ""),
    ("cuda", "", ("f16",), False, "f32", "f32", ""),
]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("word", "flags", "variants", "exact", "configured", "expected", "told"), ARITHMETIC)
def test_the_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    flags: str,
    variants: tuple[Any, ...],
    exact: bool,
    configured: Any,
    expected: str,
    told: str,
) -> None:
    monkeypatch.setattr(providers, "processor_flags", lambda: frozenset(flags.split()))
    settings = Settings((word,), precision=configured)
    (choice,) = choices(settings, exact=exact, variants=variants, there=ALL)
    assert choice.precision == expected
    assert choice.variant == (expected if expected in ("f16", "int8") else None)
    assert expected in choice.reason
    assert told in "; ".join(choice.warnings)
    assert bool(told) == bool(choice.warnings)


def test_a_large_model_takes_bf16_for_its_memory_where_f32_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "processor_flags", lambda: frozenset({"avx512_bf16", "GenuineIntel"}))
    (choice,) = choices(Settings(("openvino",)), large=True, there=ALL)
    assert choice.precision == "bf16"
    assert "as the model is large" in choice.reason
    monkeypatch.setattr(providers, "processor_flags", lambda: frozenset({"avx2"}))
    (choice,) = choices(Settings(("openvino",)), large=True, there=ALL)
    assert choice.precision == "f32"


def test_the_options_of_each_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def options(word: str, precision: Any, **more: Any) -> dict[str, Any]:
        return provider_options(Choice(providers.PROVIDERS[word], precision, ""), Settings(threads=2), **more)

    plugin = json.loads(options("openvino", "bf16")["load_config"])["CPU"]
    assert (plugin["INFERENCE_PRECISION_HINT"], plugin["INFERENCE_NUM_THREADS"]) == ("bf16", "2")
    for flag, hint in (("avx512_bf16", "bf16"), ("avx512_vnni", "f32")):
        monkeypatch.setattr(providers, "processor_flags", lambda flag=flag: frozenset({flag}))
        rest = json.loads(options("openvino", "int8")["load_config"])["CPU"]["INFERENCE_PRECISION_HINT"]
        assert rest == hint  # of what the int8 graph leaves in floating point
    assert options("cuda", "f32", fixed=True)["enable_cuda_graph"] == "1"
    assert (options("cuda", "f32")["use_tf32"], options("cuda", "f16")["use_tf32"]) == ("0", "1")
    assert "trt_engine_cache_enable" not in options("tensorrt", "f32")
    engines = tmp_path / "key" / "denoiser-f16"
    kept = options("tensorrt", "f16", engines=engines)
    assert (kept["trt_fp16_enable"], kept["trt_engine_cache_path"]) == ("1", str(engines))
    assert kept["trt_timing_cache_path"] == str(engines.parent)
    assert engines.is_dir()
    assert options("cpu", "f32") == {}


def test_engines_are_kept_apart_by_all_that_they_depend_on(make_model: MakeModel, tmp_path: Path) -> None:
    card = read_card(make_model("tiny-bone"))
    other = read_card(make_model("tiny-bone", folder="other", replace={"steps = 5": "steps = 6"}))
    device = nvidia.Device("NVIDIA H100 80GB HBM3", "9.0", "580.95.05")
    folders = [
        nvidia.engine_folder(tmp_path, card, device, "101303"),
        nvidia.engine_folder(tmp_path, other, device, "101303"),
        nvidia.engine_folder(tmp_path, card, device, "101400"),
        *(
            nvidia.engine_folder(tmp_path, card, replace(device, **{name: "another"}), "101303")
            for name in ("name", "compute_capability", "driver")
        ),
    ]
    assert len(set(folders)) == len(folders)
    assert folders[0] == nvidia.engine_folder(tmp_path, read_card(card.folder), device, "101303")
    assert all(folder.parent == tmp_path / "tensorrt" for folder in folders)


def test_the_device_as_nvidia_smi_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia.device.cache_clear()
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$3" = "--id=2" ] && echo "NVIDIA L4, 8.9, 580.95.05"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert nvidia.device() == nvidia.Device("NVIDIA L4", "8.9", "580.95.05")
    nvidia.device.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert nvidia.device() is None  # the tool fails
    nvidia.device.cache_clear()


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
        pytest.skip("the installed ONNX Runtime has CUDA")
    monkeypatch.setattr(providers, "available", lambda: ("cuda", *there))
    monkeypatch.setattr(nvidia, "missing", lambda word: None)
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
