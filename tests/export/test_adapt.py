"""A site's own model from a handful of its pairs: weights read back, better on pairs left out, and back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
pytest.importorskip("onnx", reason="the torch side (make test-all)")

from torch import nn  # noqa: E402

from export.__main__ import main  # noqa: E402
from export.bone_suppression import adapted, graphs, ship, unet, vqgan  # noqa: E402
from export.bone_suppression.adapt import Adapted, Request, adapt  # noqa: E402
from export.bone_suppression.recipes import SYSTEMS, System  # noqa: E402
from export.bone_suppression.tuning import Plan  # noqa: E402
from export.bone_suppression.weights import networks  # noqa: E402
from export.shipping import export_graph, save_graph, write_card  # noqa: E402
from export.training import TrainingError  # noqa: E402
from pacs_node.config import Config  # noqa: E402
from pacs_node.errors import ModelError  # noqa: E402
from pacs_node.infer import Catalog, read_card  # noqa: E402
from pacs_node.phantom import Phantom  # noqa: E402
from pacs_node.tasks import Task  # noqa: E402

pytestmark = pytest.mark.torch

SIDE, IMAGE = 64, 128
NAME = "tiny-bones"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def exact_autoencoder(shape: vqgan.Shape) -> vqgan.MLVQGAN:
    """Each 2 x 2 pixels become the four numbers of a place, and pixels again: nothing is lost, nothing is to
    be learnt.
    """
    made = vqgan.MLVQGAN(shape).requires_grad_(False)
    down, same = made.encoder.blocks[0].conv, made.encoder.blocks[1].conv
    alike, up = made.decoder.blocks[0].conv, made.decoder.blocks[1].conv
    for layer in (down, same, alike, up):
        layer.weight.zero_()
        layer.bias.zero_()
    down.bias.fill_(1.0)  # the ReLU behind it keeps what is above -1
    up.bias.fill_(-1.0)
    for place in range(4):
        row, column = 1 + place // 2, 1 + place % 2
        down.weight[place, 0, row, column] = up.weight[place, 0, row, column] = 1
        same.weight[place, place, 1, 1] = alike.weight[place, place, 1, 1] = 1
    return made


def tiny() -> System:
    """A system as small as can learn."""
    return replace(
        SYSTEMS["small"],
        name="tiny",
        size=SIDE,
        autoencoder_shape=vqgan.Shape(channels=(4,), residual=4, blocks=0, codes=16),
        denoiser_shape=unet.Shape(
            outputs=4,
            width=16,
            multipliers=(1, 2),
            blocks=1,
            attention=(2,),
            heads=2,
            groups=8,
            residual=True,
        ),
    )


def filled(network: nn.Module) -> nn.Module:
    """With weights that are all different, those of the normalisations, too."""
    drawn = torch.Generator().manual_seed(3)
    for weight in network.parameters():
        weight.requires_grad_(False).add_(torch.randn(weight.shape, generator=drawn) * 0.05)
    return network


def model_folder(folder: Path, system: System, denoiser: nn.Module, *, half: bool, quantised: bool) -> Path:
    """The model as it ships."""
    autoencoder = exact_autoencoder(system.autoencoder_shape)
    steps = system.diffusion["train_steps"]
    with torch.no_grad():
        image = torch.rand(2, 1, SIDE, SIDE) * 2 - 1
        latent = autoencoder.encode(image)
    inputs = {"sample": latent, "condition": latent, "timestep": torch.tensor([999.0, 5.0])}
    modules: dict[str, tuple[nn.Module, dict[str, torch.Tensor], str]] = {
        "encoder": (
            graphs.Encoder(autoencoder, quantised),
            {"image": image},
            "latent",
        ),
        "denoiser": (
            graphs.Denoiser(denoiser, steps),
            inputs,
            "prediction",
        ),
        "decoder": (graphs.Decoder(autoencoder), {"latent": latent}, "image"),
    }
    for role, (module, given, output) in modules.items():
        # The time's table and the codes are not halved, as where models are exported.
        export_graph(module, folder / f"{role}.onnx", given, [output], half=half, smallest=1 + 16 * steps)
    card = ship.card("1.0.0", system.diffusion | {"latent_scale": 1.0})
    card |= {"name": NAME, "full_precision": [], "input": {"size": SIDE, "range": [-1.0, 1.0], "channels": 1}}
    card["training"] |= {"pairs": {}}
    write_card(folder, card)
    return folder


def lay(folder: Path, seeds: range, strength: float) -> Path:
    """Phantoms as the pairs of a site whose bones are ``strength`` times as strong."""
    for seed in seeds:
        shown = Phantom(seed).render(IMAGE)
        radiograph = shown.soft_tissue + strength * (shown.radiograph - shown.soft_tissue)
        for part, picture in (("cxr", radiograph), ("soft_tissue", shown.soft_tissue)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            levels = np.rint(np.clip(picture, 0, 1) * 65535).astype(np.uint16)
            Image.fromarray(levels).save(folder / part / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapt")


@pytest.fixture(autouse=True)
def systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "tiny", tiny())


@pytest.fixture(scope="module")
def model(root: Path) -> Path:
    """A model that suppresses nothing yet."""
    torch.manual_seed(0)
    system = tiny()
    denoiser = unet.UNet(system.denoiser_shape).requires_grad_(False)
    return model_folder(root / "models" / NAME, system, denoiser, half=True, quantised=False)


@pytest.fixture(scope="module")
def site(root: Path) -> Path:
    return lay(root / "site", range(200, 204), 1.8)


@pytest.mark.parametrize(("half", "quantised"), [(False, True), (True, False)])
def test_weights_are_read_back_and_written(tmp_path: Path, half: bool, quantised: bool) -> None:
    system = tiny()
    torch.manual_seed(1)
    denoiser = filled(unet.UNet(system.denoiser_shape))
    folder = model_folder(tmp_path / "m", system, denoiser, half=half, quantised=quantised)
    found = networks(read_card(folder))  # compares with the graphs, too
    assert (found.system.name, found.quantised) == ("tiny", quantised)
    near = 1e-3 if half else 0
    for wanted, got in (
        (denoiser, found.denoiser),
        (exact_autoencoder(system.autoencoder_shape).encoder, found.autoencoder.encoder),
        (exact_autoencoder(system.autoencoder_shape).decoder, found.autoencoder.decoder),
    ):
        state = got.state_dict()
        assert state.keys() == wanted.state_dict().keys()
        for key, value in wanted.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=near, atol=near / 10)

    others = {key: value + 0.125 for key, value in found.denoiser.state_dict().items()}
    found.graphs["denoiser"].write(found.places["denoiser"], others, folder / "denoiser.onnx")
    again = networks(read_card(folder)).denoiser.state_dict()
    for key, value in others.items():
        torch.testing.assert_close(again[key], value, rtol=near, atol=near / 10)


def test_a_site_gets_its_own_model_and_goes_back(
    model: Path, site: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bone_suppression.adapt.UNSEEN", 1)
    plan = Plan(iterations=80, rate=4e-3, batch=8, crop=48)
    request = Request(model, (site,), root / "cache", folds=2, plan=plan, phantoms=2, side=IMAGE)
    lines: list[str] = []
    out = root / "adapted" / ".aside"
    found: Adapted = adapt(request, out, tell=lines.append)
    # Each of the site's pairs by a model that did not learn from it: the bones are weaker, not just the tone.
    assert found.gain > 1.5
    for before, after in list(zip(found.before, found.after, strict=True))[:4]:
        assert after["psnr"] > before["psnr"] + 0.5
        assert after["bsr"] > before["bsr"] + 0.15
    adapted.better(found)
    with pytest.raises(TrainingError, match="did not get better"):
        adapted.better(replace(found, after=found.before))
    text = adapted.report(found)
    assert text.count("| site") == 5
    assert "phantom, not learnt from" in text

    target = root / "site-models"
    cards = []
    for _ in range(2):  # adapted twice: two versions beside each other
        there = Catalog([target] if target.is_dir() else []).cards
        name, number = adapted.free_name(f"{NAME}-site", [c.name for c in there])
        copy = root / "adapted" / name
        shutil.copytree(out, copy)
        found = replace(found, card=read_card(copy))
        adapted.describe(found, name, f"1.0.0+site.{number}")
        config = Config.model_validate({"infer": {"providers": ["cpu"]}})
        cards.append(adapted.install(copy, target, config).card)
    assert [(c.name, c.version) for c in cards] == [
        ("tiny-bones-site-1", "1.0.0+site.1"),
        ("tiny-bones-site-2", "1.0.0+site.2"),
    ]
    parent = read_card(model)
    assert cards[0].training.parent == f"{NAME} 1.0.0 {parent.digest}"
    assert cards[0].digest != parent.digest
    assert cards[0].training.pairs == {"site": "all"}
    figures = cards[0].figures["adaptation"]["site"]
    assert figures["psnr_after"] > figures["psnr_before"]
    assert "200.png" not in (cards[0].folder / "card.toml").read_text()

    catalog = Catalog([target], shipped=model.parent)
    for name in ("tiny-bones-site-2", "tiny-bones-site-1", NAME):
        assert catalog.card(Task.BONE_SUPPRESSION, name).name == name
    assert catalog.card(Task.BONE_SUPPRESSION).name == NAME  # nothing changes until the site says so


def run(*words: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["adapt", "bone-suppression", *map(str, words)])
    return str(ended.value)


def test_what_cannot_be_adapted_is_said(model: Path, site: Path, tmp_path: Path, root: Path) -> None:
    common = ("--model", model, "--runs", tmp_path)
    assert "there is no such folder" in run("--pairs", tmp_path / "none", *common)
    (tmp_path / "empty").mkdir()
    assert "holds no pairs" in run("--pairs", tmp_path / "empty", *common)
    lonely = lay(tmp_path / "lonely", range(300, 301), 1)
    assert "of one patient" in run("--pairs", lonely, *common)
    twisted = lay(tmp_path / "twisted", range(300, 302), 1)
    shown = np.asarray(Image.open(twisted / "cxr" / "300.png"))
    Image.fromarray(shown[::-1].copy()).save(twisted / "soft_tissue" / "300.png")
    assert "do not show the same" in run("--pairs", twisted, *common)
    assert not list((tmp_path / "adapted").glob("*"))

    strange = tmp_path / "strange"
    shutil.copytree(Path(__file__).parents[1] / "infer" / "fixtures" / "models" / "tiny-bone", strange)
    assert "takes images in [0.0, 1.0]" in run("--pairs", site, "--model", strange, "--runs", tmp_path)
    card = strange / "card.toml"
    card.write_text(card.read_text().replace("range = [0.0, 1.0]", "range = [-1.0, 1.0]"))
    told = run("--pairs", site, "--model", strange, "--runs", tmp_path)
    assert "of no system that this project trains" in told
    assert len(told) < 1500
    other = tmp_path / "other"
    shutil.copytree(Path(__file__).parents[1] / "infer" / "fixtures" / "models" / "tiny-anomaly", other)
    assert "is for anomaly" in run("--pairs", site, "--model", other, "--runs", tmp_path)


def test_a_graph_that_computes_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    """The same weights under the same names, but another network around them."""
    import onnx

    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    graph = onnx.load(str(folder / "decoder.onnx"))
    for node in graph.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Neg"
    (conv,) = (node for node in graph.graph.node if node.op_type == "ConvTranspose")
    inside = conv.input[0]
    graph.graph.node.insert(list(graph.graph.node).index(conv), onnx.helper.make_node("Neg", [inside], ["n"]))
    conv.input[0] = "n"
    save_graph(graph, folder / "decoder.onnx")
    with pytest.raises(ModelError, match="tiny: differs by"):
        networks(read_card(folder))


def test_numbers_follow_those_there() -> None:
    assert adapted.free_name("a-site", ["a", "a-site", "a-site-2", "a-site-x", "b-site-7"]) == ("a-site-3", 3)
