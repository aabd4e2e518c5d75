"""Checkpoints in the authors' form become model folders; what is wrong with one is told in one sentence."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
onnx = pytest.importorskip("onnx", reason="the torch side (make test-all)")

from export.bone_suppression import unet, vqgan  # noqa: E402
from export.bone_suppression.convert import Request, convert, recognised  # noqa: E402
from export.bone_suppression.int8 import Int8  # noqa: E402
from export.bone_suppression.matching import restore  # noqa: E402
from export.bone_suppression.pickled import CheckpointError, read_checkpoint  # noqa: E402
from export.bone_suppression.published import BS_LDM, GL_LCM, Published  # noqa: E402
from pacs_node.conditions import Conditions  # noqa: E402
from pacs_node.errors import ModelError  # noqa: E402
from pacs_node.infer import Settings, make, read_card  # noqa: E402
from pacs_node.infer.tables import Diffusion, Sampler, check_sampling  # noqa: E402
from tests.export.filled import fill  # noqa: E402
from tests.export.throwaway import save_as_published  # noqa: E402

pytestmark = pytest.mark.torch

AUTOENCODER = vqgan.Shape(channels=(16, 32, 32), residual=32, blocks=1, codes=32)
DENOISER = unet.Shape(width=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=4)
SMALL = replace(BS_LDM, title="small", autoencoder=AUTOENCODER, denoiser=DENOISER)
SIZE = 64
Spoil = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def networks(published: Published = SMALL) -> tuple[vqgan.MLVQGAN, unet.UNet]:
    """Filled, with a denoiser that says little, so that what is sampled stays sane."""
    autoencoder, denoiser = vqgan.MLVQGAN(published.autoencoder), unet.UNet(published.denoiser)
    return fill(autoencoder), fill(denoiser)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An autoencoder and a denoiser as the authors save them."""
    paths = tmp_path / "VQGAN.pth", tmp_path / "UNet.pth"
    for network, path in zip(networks(), paths, strict=True):
        save_as_published(network, path)
    return paths


def request(files: tuple[Path, Path], out: Path, **more: Any) -> Request:
    images = [np.random.default_rng(seed).random((SIZE, SIZE), np.float32) for seed in (0, 1)]
    given = {"published": SMALL, "size": SIZE, "variants": (), "images": images} | more
    return Request(*files, out=out, name="small", **given)


def test_a_pickled_module_is_read_and_nothing_of_it_imported(files: tuple[Path, Path]) -> None:
    for network, path in zip(networks(), files, strict=True):
        found = read_checkpoint(path)
        wanted = network.state_dict()
        assert list(found.weights) == list(wanted)
        assert all(torch.equal(found.weights[name], wanted[name]) for name in wanted)
    assert found.classes[""] == "modules.unet.UNetModel"
    assert "modules.unet.QKVAttentionLegacy" in found.classes.values()


def test_state_dicts_wherever_they_are(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 4), "a.count": torch.tensor(7)}
    of_two_cards = {f"module.{name}": value for name, value in state.items()}
    old = {name: torch.zeros_like(value) for name, value in state.items()}
    for content in (
        state,
        {"state_dict": of_two_cards, "epoch": 3},
        {"model": old, "ema": state, "optimizer": {"lr": 1e-4}},
        {"model": {"state_dict": state}},
        {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in state.items()},
    ):
        torch.save(content, tmp_path / "state.pth")
        found = read_checkpoint(tmp_path / "state.pth").weights
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_safetensors(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    header = b'{"__metadata__":{"by":"hand"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    whole = struct.pack("<Q", len(header)) + header + values.tobytes()
    path = tmp_path / "a.safetensors"
    path.write_bytes(whole)
    assert torch.equal(read_checkpoint(path).weights["a"], torch.from_numpy(values))
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_checkpoint(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in ({"state_dict": {}, "x": Evil()}, {"a": torch.ones(2), "b": [{"c": Evil()}]}):
        torch.save(content, tmp_path / "evil.pth")
        with pytest.raises(CheckpointError, match=r"wants '\w+\.mkdir' called. It was not called"):
            read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_what_is_no_checkpoint(tmp_path: Path, files: tuple[Path, Path]) -> None:
    whole = files[1].read_bytes()
    path = tmp_path / "x.pth"

    def told(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "truncated" in told(whole[: len(whole) // 2])
    assert "truncated" in told(whole[:-10])
    assert "neither a torch checkpoint nor safetensors" in told(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "neither" in told(b"")
    assert "torch before 1.6" in told(b"\x80\x02}q\x00.")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    assert "not a torch checkpoint" in told(path.read_bytes())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
    assert "compressed" in told(path.read_bytes())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02\xff")
    assert "pickle cannot be read" in told(path.read_bytes())
    torch.save([1, 2], path)
    assert "no weights" in told(path.read_bytes())
    # A tensor that says it is larger than its storage.
    torch.save({"a": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"K\x04\x85", b"K\x7f\x85"))
    assert "cannot be read" in told(path.read_bytes())
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.pop("out.2.bias"), r"out\.2\.bias is missing that .* has\. Save all"),
        (lambda s: s.update(extra=torch.ones(1)), r"extra is there that .* has not\."),
        (lambda s: s.update({"out.2.bias": torch.ones(3)}), r"out\.2\.bias is \(3,\), not \(8,\)"),
        (lambda s: s["out.2.weight"].fill_(float("nan")), r"out\.2\.weight is not finite"),
        (lambda s: s["time_embed.0.bias"].fill_(float("inf")), r"time_embed\.0\.bias is not finite"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, spoil: Spoil, words: str) -> None:
    state = networks()[1].state_dict()
    spoil(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        restore(lambda: unet.UNet(DENOISER), read_checkpoint(tmp_path / "x.pth"), "the denoiser")
    assert "\n" not in str(caught.value)


def test_another_architecture_is_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"not small's autoencoder .* looks like guided diffusion's UNetModel"
    ):
        convert(request((files[1], files[0]), tmp_path), print)
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"looks like a torch\.nn\.modules\.container\.Sequential"):
        convert(request((files[0], tmp_path / "x.pth"), tmp_path), print)
    assert not (tmp_path / "small").exists()


def test_the_system_is_told_by_its_codes_and_its_attention(tmp_path: Path) -> None:
    for published in (BS_LDM, GL_LCM):
        code = {"quantizer.quantizer.embedding.weight": torch.zeros(published.autoencoder.codes, 4)}
        torch.save(code, tmp_path / "x.pth")
        assert recognised(read_checkpoint(tmp_path / "x.pth")) is published
    torch.save({"quantizer.quantizer.embedding.weight": torch.zeros(7, 4)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="7 codes"):
        recognised(read_checkpoint(tmp_path / "x.pth"))
    other = replace(SMALL, denoiser=replace(DENOISER, new_attention_order=True))
    files = tmp_path / "VQGAN.pth", tmp_path / "UNet.pth"
    for network, path in zip(networks(other), files, strict=True):
        save_as_published(network, path)
    with pytest.raises(CheckpointError, match=r"another order .* --published gl-lcm"):
        convert(request(files, tmp_path), print)


@pytest.mark.parametrize(
    ("more", "words"),
    [({"version": "new one"}, "version 'new one' will not do"), ({"size": 40}, "multiples of 16")],
)
def test_what_cannot_be_is_said_before_the_work(
    files: tuple[Path, Path], tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        convert(request(files, tmp_path, **more), print)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_converted_model_does_what_torch_does(files: tuple[Path, Path], tmp_path: Path) -> None:
    """All variants are written; float32 graphs do the same as torch, f16 nearly, int8 roughly."""
    lines: list[str] = []
    # Weights that nobody trained make an image of noise, on which int8 shows more than on a radiograph.
    wish = request(files, tmp_path, variants=("f16", "int8"), int8=Int8(min_psnr=10, steps=2, levels=2))
    card = read_card(convert(wish, lines.append))
    card.verify()
    assert not card.unused()
    assert set(card.variants) == {"f16", "int8"}
    assert all(error < 2e-5 for error in card.figures["largest difference to torch"].values())
    assert (card.result, card.sampler.name, card.sampler.steps) == ("replace", "dpmpp_multistep", 20)
    for roles in ("encoder, denoiser, decoder", "encoder, denoiser, decoder, shallow"):
        assert any(line.startswith(f"int8 {roles}: ") and "good enough" in line for line in lines)
    # At two steps, where the gate stood, the last one is shallow.
    assert card.diffusion.deep_reach == 333
    assert card.figures["int8"]["graphs"] == ["encoder", "denoiser", "decoder", "shallow"]

    sources = (read_checkpoint(path) for path in files)
    autoencoder = restore(lambda: vqgan.MLVQGAN(AUTOENCODER), next(sources), "")
    denoiser = restore(lambda: unet.UNet(DENOISER), next(sources), "")
    image = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = autoencoder.quantise(autoencoder.encode(image))[0]
    sample = torch.randn(condition.shape, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([999.0, 500.0])
    wanted = {
        "encoder": ({"image": image}, condition),
        "denoiser": (
            {"sample": sample, "condition": condition, "timestep": time},
            denoiser(torch.cat((sample, condition), 1), time)[:, :4],
        ),
        "decoder": ({"latent": condition}, autoencoder.decoder(condition)),
    }
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # f16 sums that the processor's provider cannot fold
    for variant, tolerance in ((None, 1e-5), ("f16", 2e-2), ("int8", 0.2)):
        for role, (inputs, output) in wanted.items():
            session = onnxruntime.InferenceSession(
                card.path(role, variant), options, providers=["CPUExecutionProvider"]
            )
            assert {i.type for i in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
            given = {name: value.numpy() for name, value in inputs.items()}
            found = session.run(None, given)[0]  # behind it, what lies deep in an int8 denoiser
            error = np.sqrt(np.square(found - output.numpy()).mean()) / output.numpy().std()
            # A latent between two codes may take the other one; in int8 many do.
            assert error < (tolerance if role != "encoder" or not variant else 0.5), (variant, role, error)

    result = make(card, Settings(("cpu",), steps=2))(wish.images[0], Conditions(None, None, None), 0)
    assert result.parameters["steps"] == 2
    result = make(card, Settings(("cpu",), precision="int8", steps=2))(wish.images[0], Conditions(), 0)
    assert result.parameters["shallow_evaluations"] == 1


def test_a_shallow_graph_that_does_not_hold_is_left_out_and_said(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bone_suppression.int8.PROCESSOR", ("cpu",))
    # As if the gate lay between what int8 keeps and what it keeps with shallow steps.
    measured = iter((50.0, 39.9))
    monkeypatch.setattr("export.bone_suppression.int8._psnr", lambda image, reference: next(measured))
    lines: list[str] = []
    wish = request(files, tmp_path, variants=("int8",), int8=Int8(steps=2, levels=1))
    card = read_card(convert(wish, lines.append))
    assert set(card.variants["int8"]) == {"encoder", "denoiser", "decoder"}
    assert card.diffusion.deep_reach is None
    assert not card.unused()
    card.verify()
    assert any("every step is made by the whole denoiser" in line for line in lines)
    assert card.figures["int8"]["psnr"] == 50
    result = make(card, Settings(("cpu",), precision="int8", steps=2))(wish.images[0], Conditions(), 0)
    assert "shallow_evaluations" not in result.parameters


def test_every_step_is_whole_if_that_is_asked_for(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bone_suppression.int8.PROCESSOR", ("cpu",))
    how = Int8(min_psnr=-1000, steps=2, levels=1, shallow=False)
    card = read_card(convert(request(files, tmp_path, variants=("int8",), int8=how), print))
    assert set(card.variants["int8"]) == {"encoder", "denoiser", "decoder"}
    assert card.diffusion.deep_reach is None


def test_int8_that_does_not_hold_is_left_out_and_said(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bone_suppression.int8.PROCESSOR", ("cpu",))  # which starts faster
    lines: list[str] = []
    wish = request(files, tmp_path, variants=("int8",), int8=Int8(min_psnr=150, steps=2, levels=1))
    card = read_card(convert(wish, lines.append))
    assert not card.variants
    assert sorted(path.name for path in card.folder.iterdir()) == [
        "card.toml",
        *(f"{role}.onnx" for role in ("decoder", "denoiser", "encoder")),
    ]
    assert [line for line in lines if "no int8 graph" in line and "hold the model's quality" in line]
    assert card.figures["int8"]["graphs"] == []
    with pytest.raises(ModelError, match="something already"):
        convert(wish, lines.append)


def test_big_weights_lie_beside_their_graph(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.shipping.EXTERNAL", 100_000)
    card = read_card(convert(request(files, tmp_path, weights="half"), print))
    assert {"denoiser.data", "encoder.data", "decoder.data"} < set(card.digests)
    (card.folder / "denoiser.data").write_bytes(b"\0" * (card.folder / "denoiser.data").stat().st_size)
    with pytest.raises(ModelError, match=r"denoiser\.data"):
        card.verify()


def test_lungs_only_for_the_system_that_has_a_path_for_them(files: tuple[Path, Path], tmp_path: Path) -> None:
    fixture = Path(__file__).parents[1] / "infer" / "fixtures" / "variants" / "lungs.onnx"
    with pytest.raises(ModelError, match="has no path for the lungs"):
        convert(request(files, tmp_path, lungs=fixture), print)
    local = replace(GL_LCM, autoencoder=AUTOENCODER, denoiser=DENOISER)
    card = read_card(convert(request(files, tmp_path, lungs=fixture, published=local), print))
    assert card.files["lungs"] == "lungs.onnx"
    assert card.local is not None
    assert (card.local.clip_start, card.sampler.name, card.sampler.steps) == (3.5, "lcm", 50)


def test_the_authors_own_sampling_is_one_that_the_runtime_does() -> None:
    for published in (BS_LDM, GL_LCM):
        for sampler in (published.sampler, published.quick):
            check_sampling(Diffusion(**published.diffusion), Sampler(**sampler))
    noise = Diffusion(**GL_LCM.diffusion)
    assert noise.clip_slope * 1000 / 50 == pytest.approx(0.025)  # of 50 steps, each is 20 of training
