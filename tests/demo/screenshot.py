"""Takes pictures of a demonstration's page, for looking at it and for the README.

    python tests.demo.screenshot.py demo-out/index.html shots/
        writes desktop-light.png, desktop-dark.png, phone-light.png, phone-dark.png

    python tests.demo.screenshot.py --one desktop-light --crop 900 demo-out/index.html deploy/demo.png
        writes one picture, cut to its upper 900 pixels

Needs playwright (of the dev extra) and Debian's chromium; nothing is downloaded. Publish pictures of the
synthetic study only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
PATIENCE = 120_000
"""Milliseconds that the browser may take, on a busy machine."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser; raises FileNotFoundError if there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise FileNotFoundError("chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, width: str = "desktop", scheme: str = "light") -> Iterator[Page]:
    """The page in a window of that width and colour scheme."""
    columns, rows = WIDTHS[width]
    context = browser.new_context(
        viewport={"width": columns, "height": rows}, color_scheme=scheme, reduced_motion="reduce"
    )
    try:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(path.resolve().as_uri())
        yield page
    finally:
        context.close()


def shoot(browser: Browser, path: Path, target: Path, name: str, crop: int | None = None) -> None:
    """One picture of the whole page, or of its upper ``crop`` pixels."""
    width, scheme = name.split("-")
    with opened(browser, path, width, scheme) as page:
        clip = None if crop is None else {"x": 0, "y": 0, "width": WIDTHS[width][0], "height": crop}
        page.screenshot(path=target, full_page=True, clip=clip)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("target", type=Path, help="a folder; with --one a PNG file")
    names = [f"{width}-{scheme}" for width in WIDTHS for scheme in SCHEMES]
    parser.add_argument("--one", choices=names, help="only this picture")
    parser.add_argument("--crop", type=int, help="only the upper so many pixels")
    chosen = parser.parse_args()
    with chromium() as browser:
        if chosen.one:
            shoot(browser, chosen.page, chosen.target, chosen.one, chosen.crop)
            return
        chosen.target.mkdir(parents=True, exist_ok=True)
        for name in names:
            shoot(browser, chosen.page, chosen.target / f"{name}.png", name, chosen.crop)
            sys.stdout.write(f"{chosen.target / name}.png\n")


if __name__ == "__main__":
    main()
