"""What is told of an adapted model: its table, its card, its name; and taking it in beside the others."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from export.bone_suppression.adapt import Adapted
from export.bone_suppression.evaluation.statistics import table
from export.shipping import write_card
from export.training import TrainingError
from pacs_node.config import Config
from pacs_node.infer import Catalog, Settings, read_card
from pacs_node.infer.cards import CARD, Card
from pacs_node.infer.manage import Added, add

DIGITS = {"psnr_unchanged": 2, "psnr": 2, "bsr": 3, "bsr_published": 3}
#: Pairs of a site that each get a row of their own.
ROWS = 12
NOTE = (
    "PSNR in dB at 1024 px along the longer side, the radiograph unchanged and the model before and after; "
    "fitted: after the affine map of grey values that brings each image nearest to the truth. BSR: share of "
    "the bones' energy that is gone; published: as BS-LDM and GL-LCM compute it, which a radiograph left "
    "unchanged scores well by. Of the site's pairs, after: by models that learnt from the other "
    "patients only."
)


def report(adapted: Adapted) -> str:
    """The table, in Markdown."""
    heads = ["pairs", "n", "unchanged", "before", "after", "gain"]
    heads += [
        "fitted: unchanged",
        "before",
        "after",
        "gain",
        "BSR before",
        "after",
        "published: before",
        "after",
    ]
    groups = list(dict.fromkeys(p.group for p in adapted.pairs))
    lines = []
    site = len(adapted.site)
    if site <= ROWS:
        lines += [_line(adapted, [i], adapted.pairs[i].squares.name) for i in range(site)]
    for group in groups:
        rows = [i for i, p in enumerate(adapted.pairs) if p.group == group]
        lines.append(
            _line(adapted, rows, f"{group}, mean" if rows[0] < site else f"{group}, not learnt from")
        )
    return f"{table(heads, lines)}\n\n{NOTE}"


def _mean(adapted: Adapted, rows: Iterable[int], when: str, key: str) -> float:
    values = adapted.before if when == "before" else adapted.after
    return float(np.mean([values[i][key] for i in rows]))


def _line(adapted: Adapted, rows: list[int], name: str) -> list[str]:
    cells = [name, str(len(rows))]
    for prefix in ("", "fitted_"):
        before, after = (_mean(adapted, rows, when, f"{prefix}psnr") for when in ("before", "after"))
        unchanged = _mean(adapted, rows, "before", f"{prefix}psnr_unchanged")
        cells += [f"{unchanged:.2f}", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
    for key in ("bsr", "bsr_published"):
        cells += [f"{_mean(adapted, rows, when, key):.3f}" for when in ("before", "after")]
    return cells


def figures(adapted: Adapted) -> dict[str, Any]:
    """For the card: means of each group, without the names of files."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "iterations": adapted.plan.iterations,
        "folds": adapted.folds,
        "minutes": round(adapted.seconds / 60, 1),
    }
    for number, group in enumerate(dict.fromkeys(p.group for p in adapted.pairs)):
        rows = [i for i, p in enumerate(adapted.pairs) if p.group == group]
        measured: dict[str, Any] = {
            "pairs": len(rows),
            "learnt_from": "other patients" if not number else "no",
        }
        for prefix in ("", "fitted_"):
            for key, digits in DIGITS.items():
                for when in ("before", "after") if key != "psnr_unchanged" else ("before",):
                    name = f"{prefix}{key}" if key == "psnr_unchanged" else f"{prefix}{key}_{when}"
                    measured[name] = round(_mean(adapted, rows, when, f"{prefix}{key}"), digits)
        found[group] = measured
    return {"adaptation": found}


def free_name(wish: str, taken: Iterable[str]) -> tuple[str, int]:
    """``wish-1``, or the next number: of the names there, and so that no older model is replaced."""
    numbers = [int(m[1]) for name in taken if (m := re.fullmatch(re.escape(wish) + r"-(\d{1,6})", name))]
    number = max(numbers, default=0) + 1
    return f"{wish}-{number}", number


def describe(adapted: Adapted, name: str, version: str) -> Card:
    """Writes the card of the adapted model: whose child it is, what it learnt from, what it does."""
    parent, folder = adapted.parent, adapted.card.folder
    content = tomllib.loads((folder / CARD).read_text(encoding="utf-8"))
    training, limits = content["training"], content["limits"]
    count, patients = len(adapted.site), len({p.squares.patient for p in adapted.site})
    plan = adapted.plan
    content |= {"name": name, "version": version, "figures": figures(adapted)}
    content["summary"] = f"{parent.name} {parent.version}, adapted to a site by {count} of its own pairs."
    training["parent"] = f"{parent.name} {parent.version} {parent.digest}"
    training["data"] = [*training["data"], f"{count} pairs of {patients} patients of the site adapted to"]
    training["terms"] = [*training["terms"], "The site's pairs: as the site says; so for these weights, too"]
    training["recipe"] = (
        f"python -m export adapt bone-suppression --model {parent.name} --pairs DIR --iterations "
        f"{plan.iterations} --rate {plan.rate:g}"
    )
    training["notes"] = [
        *training.get("notes", []),
        f"Adapted: the denoiser alone, {plan.iterations} iterations of {plan.batch} at {plan.rate:g}, half "
        "of the samples the site's, half phantoms and what the site replayed; "
        f"{plan.as_they_are:.0%} of both with the bones and tone that they have, the others varied. "
        "The soft tissue of each of the site's folders in one brightness, the mean of its pairs'.",
    ]
    training["pairs"] = training.get("pairs", {}) | dict.fromkeys({p.group for p in adapted.site}, "all")
    limits["texts"] = [
        *limits["texts"],
        f"Adapted to one site by {count} pairs: on other sites' images it may do worse than {parent.name}.",
    ]
    content.pop("digests")
    write_card(folder, content)
    return read_card(folder)


def better(adapted: Adapted) -> None:
    """Raises TrainingError if it is not."""
    if adapted.gain > 0:
        return
    raise TrainingError(
        f"on pairs that it had not learnt from {adapted.parent.name} did not get better ({adapted.gain:+.2f} "
        "dB), so nothing was kept. Give more pairs, more --minutes, or another --rate; --anyway keeps it all "
        "the same"
    )


def install(source: Path, target: Path, config: Config) -> Added:
    """Into the site's folder of models, as ``pacs-node models add`` does. Raises ModelError."""
    folders = {path.resolve() for path in (*config.models.folders, target)}
    catalog = Catalog([path for path in sorted(folders) if path.is_dir()])
    return add(source, target, catalog, Settings.configured(config, read_card(source).task))
