"""``pacs-node models``, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import SHALLOW, SHALLOW_FILES, TINY, variant

from pacs_node.errors import ModelError
from pacs_node.infer import Catalog, Settings, read_card
from pacs_node.infer.manage import add
from pacs_node.infer.providers import available

MakeModel = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
CPU = Settings(("cpu",))


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PACS_NODE_")} | {"COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "pacs_node", "models", *map(str, words)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """A folder of shipped models without any."""
    (tmp_path / "nothing").mkdir()
    return tmp_path / "nothing"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a folder of models, and nothing else."""
    (tmp_path / "site").mkdir()
    path = tmp_path / "pacs-node.yaml"
    path.write_text(f"models:\n  folders: [{tmp_path / 'site'}]\n")
    return path


@pytest.mark.slow
def test_add_list_verify(make_model: MakeModel, config: Path, tmp_path: Path) -> None:
    source = make_model("tiny-bone")
    (source / "notes.txt").write_text("not part of the model")
    digest = read_card(source).digest
    added = command("add", source, "--config", config)
    assert added.returncode == 0, added.stderr
    assert f"tiny-bone 1.0.0 added: {tmp_path / 'site' / 'tiny-bone'}" in added.stdout
    assert digest in added.stdout
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == ["tiny-bone"]
    assert sorted(path.name for path in (tmp_path / "site" / "tiny-bone").iterdir()) == [
        "card.toml",
        "decoder.onnx",
        "denoiser.onnx",
        "encoder.onnx",
    ]
    listed = command("list", "--config", config)
    assert listed.returncode == 0, listed.stderr
    (line,) = (line for line in listed.stdout.splitlines() if line.split()[:1] == ["tiny-bone"])
    for word in ("bone_suppression", "1.0.0", digest[7:15], str(tmp_path / "site")):
        assert word in line
    verified = command("verify", "tiny-bone", "--config", config)
    assert verified.returncode == 0, verified.stderr
    assert "tiny-bone 1.0.0: files as the card says; ran on " in verified.stdout

    again = command("add", source, "--config", config)
    assert again.returncode == 0
    assert "is there already, just the same" in again.stdout


@pytest.mark.slow
def test_variants_are_copied_verified_and_listed(make_model: MakeModel, config: Path, tmp_path: Path) -> None:
    """The card's own graphs stand for their variants; a broken neighbour changes only the exit code."""
    names = {role: (TINY / "tiny-bone" / f"{role}.onnx").read_bytes() for role in ("denoiser", "decoder")}
    source = make_model(
        "tiny-bone",
        files={"denoiser.f16.onnx": names["denoiser"], "decoder.int8.onnx": names["decoder"]},
        replace={
            "[digests]": '[variants.f16]\ndenoiser = "denoiser.f16.onnx"\n\n'
            '[variants.int8]\ndecoder = "decoder.int8.onnx"\n\n[digests]'
        },
    )
    (source / "stray.onnx").write_bytes(b"")
    assert command("add", source, "--config", config).returncode == 0
    site = tmp_path / "site"
    assert {"denoiser.f16.onnx", "decoder.int8.onnx"} <= {p.name for p in (site / "tiny-bone").iterdir()}
    assert not (site / "tiny-bone" / "stray.onnx").exists()
    (site / "broken").mkdir()
    (site / "broken" / "card.toml").write_text('name = "broken"')

    listed = command("list", "--config", config)
    assert listed.returncode == 1
    (line,) = (line for line in listed.stdout.splitlines() if line.split()[:1] == ["tiny-bone"])
    size = sum(path.stat().st_size for path in (site / "tiny-bone").glob("*.onnx"))
    assert f"f32 f16 int8 {size / 1e6:.1f} MB" in line
    assert "broken/card.toml: task: the key is missing" in listed.stderr

    verified = command("verify", "tiny-bone", "--build", "--config", config)
    assert "tiny-bone 1.0.0: files as the card says; ran on " in verified.stdout
    assert "int8" in verified.stdout  # of its own, or as what is taken here
    if "cuda" not in available():
        told = "it is for cuda, which the installed ONNX Runtime does not have"
        assert f"tiny-bone 1.0.0, f16: not run here: {told}" in verified.stdout
        assert verified.returncode == 1
        assert (
            "TensorRT: the installed ONNX Runtime does not have it. Install pacs-node[gpu]" in verified.stderr
        )
    (site / "tiny-bone" / "decoder.int8.onnx").unlink()
    verified = command("verify", "tiny-bone", "--config", config)
    assert verified.returncode == 1
    assert "decoder.int8.onnx: the file is missing" in verified.stderr


def test_a_shallow_graph_is_tried_too(make_model: MakeModel, nothing: Path, tmp_path: Path) -> None:
    """Though the few steps of the trial lie further apart than it reaches."""
    site = Catalog([], shipped=nothing)
    files = SHALLOW_FILES | {"shallow.onnx": variant("not_finite_shallow.onnx")}
    bad = make_model("tiny-bone", folder="bad", files=files, replace=SHALLOW)
    with pytest.raises(ModelError, match="not finite"):
        add(bad, tmp_path / "site", site, CPU)
    assert not (tmp_path / "site" / "tiny-bone").exists()
    good = make_model("tiny-bone", folder="good", files=SHALLOW_FILES, replace=SHALLOW)
    add(good, tmp_path / "site", site, CPU)
    assert (tmp_path / "site" / "tiny-bone" / "shallow.onnx").is_file()


def test_verify_fails_on_an_altered_file(
    make_model: MakeModel, config: Path, nothing: Path, tmp_path: Path
) -> None:
    add(make_model("tiny-bone"), tmp_path / "site", Catalog([], shipped=nothing), CPU)
    with (tmp_path / "site" / "tiny-bone" / "decoder.onnx").open("ab") as file:
        file.write(b"\0")
    verified = command("verify", "tiny-bone", "--config", config)
    assert verified.returncode == 1
    assert "decoder.onnx: the file's digest is sha256:" in verified.stderr


def test_verify_an_unknown_model() -> None:
    verified = command("verify", "tiny-bine")
    assert verified.returncode == 1
    assert "There is no model 'tiny-bine'" in verified.stderr


def test_list_tells_what_is_wrong(make_model: MakeModel, config: Path, tmp_path: Path) -> None:
    make_model("tiny-bone", folder="../site/broken", replace={"steps = 5": "stepz = 5"})
    listed = command("list", "--config", config)
    assert listed.returncode == 1
    assert "sampler.stepz: this key is unknown. Did you mean 'steps'?" in listed.stderr


def test_add_without_a_folder_to_add_to(make_model: MakeModel) -> None:
    added = command("add", make_model("tiny-bone"))
    assert added.returncode == 1
    assert "models.folders" in added.stderr


def test_a_model_that_does_not_run_is_not_added(make_model: MakeModel, nothing: Path, tmp_path: Path) -> None:
    source = make_model("tiny-restoration", files={"denoiser.onnx": variant("not_finite.onnx")})
    with pytest.raises(ModelError, match="not finite"):
        add(source, tmp_path / "site", Catalog([], shipped=nothing), CPU)
    assert not (tmp_path / "site").exists()


def test_another_version_replaces_and_a_different_same_version_does_not(
    make_model: MakeModel, nothing: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    first = make_model("tiny-bone", folder="a")
    newer = make_model("tiny-bone", folder="b", replace={'"1.0.0"': '"1.1.0"', "steps = 5": "steps = 6"})
    other = make_model("tiny-bone", folder="c", replace={'"1.0.0"': '"1.1.0"', "steps = 5": "steps = 7"})
    assert add(first, site, Catalog([], shipped=nothing), CPU).replaced is None
    added = add(newer, site, Catalog([site], shipped=nothing), CPU)
    assert (added.replaced, added.card.version) == ("1.0.0", "1.1.0")
    with pytest.raises(ModelError, match=r"a different model is there as tiny-bone 1\.1\.0"):
        add(other, site, Catalog([site], shipped=nothing), CPU)
    assert [path.name for path in site.iterdir()] == ["tiny-bone"]
    assert read_card(site / "tiny-bone").digest == read_card(newer).digest


def test_names_of_shipped_models_are_taken(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model("tiny-bone", replace={'"1.0.0"': '"2.0.0"'})
    with pytest.raises(ModelError, match="the name of a shipped model"):
        add(source, tmp_path / "site", Catalog([], shipped=TINY), CPU)
