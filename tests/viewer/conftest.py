"""Studies as a node leaves them, servers that hold them, and OHIF in a browser."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright
from pydicom import Dataset, dcmread

from pacs_node.phantom.dicom import DEMO, study
from tests.conftest import ROOT, absent, unused_port
from tests.viewer.ohif import built
from tests.viewer.site import site

CONFIGURATION = ROOT / "deploy" / "ohif" / "app-config.js"
PICTURES = ROOT / "tests-out" / "viewer"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
WAIT = 120.0


@dataclass(frozen=True)
class Study:
    """A study of one image: the original ("original"), the results by task, and the report."""

    name: str
    images: dict[str, Dataset]
    report: Dataset
    finding: dict[str, object]
    files: list[Path]

    @property
    def uid(self) -> str:
        """Study Instance UID."""
        return str(self.report.StudyInstanceUID)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Study]:
    """A DX (MONOCHROME2) and a CR (MONOCHROME1) study, analysed with the shipped models."""
    folder = tmp_path_factory.mktemp("studies")
    inputs = []
    for seed, acquisition in enumerate(DEMO, 31):
        # Not square, so that an image on its side does not fit.
        (image,) = study(seed, (acquisition,), rows=512, columns=448)
        path = folder / f"{acquisition.modality}.dcm"
        image.save_as(path, enforce_file_format=True)
        inputs.append(path)
    command = [sys.executable, "-m", "pacs_node", "analyze", *map(str, inputs), "--out", str(folder / "out")]
    subprocess.run([*command, "--json"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=240)
    return {path.stem: _study(path, folder / "out") for path in inputs}


def _study(path: Path, output: Path) -> Study:
    original = dcmread(path)
    results = output / str(original.SOPInstanceUID)
    record = json.loads((results / "report.json").read_text())
    made = {task: results / done["file"] for task, done in record["tasks"].items()}
    images = {"original": original, **{task: dcmread(file) for task, file in made.items()}}
    (finding,) = record["tasks"]["anomaly"]["findings"]
    report = results / "report.dcm"
    return Study(path.stem, images, dcmread(report), finding, [path, *made.values(), report])


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], str], studies: dict[str, Study]
) -> Iterator[str]:
    """The origin of a real Orthanc with its DICOMweb plugin that holds the studies."""
    tool = require_tool("Orthanc")
    if not PLUGIN.exists():
        absent("orthanc-dicomweb is not installed (make system-tools)")
    folder = tmp_path_factory.mktemp("archive")
    port = unused_port()
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running([tool, str(folder / "orthanc.json")], f"http://127.0.0.1:{port}/system", folder / "log"):
        origin = f"http://127.0.0.1:{port}"
        for held in studies.values():
            for file in held.files:
                urllib.request.urlopen(f"{origin}/instances", file.read_bytes(), timeout=WAIT).close()
        yield origin


@contextmanager
def running(command: list[str], address: str, log: Path) -> Iterator[None]:
    """A server process, once ``address`` answers."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                urllib.request.urlopen(address, timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(WAIT)


@pytest.fixture(scope="session")
def ohif(require_tool: Callable[[str], str]) -> Path:
    """The folder of OHIF's built pages."""
    npm = require_tool("npm")
    try:
        return built(npm)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        absent(str(error))
        raise


@pytest.fixture(scope="module")
def pages(require_tool: Callable[[str], str]) -> Iterator[Callable[[], Page]]:
    """``pages()`` opens an empty page of Debian's Chromium."""
    path = require_tool("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=WAIT * 1000)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(WAIT * 1000)
        # As if the user had seen OHIF's introduction before.
        context.add_init_script("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
        yield context.new_page
        browser.close()


@pytest.fixture
def viewer(ohif: Path, pages: Callable[[], Page]) -> Iterator[Callable[[str, str], Page]]:
    """``viewer(origin of a DICOMweb server, Study Instance UID)``: OHIF with the study open."""

    @contextmanager
    def view(backend: str, study_uid: str) -> Iterator[Page]:
        page = pages()
        with site(ohif, {"/app-config.js": CONFIGURATION}, backend) as origin:
            page.goto(f"{origin}/viewer?StudyInstanceUIDs={study_uid}")
            page.click('[data-cy="confirm-and-hide-button"]')
            yield page
            page.close()

    with ExitStack() as opened:
        yield lambda backend, study_uid: opened.enter_context(view(backend, study_uid))
