"""The results in OHIF, the viewer most sites use: what the screen shows against the pixels that were sent."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from playwright.sync_api import Page
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from pacs_node.tasks import Task
from tests.conftest import unused_port
from tests.viewer.conftest import PICTURES, Study, running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("viewer")]

SIDE = 128
WAIT = 120.0
#: Largest mean difference, of 0 to 255, between the screen and the pixels sent.
TOLERANCE = 3.0
CANVAS = "() => document.querySelector('canvas.cornerstone-canvas').toDataURL('image/png')"

Image = np.ndarray[Any, np.dtype[np.float64]]


def expected(ds: Dataset) -> Image:
    """What a viewer has to show of ``ds``: RGB of 0 to 255, by pydicom and the definitions of PS3.4 N.2."""
    if ds.PhotometricInterpretation == "RGB":
        return ds.pixel_array.astype(np.float64)
    shown = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(np.float64)
    top = 2**ds.BitsStored - 1  # the range that apply_voi_lut gives
    shown = np.clip(shown / top, 0, 1) * 255
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return np.repeat(shown[..., None], 3, axis=2)


def reduced(image: Image) -> Image:
    """The image at SIDE x SIDE, by means over areas."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def canvas(page: Page, rows: int, columns: int) -> Image:
    """What the viewport shows of an image of that matrix, which it fits into its middle: RGB of 0 to 255."""
    data = base64.b64decode(page.evaluate(CANVAS).partition(",")[2])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(np.float64)
    height, width = picture.shape[:2]
    scale = min(height / rows, width / columns)
    high, wide = round(rows * scale), round(columns * scale)
    top, left = (height - high) // 2, (width - wide) // 2
    return picture[top : top + high, left : left + wide]


def correlation(one: Image, other: Image) -> float:
    """Pearson's, over all pixels and colours."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def difference(one: Image, other: Image) -> float:
    """The mean of the absolute differences."""
    return float(np.abs(one - other).mean())


def otherwise(image: Image) -> dict[str, Image]:
    """The image in the polarity and the orientations that are not meant."""
    return {
        "inverted": 255 - image,
        "mirrored": image[:, ::-1],
        "upside down": image[::-1],
        "on its side": image.transpose(1, 0, 2),
    }


def open_series(page: Page, ds: Dataset, kind: str = "study-browser-thumbnail") -> None:
    """Open a series as a user does, by a double click on its thumbnail."""
    thumbnail = f'[data-cy="{kind}"]:has-text("S:{ds.SeriesNumber}")'
    page.dblclick(thumbnail)


def compare(page: Page, study: Study, name: str) -> None:
    """Open an image, and assert that the screen shows it, and as it is meant to be shown."""
    ds = study.images[name]
    wanted = {key: reduced(expected(other)) for key, other in study.images.items()}
    open_series(page, ds)
    title = f'[data-cy="viewport-overlay-top-left"]:has-text("{ds.SeriesDescription}")'
    page.wait_for_selector(title)
    deadline = time.monotonic() + WAIT
    while True:  # the title comes before the pixels
        shown = reduced(canvas(page, ds.Rows, ds.Columns))
        near = {key: difference(shown, other) for key, other in wanted.items()}
        if near[name] < TOLERANCE or time.monotonic() > deadline:
            break
        page.wait_for_timeout(100)
    save(page, f"{study.name}-{name}")
    # The window, and the right one of images that are much alike: grey values are those that were sent.
    assert near[name] < TOLERANCE, near
    assert min(near, key=lambda key: near[key]) == name, near
    own = correlation(shown, wanted[name])
    assert own > 0.99
    for how, other in otherwise(wanted[name]).items():
        assert correlation(shown, other) < own - 0.01, how
        assert difference(shown, other) > 2 * near[name], how
    # A result lies as its original does.
    as_original = correlation(shown, wanted["original"])
    for how, other in otherwise(wanted["original"]).items():
        assert correlation(shown, other) < as_original, how
    if name == "anomaly":
        colour = shown.max(axis=2) - shown.min(axis=2)
        assert colour.max() > 60
    else:
        # Bone is bright: the spine against the air beside the shoulders, whatever the polarity as stored.
        assert shown[SIDE // 2 :, SIDE // 2].mean() > shown[:8, :8].mean() + 100


def read_report(page: Page, study: Study) -> None:
    """Open the report, and assert that its score can be read on the screen by the finding's name.

    OHIF 3.13 writes it to the right of the image, where a narrow window cuts it off, and sometimes only when
    the viewport is next drawn: so zoom out, as a user would.
    """
    open_series(page, study.report, "study-browser-thumbnail-no-image")
    page.wait_for_selector('[data-cy="ModalityLoadBadge-default"]:has-text("SR")')
    # It opens over the image that it speaks of.
    original = study.images["original"]
    wanted = reduced(expected(original))
    deadline = time.monotonic() + WAIT
    while difference(reduced(canvas(page, original.Rows, original.Columns)), wanted) > TOLERANCE:
        assert time.monotonic() < deadline
        page.wait_for_timeout(100)
    name, score = study.finding["name"], float(str(study.finding["score"]))
    label = None
    zoom_out(page, 250)
    while label is None:
        assert time.monotonic() < deadline, "the score is not drawn"
        page.wait_for_timeout(500)
        label = page.query_selector(f'[data-cy="viewport-pane"] svg text:has-text("{name}")')
        if label is None:
            zoom_out(page, 5)  # the viewport may have been drawn before the report was read
    save(page, f"{study.name}-report")
    pane = page.locator('[data-cy="viewport-pane"]').bounding_box()
    box = label.bounding_box()
    assert box is not None
    assert pane is not None
    assert pane["x"] <= box["x"]
    assert box["x"] + box["width"] <= pane["x"] + pane["width"]
    text = label.text_content() or ""
    numbers = [float(word) for word in text.replace(str(name), "").split() if word.replace(".", "").isdigit()]
    assert pytest.approx(score, abs=0.006) in numbers, text


def zoom_out(page: Page, far: int) -> None:
    """By OHIF's gesture for it, a drag upwards with the right button."""
    pane = page.locator('[data-cy="viewport-pane"]').bounding_box()
    assert pane is not None
    x, y = pane["x"] + pane["width"] / 2, pane["y"] + pane["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x, y - far, steps=10)
    page.mouse.up(button="right")


def save(page: Page, name: str) -> None:
    """Keep a picture, to be looked at."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


@pytest.mark.parametrize("modality", ["DX", "CR"])
def test_a_study_in_orthanc(
    modality: str, studies: dict[str, Study], archive: str, viewer: Callable[[str, str], Page]
) -> None:
    study = studies[modality]
    page = viewer(archive, study.uid)
    for name in study.images:
        compare(page, study, name)
    read_report(page, study)


def test_a_study_in_the_node_itself(
    tmp_path: Path, studies: dict[str, Study], viewer: Callable[[str, str], Page]
) -> None:
    """OHIF opens what the node's own DICOMweb service holds, received and made, with no other server."""
    original = studies["CR"].images["original"]
    origin = f"http://127.0.0.1:{unused_port()}"
    settings = {
        "node": {"state_dir": str(tmp_path / "state")},
        "receive": {"host": "127.0.0.1", "port": unused_port(), "min_free_disk_mb": 1},
        "study": {"quiet_seconds": 0.2},
        "destinations": {"FOLDER": {"type": "folder", "path": str(tmp_path / "delivered")}},
        "web": {"host": "127.0.0.1", "port": int(origin.rpartition(":")[2])},
        "rules": [{"name": "all", "tasks": [str(task) for task in Task], "destinations": ["FOLDER"]}],
    }
    config = tmp_path / "pacs-node.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "pacs_node", "serve", "--config", str(config)]
    with running(command, f"{origin}/dicom-web/studies", tmp_path / "log"):
        client = DICOMwebClient(f"{origin}/dicom-web")
        client.store_instances([original])
        held: list[Dataset] = []
        deadline = time.monotonic() + 2 * WAIT
        while len(held) < 5:  # the original, three results, the report
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
            held = client.retrieve_study(str(original.StudyInstanceUID))
        study = as_study(studies["CR"], held)
        page = viewer(origin, study.uid)
        for name in study.images:
            compare(page, study, name)
        read_report(page, study)


def as_study(like: Study, held: list[Dataset]) -> Study:
    """What a server gave back, in the places of ``like``; the same input gives the same objects."""
    by_uid = {str(ds.SOPInstanceUID): ds for ds in held}
    images = {name: by_uid.pop(str(ds.SOPInstanceUID)) for name, ds in like.images.items()}
    (report,) = by_uid.values()
    return Study("node", images, report, like.finding, [])
