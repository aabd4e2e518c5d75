"""From a full-size checkpoint in the authors' form to a derived series, as a site does it, within 4 GB."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")

from export.bone_suppression import unet, vqgan  # noqa: E402
from pacs_node.infer import read_card  # noqa: E402
from pacs_node.phantom.dicom import study  # noqa: E402
from tests.export.filled import fill  # noqa: E402
from tests.export.throwaway import save_as_published  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose gigabytes are gone afterwards."""
    try:
        yield tmp_path
    finally:
        shutil.rmtree(tmp_path)


def command(*words: str | Path) -> int:
    """Runs ``python -m …``; the bytes of memory that it had at most, mapped files among them."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PACS_NODE_")}
    process = subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return usage.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(900)
def test_from_checkpoint_to_series(folder: Path) -> None:
    for make, name in ((vqgan.MLVQGAN, "VQGAN.pth"), (unet.UNet, "UNet.pth")):
        with torch.device("meta"):
            network = make()
        save_as_published(fill(network), folder / name)
        del network
    config = folder / "pacs-node.yaml"
    (folder / "site").mkdir()
    config.write_text(
        f"node:\n  state_dir: {folder / 'state'}\n"
        f"models:\n  folders: [{folder / 'site'}]\n  bone_suppression: bs-ldm-1024\n"
        "infer:\n  steps:\n    bone_suppression: 2\n"
    )
    study(3)[0].save_as(folder / "phantom.dcm", enforce_file_format=True)

    command(
        *("export", "convert", "bone_suppression", "--variants"),
        *("--autoencoder", folder / "VQGAN.pth", "--denoiser", folder / "UNet.pth"),
        *("--out", folder / "converted", "--name", "bs-ldm-1024"),
    )
    for name in ("VQGAN.pth", "UNet.pth"):
        (folder / name).unlink()
    adding = command("pacs_node", "models", "add", folder / "converted" / "bs-ldm-1024", "--config", config)
    shutil.rmtree(folder / "converted")
    card = read_card(folder / "site" / "bs-ldm-1024")
    assert "denoiser.data" in card.digests
    assert card.size > 1.6e9

    analysing = command(
        *("pacs_node", "analyze", folder / "phantom.dcm", "--out", folder / "out"),
        *("--task", "bone_suppression", "--config", config),
    )
    assert max(adding, analysing) < 4 * GIB
    (made,) = (folder / "out").iterdir()
    report = json.loads((made / "report.json").read_text())
    assert report["tasks"]["bone_suppression"]["model"]["digest"] == card.digest
    assert report["tasks"]["bone_suppression"]["parameters"]["model_size"] == 1024
    series = pydicom.dcmread(made / "bone_suppression.dcm")
    source = pydicom.dcmread(folder / "phantom.dcm")
    assert series.ImageType[0] == "DERIVED"
    assert series.StudyInstanceUID == source.StudyInstanceUID
    assert series.SeriesInstanceUID != source.SeriesInstanceUID
    assert series.pixel_array.std() > 0
