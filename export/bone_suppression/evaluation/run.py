"""All parts one after the other; what each gives is printed, kept as Markdown, and put into the card."""

from __future__ import annotations

import datetime
import importlib
import tomllib
from collections.abc import Sequence
from typing import Any

from export.bone_suppression.evaluation.part import Bench, Part
from export.shipping import put_figures

PARTS = ("pairs", "nodules", "texture", "steps", "readers", "variations")


def evaluate(bench: Bench, parts: Sequence[str] = PARTS) -> None:
    """Measures ``parts``; figures of the other parts stay in the card as they are."""
    for name in parts:
        part: Part = importlib.import_module(f"export.bone_suppression.evaluation.{name}").run(bench)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        model = f"{bench.card.name} {bench.card.version}"
        text = f"### {part.title} ({model}, {today})\n\n{part.text}\n"
        print(text, *(f"picture: {path}" for path in part.pictures), sep="\n", flush=True)
        bench.out.mkdir(parents=True, exist_ok=True)
        (bench.out / f"{name}.md").write_text(text, encoding="utf-8")
        path = bench.card.folder / "card.toml"
        before: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["figures"]
        kept = {key: value for key, value in before.items() if key in PARTS}
        put_figures(bench.card.folder, kept | {name: {"date": today, **part.figures}})
