"""Model cards: every way to be wrong is told in a sentence with its remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import FIXTURES, TINY, variant

from pacs_node.errors import ModelError
from pacs_node.infer import Catalog, read_card, shipped_models
from pacs_node.infer.external_data import external_files
from pacs_node.tasks import Task

MakeModel = Callable[..., Path]


def test_a_card_says_what_it_says() -> None:
    card = read_card(TINY / "tiny-bone")
    assert (card.name, card.task, card.version) == ("tiny-bone", Task.BONE_SUPPRESSION, "1.0.0")
    assert card.input.size == 64
    assert card.input.range == (0.0, 1.0)
    assert card.diffusion is not None
    assert (card.diffusion.latent_scale, card.diffusion.clip_start, card.diffusion.clip_slope) == (
        0.5,
        1.5,
        0.0,
    )
    assert card.sampler is not None
    assert (card.sampler.name, card.sampler.steps, card.sampler.spacing) == ("ddim", 5, "trailing")
    assert card.path("denoiser") == TINY / "tiny-bone" / "denoiser.onnx"
    card.verify()


WRONG = {
    "unknown key": ({"[sampler]": "[sampler]\nstpes = 3"}, ["sampler.stpes", "unknown", "'steps'"]),
    "unknown key, nothing near": (
        {"[sampler]": "[sampler]\nqqq = 3"},
        ["sampler.qqq", "Known keys: corrector_steps, eta"],
    ),
    "missing key": ({'licence = "Apache-2.0"\n': ""}, ["licence", "missing", "the licence of the weights"]),
    "missing table": ({"[sampler]\n": "[other]\n"}, ["other: this key is unknown"]),
    "wrong range": ({"steps = 5": "steps = 0"}, ["sampler.steps: 0", "greater than or equal to 1"]),
    "wrong type": ({"steps = 5": 'steps = "5"'}, ["sampler.steps: '5'", "integer", "1 or more"]),
    "wrong word": ({'"ddim"': '"dimm"'}, ["sampler.name: 'dimm'", "'ddpm', 'ddim', 'dpmpp_multistep'"]),
    "wrong task": ({'"bone_suppression"': '"bones"'}, ["task: 'bones'", "one of bone_suppression"]),
    "more steps than levels": (
        {"steps = 5": "steps = 1001"},
        ["1001 sampling steps are asked for, but the model was trained with 1000. Ask for fewer"],
    ),
    "a sampler of other noise": (
        {'"squaredcos_cap_v2"': '"ve"', '"ddim"': '"ddpm"'},
        ['the sampler "ddpm" walks variance-preserving noise', '"ve". Use the sampler "ancestral".'],
    ),
    "falling betas": (
        {"train_steps": "beta_min = 20.0\ntrain_steps"},
        ["beta_min must be less than beta_max"],
    ),
    "no order 3 of the SDE form": (
        {'"ddim"': '"sde_dpmpp"\norder = 3'},
        ["sampler: sde_dpmpp is of order 1 or 2. Write order = 2."],
    ),
    "local without lungs": (
        {"[sampler]": "[local]\n[sampler]"},
        ["[files] must name exactly decoder, denoiser, encoder, lungs"],
    ),
    "shallow without reach": (
        {"[digests]": '[variants.int8]\ndenoiser = "denoiser.onnx"\nshallow = "decoder.onnx"\n\n[digests]'},
        ["[diffusion] needs deep_reach for the shallow graph; add how far it may reach"],
    ),
    "shallow without whole": (
        {
            "[digests]": '[variants.int8]\nshallow = "decoder.onnx"\n\n[digests]',
            "clip_start = 1.5": "deep_reach = 50.0",
        },
        ["[variants.int8] has shallow without the denoiser that it is part of"],
    ),
    "shallow alone": (
        {"[files]": '[files]\nshallow = "decoder.onnx"'},
        ["[files] must name exactly decoder, denoiser, encoder for bone_suppression", "shallow"],
    ),
    "falling range": ({"[0.0, 1.0]": "[1.0, 0.0]"}, ["input: range must rise"]),
    "not a number": ({"clip_start = 1.5": "clip_start = nan"}, ["diffusion.clip_start"]),
    "path in a file name": (
        {'encoder = "encoder.onnx"': 'encoder = "../e.onnx"'},
        ["files.encoder: '../e.onnx'"],
    ),
    "hidden file": ({'encoder = "encoder.onnx"': 'encoder = ".e.onnx"'}, ["files.encoder: '.e.onnx'"]),
    "role missing": (
        {'encoder = "encoder.onnx"\n': ""},
        ["[files] must name exactly decoder, denoiser, encoder", "not decoder, denoiser"],
    ),
    "full precision for what is not there": (
        {'"Apache-2.0"': '"Apache-2.0"\nfull_precision = ["model"]'},
        ["full_precision names model; the roles are decoder, denoiser, encoder"],
    ),
    "no digest": (
        {'encoder = "encoder.onnx"': 'encoder = "e.onnx"'},
        ["[digests] lacks e.onnx", "sha256sum"],
    ),
    "digest malformed": ({'"sha256:': '"md5:'}, ["digests.", "sha256:"]),
    "no TOML": ({"[input]": "[input"}, ["not TOML", "line"]),
    "not the task's tables": (
        {'"bone_suppression"': '"anomaly"', "encoder = ": "model = ", "decoder = ": "#", "denoiser = ": "#"},
        ["anomaly needs the tables anomaly, but the card has diffusion, sampler"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_card_is_told(make_model: MakeModel, case: str) -> None:
    replace, words = WRONG[case]
    folder = make_model("tiny-bone", replace=replace)
    with pytest.raises(ModelError) as error:
        read_card(folder)
    text = str(error.value)
    assert str(folder / "card.toml") in text
    for word in words:
        assert word in text, text
    assert all(line.endswith((".", "?")) for line in text.splitlines()), text


def test_all_problems_of_a_card_are_told_at_once(make_model: MakeModel) -> None:
    folder = make_model("tiny-bone", replace={"steps = 5": "steps = 0", "size = 64": "size = 8"})
    with pytest.raises(ModelError, match=r"(?s)input\.size.*sampler\.steps"):
        read_card(folder)


def test_a_folder_without_a_card(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no card\.toml"):
        read_card(tmp_path)


def test_a_card_too_large_is_not_read(make_model: MakeModel) -> None:
    folder = make_model("tiny-bone")
    with (folder / "card.toml").open("a") as card:
        card.write("#" * (1 << 20))
    with pytest.raises(ModelError, match="larger than"):
        read_card(folder)


def test_a_missing_file_is_named(make_model: MakeModel) -> None:
    folder = make_model("tiny-bone")
    (folder / "decoder.onnx").unlink()
    with pytest.raises(ModelError, match=r"decoder\.onnx: the file is missing\. Copy it there"):
        read_card(folder).verify()


def test_an_altered_file_is_named(make_model: MakeModel) -> None:
    folder = make_model("tiny-bone")
    with (folder / "decoder.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelError, match=r"decoder\.onnx: the file's digest is sha256:\w+, the card says"):
        read_card(folder).verify()


def test_a_file_that_is_cut_off_is_named(make_model: MakeModel) -> None:
    folder = make_model("tiny-bone")
    path = folder / "denoiser.onnx"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"denoiser\.onnx: the file is cut off .*\. Copy it again\."):
        read_card(folder).verify()


def test_a_link_out_of_the_folder_is_no_file_of_the_model(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model("tiny-bone")
    (folder / "decoder.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "decoder.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ModelError, match="a link that leads out"):
        read_card(folder).verify()


def test_the_model_digest_covers_files_and_behaviour_but_not_prose(make_model: MakeModel) -> None:
    original = read_card(TINY / "tiny-bone").digest
    assert original.startswith("sha256:")
    same = make_model("tiny-bone", folder="a", replace={"A tiny graph": "A small graph"})
    steps = make_model("tiny-bone", folder="b", replace={"steps = 5": "steps = 6"})
    with (TINY / "tiny-bone" / "decoder.onnx").open("rb") as file:
        altered = make_model("tiny-bone", folder="c", files={"decoder.onnx": file.read() + b"\0"})
    assert read_card(same).digest == original
    assert len({original, read_card(steps).digest, read_card(altered).digest}) == 3


def test_external_data_is_found_inside_subgraphs() -> None:
    folder = FIXTURES / "variants"
    assert external_files(folder / "external_inside.onnx") == ["weights.bin"]
    assert external_files(folder / "external_outside.onnx") == ["../weights.bin"]
    assert external_files(TINY / "tiny-bone" / "denoiser.onnx") == []


def test_external_data_must_be_covered_by_the_digests(make_model: MakeModel) -> None:
    files = {"denoiser.onnx": variant("external_inside.onnx")}
    with pytest.raises(ModelError, match=r"external data in 'weights\.bin'.*\[digests\]"):
        read_card(make_model("tiny-restoration", folder="a", files=files)).verify()
    files["weights.bin"] = variant("weights.bin")
    whole = read_card(make_model("tiny-restoration", folder="b", files=files))
    whole.verify()
    assert whole.unused() == []
    (whole.folder / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"bin: the file with the weights of denoiser\.onnx is missing"):
        whole.verify()


def test_external_data_outside_the_folder_is_refused(make_model: MakeModel) -> None:
    folder = make_model(
        "tiny-restoration",
        files={"denoiser.onnx": variant("external_outside.onnx"), "weights.bin": variant("weights.bin")},
    )
    (folder.parent / "weights.bin").write_bytes(variant("weights.bin"))
    with pytest.raises(ModelError, match=r"external data in '\.\./weights\.bin'"):
        read_card(folder).verify()


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"not an ONNX file", os.urandom(4096)])
def test_a_file_that_is_no_onnx_is_told(make_model: MakeModel, content: bytes) -> None:
    folder = make_model("tiny-restoration", files={"denoiser.onnx": content})
    with pytest.raises(ModelError, match=r"denoiser\.onnx: (not an ONNX file|the file is empty)"):
        read_card(folder).verify()


def test_every_cut_of_an_onnx_file_is_read_or_refused(tmp_path: Path) -> None:
    whole = variant("external_inside.onnx")
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = external_files(path)
        except ModelError:
            continue
        assert found in ([], ["weights.bin"])


def test_catalog_finds_by_task_and_name(make_model: MakeModel, tmp_path: Path) -> None:
    make_model("tiny-bone")
    make_model("tiny-anomaly")
    catalog = Catalog([], shipped=tmp_path / "models")
    assert [card.name for card in catalog.cards] == ["tiny-anomaly", "tiny-bone"]
    assert catalog.card("bone_suppression").name == "tiny-bone"
    assert catalog.card(Task.BONE_SUPPRESSION, "default").name == "tiny-bone"
    assert catalog.card(Task.BONE_SUPPRESSION, "tiny-bone").name == "tiny-bone"
    with pytest.raises(ModelError, match=r"no model 'tiny-bine' .*Did you mean 'tiny-bone'\?"):
        catalog.card(Task.BONE_SUPPRESSION, "tiny-bine")
    with pytest.raises(ModelError, match="'tiny-bone' is for bone_suppression, not anomaly"):
        catalog.card(Task.ANOMALY, "tiny-bone")
    with pytest.raises(ModelError, match=r"no model for restoration.*models add"):
        catalog.card(Task.RESTORATION)


def test_an_added_model_does_not_become_the_default(make_model: MakeModel, tmp_path: Path) -> None:
    site = make_model("tiny-bone", replace={'"tiny-bone"': '"our-bone"'})
    catalog = Catalog([site.parent], shipped=TINY)
    assert catalog.card(Task.BONE_SUPPRESSION).name == "tiny-bone"
    assert not catalog.is_shipped(catalog.card(Task.BONE_SUPPRESSION, "our-bone"))
    (tmp_path / "none").mkdir()
    alone = Catalog([site.parent], shipped=tmp_path / "none")
    assert alone.card(Task.BONE_SUPPRESSION).name == "our-bone"


def test_two_models_for_a_task_must_be_told_apart(make_model: MakeModel, tmp_path: Path) -> None:
    make_model("tiny-bone")
    make_model("tiny-bone", folder="second", replace={'name = "tiny-bone"': 'name = "second"'})
    catalog = Catalog([], shipped=tmp_path / "models")
    with pytest.raises(ModelError, match=r"second, tiny-bone.*models\.bone_suppression"):
        catalog.card(Task.BONE_SUPPRESSION)


def test_two_cards_of_one_name_are_an_error_naming_both(make_model: MakeModel) -> None:
    site = make_model("tiny-bone")
    catalog = Catalog([site.parent], shipped=TINY)
    with pytest.raises(ModelError) as error:
        catalog.card(Task.BONE_SUPPRESSION, "tiny-bone")
    assert str(TINY / "tiny-bone" / "card.toml") in str(error.value)
    assert str(site / "card.toml") in str(error.value)
    assert catalog.is_shipped(catalog.card(Task.BONE_SUPPRESSION))


def test_a_broken_card_leaves_the_others_alone(make_model: MakeModel, tmp_path: Path) -> None:
    site = make_model("tiny-bone", replace={'"tiny-bone"': '"our-bone"', "steps = 5": "steps = 0"}).parent
    make_model("tiny-anomaly", folder="torn", replace={"[input]": "[input"})
    catalog = Catalog([site, tmp_path / "none"], shipped=TINY)
    assert {task: catalog.card(task).name for task in Task} == {
        Task.BONE_SUPPRESSION: "tiny-bone",
        Task.RESTORATION: "tiny-restoration",
        Task.ANOMALY: "tiny-anomaly",
    }
    told = "\n".join(map(str, catalog.problems))
    assert [p.name for p in catalog.problems] == ["our-bone", "torn", None]
    assert "sampler.steps: 0 will not do" in told
    assert "not TOML" in told
    assert "does not exist" in told
    with pytest.raises(ModelError, match=r"sampler\.steps: 0 will not do"):
        catalog.card(Task.BONE_SUPPRESSION, "our-bone")
    with pytest.raises(ModelError, match="not TOML"):
        catalog.card(Task.ANOMALY, "torn")


def test_a_folder_that_holds_no_model_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert Catalog([tmp_path], shipped=TINY).cards == Catalog([], shipped=TINY).cards
    (tmp_path / "lost+found" / "model.onnx").write_bytes(b"x")
    (problem,) = Catalog([tmp_path], shipped=TINY).problems
    assert "lost+found: there is no card.toml" in str(problem)


def test_the_shipped_models_are_found_and_whole() -> None:
    folder = shipped_models()
    assert folder.is_dir()
    for card in Catalog().cards:
        card.verify()
