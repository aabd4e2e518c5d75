"""Tiny real models (see fixtures/make.py), copied and altered for each test."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TINY


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """``make_model("tiny-bone", replace={"steps = 5": "steps = 6"}, files={"x.onnx": b""})``: its folder.

    A copy in tmp_path/models, its card's text and its files replaced as told, the digests brought up to date.
    """

    def make(
        base: str,
        *,
        folder: str | None = None,
        replace: dict[str, str] | None = None,
        files: dict[str, bytes] | None = None,
    ) -> Path:
        target = tmp_path / "models" / (folder or base)
        shutil.copytree(TINY / base, target)
        card = target / "card.toml"
        text = card.read_text()
        for name, content in (files or {}).items():
            (target / name).write_bytes(content)
            line = f'"{name}" = "sha256:{hashlib.sha256(content).hexdigest()}"'
            if f'"{name}" = "sha256' in text:
                text = re.sub(rf'"{re.escape(name)}" = "sha256:[0-9a-f]+"', line, text)
            else:
                text = text.replace("[digests]\n", f"[digests]\n{line}\n")
        for old, new in (replace or {}).items():
            assert old in text, f"{old!r} is not in the card"
            text = text.replace(old, new)
        card.write_text(text)
        return target

    return make
