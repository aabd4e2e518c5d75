"""The page stands alone, shows what the archive received, and believes nothing that came from outside."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pacs_node.demo import chart
from pacs_node.demo.outcome import Bar, NotAnalysed, Outcome
from pacs_node.demo.page import render
from pacs_node.demo.pictures import ZERO_GREY, bone_image, picture, viewer_image
from pacs_node.phantom import Phantom
from pacs_node.phantom.dicom import Acquisition, image
from pacs_node.tasks import Task

sys.path.insert(0, str(Path(__file__).parent))
pytestmark = pytest.mark.xdist_group("demo page")  # its pictures are drawn once for all of them
Maker = Callable[[], Outcome]


class Document(HTMLParser):
    """Tags with their attributes, and whether every tag is closed in order."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(outcome_maker: Maker) -> str:
    return render(outcome_maker())


def test_it_shows_every_result_of_every_image(html: str) -> None:
    document = Document(html)
    text = " ".join(document.text)
    shown = [str(img["alt"]) for img in document.all("img") if img.get("src")]
    for number in (1, 2):
        for what in (
            "original",
            "bone-suppressed",
            "restored",
            "difference image of the bones",
            "anomaly heatmap",
        ):
            assert f"Image {number}, {what}" in shown
    expected = [
        "Not for diagnosis",
        "Synthetic study",
        "Imaging Measurement Report",
        "DDIM 20 steps",
        "seed 7",
    ]
    expected += ["abnormal", "normal", "threshold", "1.900", "1.200", "0.600", "MONOCHROME1", "sha256:555"]
    for said in expected:
        assert said in text, said
    assert len(document.all("rect")) > 10
    assert "9" in [part.strip() for part in document.text]  # objects at the archive


def test_it_asks_nobody_for_anything(html: str) -> None:
    assert "://" not in html.replace("http-equiv", "")
    for _, attributes in Document(html).tags:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), value
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    policy = next(str(m["content"]) for m in Document(html).all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert "url(" not in html
    assert "@import" not in html


def test_what_came_from_outside_stays_text(outcome_maker: Maker, refusal: NotAnalysed) -> None:
    outcome = outcome_maker()
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>'\"&{{7*7}}"
    outcome.images[0].file = evil
    outcome.images[0].refused = refusal
    outcome.images[1].warnings = [evil]
    task = dict(outcome.images[1].tasks[Task.ANOMALY])
    task["findings"] = [{**task["findings"][0], "name": evil, "decision": evil}]
    task["model"] = {"name": evil, "version": evil, "digest": evil}
    outcome.images[1].tasks[Task.ANOMALY] = task
    outcome.images[1].bars.append(Bar(evil, 0, 1, evil))
    outcome.not_sent.append((evil, refusal))
    outcome.failures.append(evil)
    outcome.sender = evil
    hostile = render(outcome)
    clean = Document(render(outcome_maker()))
    document = Document(hostile)
    assert len(document.all("script")) == len(clean.all("script")) == 1
    assert not any(img.get("onerror") for img in document.all("img"))
    assert "<script>alert" not in hostile
    assert "{{7*7}}" in hostile  # a template in a value is not run
    assert any("<script>alert('reason')</script>" in text for text in document.text)


def test_a_hostile_report_stays_text(outcome_maker: Maker, tmp_path: Path) -> None:
    outcome = outcome_maker()
    uid, path = next((u, p) for u, p in outcome.received.items() if dcmread(p).Modality == "SR")
    report = dcmread(path)
    report.ConceptNameCodeSequence[0].CodeMeaning = "</pre><script>alert(3)</script>"
    outcome.received[uid] = tmp_path / "report.dcm"
    report.save_as(outcome.received[uid])
    assert "<script>alert(3)" not in render(outcome)


def test_refusals_failures_and_missing_objects_are_named(outcome_maker: Maker) -> None:
    outcome = outcome_maker()
    outcome.images[0].refused = NotAnalysed("the image is not a chest", "Send it elsewhere")
    outcome.images[0].tasks = {}
    broken = {**outcome.images[1].tasks[Task.RESTORATION], "status": "failed", "error": "the model gave NaN"}
    outcome.images[1].tasks[Task.RESTORATION] = broken
    missing = str(outcome.images[1].tasks[Task.BONE_SUPPRESSION]["sop_instance_uid"])
    del outcome.received[missing]
    outcome.not_sent.append(("readme.txt", NotAnalysed("it is not a DICOM file")))
    text = " ".join(Document(render(outcome)).text)
    expected = ["the image is not a chest", "Send it elsewhere", "the model gave NaN", "readme.txt"]
    for said in [*expected, "it is not a DICOM file", "the archive has not received it"]:
        assert said in text, said
    assert not outcome.succeeded
    assert outcome_maker().succeeded


def test_an_empty_run_makes_a_page_too() -> None:
    text = " ".join(Document(render(Outcome(False, "now", ""))).text)
    assert "nothing was sent" in text
    assert "no image was analysed" in text
    assert "Synthetic" not in text


def _shown(html: str, alt: str) -> np.ndarray:
    found = re.search(rf'src="data:image/jpeg;base64,([^"]+)" alt="{alt}"', html)
    assert found
    return cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize(("number", "seed", "nodules"), [(1, 1, 1), (2, 1001, 0)])
def test_pictures_are_what_the_phantom_is(html: str, number: int, seed: int, nodules: int) -> None:
    """Through DICOM and back, MONOCHROME1 too: the pictures of the page are the phantom's own images."""
    truth = Phantom(seed, nodules=nodules).render(256)
    original = _shown(html, f"Image {number}, original") / 255
    suppressed = _shown(html, f"Image {number}, bone-suppressed") / 255
    assert np.abs(original - truth.radiograph).mean() < 0.01
    assert np.abs(suppressed - truth.soft_tissue).mean() < 0.015
    bone = _shown(html, f"Image {number}, difference image of the bones").astype(float)
    assert np.corrcoef(bone.ravel(), truth.bone.ravel())[0, 1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_viewer_image_follows_the_header(photometric: str) -> None:
    ds = image(2, 1, Acquisition(photometric=photometric, rows=128, columns=128))
    plain = viewer_image(ds)
    np.testing.assert_allclose(plain / 255, Phantom(2).render(128).radiograph, atol=0.005)
    ds.WindowWidth = float(ds.WindowWidth) / 2
    assert (np.isin(viewer_image(ds), (0, 255)).mean()) > np.isin(plain, (0, 255)).mean()
    del ds.WindowWidth, ds.WindowCenter
    full = viewer_image(ds)
    assert (full.min(), full.max()) == (0, 255)
    ds.RescaleSlope, ds.RescaleIntercept = "2", "-100"
    np.testing.assert_array_equal(viewer_image(ds), full)


def test_bone_image_is_flat_where_nothing_was_changed() -> None:
    ds = image(2, 1, Acquisition(rows=128, columns=128))
    flat, _ = bone_image(ds, ds)
    assert (flat == round(ZERO_GREY * 255)).all()
    other = image(2, 1, Acquisition(rows=64, columns=128))
    with pytest.raises(ValueError, match="matrices"):
        bone_image(ds, other)


def test_pictures_are_reduced_and_keep_their_shape() -> None:
    made = picture(np.zeros((3000, 1500), np.uint8), "x")
    assert (made.width, made.height) == (512, 1024)
    assert picture(np.zeros((1, 4000), np.uint8), "x").height == 1


def test_pixels_that_cannot_be_decoded_leave_a_note(outcome_maker: Maker, tmp_path: Path) -> None:
    outcome = outcome_maker()
    uid = outcome.images[0].sop_instance_uid
    ds: Dataset = dcmread(outcome.received[uid])
    ds.PixelData = ds.PixelData[:100]
    outcome.received[uid] = tmp_path / "short.dcm"
    ds.save_as(outcome.received[uid])
    assert "the pixels cannot be decoded" in render(outcome)


@pytest.mark.parametrize("last", [0.05, 0.9, 3.0, 47.0, 61.0, 5000.0])
def test_ticks_are_few_and_round(last: float) -> None:
    step = chart.tick_step(last)
    assert 2 <= last / step <= 10
    assert f"{step:e}"[0] in "125"


def test_the_timeline_holds_every_bar_without_overlap(outcome_maker: Maker) -> None:
    outcome = outcome_maker()
    outcome.images[0].bars += [Bar("deliver x", 4.0, 6.0), Bar("deliver y", 5.0, 7.0)]  # side by side
    drawn = chart.timeline(outcome)
    assert len(drawn.marks) == sum(len(i.bars) for i in outcome.images) + len(outcome.study_bars)
    lanes: dict[float, list[chart.Mark]] = {}
    for mark in drawn.marks:
        assert mark.x >= chart.LEFT
        assert mark.x + mark.width <= chart.WIDTH
        lanes.setdefault(mark.y, []).append(mark)
    for lane in lanes.values():
        ordered = sorted(lane, key=lambda mark: mark.x)
        for one, following in pairwise(ordered):
            assert one.x + one.width <= following.x + chart.MIN_BAR + 0.01
    assert max(lanes) + chart.BAR < drawn.height


@pytest.mark.slow
def test_the_page_works_in_a_browser(html: str, tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    """Keyboard, enlarging and comparing in chromium, its security policy in force, no request made."""
    require_tool("chromium")
    from playwright.sync_api import expect
    from screenshot import chromium, opened

    expect.set_options(timeout=60_000)

    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    with chromium() as browser:
        for width in ("desktop", "phone"):
            with opened(browser, path, width) as page:
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
                problems: list[str] = []
                page.on("console", lambda message, to=problems: to.append(message.text))
                page.on("request", lambda request, to=problems: to.append(request.url))
                page.reload()
                problems[:] = [p for p in problems if not p.startswith(("file:", "data:"))]
                button = page.locator("button.enlarge").first
                button.focus()
                page.keyboard.press("Enter")
                expect(page.locator("#viewer p")).to_have_text("Image 1, original")
                page.keyboard.press("ArrowRight")
                expect(page.locator("#viewer p")).to_have_text("Image 1, bone-suppressed")
                page.keyboard.press("Escape")
                expect(page.locator("#viewer")).to_be_hidden()
                # The focus goes back to the picture that was shown last, a moment later.
                expect(page.locator("button.enlarge").nth(1)).to_be_focused()
                stage = page.locator(".stage").first
                page.locator(".compare input").first.press("Home")
                handle = stage.element_handle()
                page.wait_for_function("e => e.style.getPropertyValue('--split') == '0%'", arg=handle)
                page.locator(".choices button").nth(1).click()
                expect(page.locator(".compare .against").first).to_have_text("Restored")
                over, panel = page.locator(".stage .over").first, page.locator("#p1-restoration")
                assert over.get_attribute("src") == panel.get_attribute("src")
                assert problems == []
