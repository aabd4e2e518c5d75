"""Steps against quality: every sampler that the model's law allows, and DDPM's full walk."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from export.bone_suppression.evaluation import nodules
from export.bone_suppression.evaluation.cases import Array, Case
from export.bone_suppression.evaluation.lungs import lungs
from export.bone_suppression.evaluation.part import Bench, Part
from export.bone_suppression.evaluation.statistics import table
from export.bone_suppression.metrics import bone_suppression_ratio, psnr
from pacs_node.infer import Card, Settings, make
from pacs_node.infer.sampling.rules import trouble
from pacs_node.infer.tables import asked_for
from pacs_node.tasks import SamplerName

#: Numbers of steps, and the full walk of the noise that the model was trained against.
STEPS, FULL = (1, 2, 4, 8, 10, 20, 50), "ddpm"
#: Pairs of a source; how many of all pairs the full walk is shown.
USUAL, FULL_PAIRS = 2, 1
#: What the knee may lack of the best mean PSNR, in dB, and of the best nodule contrast.
NEAR_DB, NEAR_CONTRAST = 0.1, 0.01
NOTE = """\
{pairs} pairs that were not trained on, at 1024 px, seed 0: PSNR gain over the unchanged radiograph, BSR,
and the median contrast that {nodules} inserted nodules keep. Seconds of one image: median, on two CPU cores
(shared). The knee is the fewest steps within {by} of the best: {knee}. The full
walk of {full} steps was taken on {few} of the pairs, where {name} in {steps} gives {there:+.2f} dB."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One pair, with and without nodules."""

    case: Case
    image: Array
    truth: Array
    spots: list[nodules.Spot]

    @property
    def added(self) -> Array:
        """The radiograph with its nodules."""
        return np.clip(self.image + sum(s.signal for s in self.spots), 0, 1).astype(np.float32)


def subjects(bench: Bench) -> list[Subject]:
    """Pairs not trained on whose lungs are found, each with one set of nodules."""
    patches = nodules.read_patches(bench.data / "nodule_ct_patches")
    found = []
    for number, case in enumerate(c for cases in bench.cases(USUAL).values() for c in cases if not c.seen):
        image, truth = case.read()
        inside = lungs(truth)
        if inside is not None:
            rng = np.random.default_rng(number)
            found.append(
                Subject(case, image, truth, nodules.draw(image, truth, inside, patches, rng, number))
            )
    return found


def allowed(card: Card) -> list[tuple[str, int]]:
    """Samplers and steps that the model can do."""
    if card.diffusion is None or card.sampler is None:
        raise TypeError(f"{card.name} is no diffusion model")
    return [
        (name, steps)
        for name in get_args(SamplerName)
        for steps in STEPS
        if trouble(card.diffusion, asked_for(card.sampler, name, steps), steps) is None
    ]


def measure(bench: Bench, chosen: list[Subject], name: str, steps: int) -> dict[str, Any]:
    """Means over the subjects."""
    model = make(bench.card, Settings(sampler=name, steps=steps))  # let go of: there are many
    gains, ratios, shares, seconds = [], [], [], []
    for subject in chosen:
        result = bench.suppress(subject.image, model)
        seconds.append(result.seconds)
        before = psnr(subject.image, subject.truth)
        gains.append(psnr(result.image, subject.truth) - before)
        ratios.append(bone_suppression_ratio(result.image, subject.image, subject.truth))
        kept = nodules.compared(
            subject.added,
            bench.suppress(subject.added, model).image,
            subject.image,
            result.image,
            subject.spots,
            subject.case,
        )
        shares += [k.share for k in kept]
    return {
        "sampler": name,
        "steps": steps,
        "psnr_gain": round(float(np.mean(gains)), 3),
        "bsr": round(float(np.mean(ratios)), 4),
        "nodule_contrast": round(float(np.median(shares)), 4),
        "nodules": len(shares),
        "seconds": round(float(np.median(seconds)), 2),
    }


def knee(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The fewest steps that are all but as good as the best, and by what measure."""
    most, kept = (max(r[key] for r in rows) for key in ("psnr_gain", "nodule_contrast"))
    close = [r for r in rows if r["psnr_gain"] >= most - NEAR_DB]
    both = [r for r in close if r["nodule_contrast"] >= kept - NEAR_CONTRAST]
    by = "0.1 dB and 1% of nodule contrast" if both else "0.1 dB (none is within 1% of nodule contrast, too)"
    return min(both or close, key=lambda r: (r["steps"], -r["psnr_gain"])), by


def run(bench: Bench) -> Part:
    """Table and plot."""
    chosen = subjects(bench)
    rows = []
    for name, steps in allowed(bench.card):
        rows.append(measure(bench, chosen, name, steps))
        print(*rows[-1].values(), flush=True)
    best, by = knee(rows)
    words = f"{best['sampler']} in {best['steps']}"
    first = {s.case.source: s for s in reversed(chosen)}
    few = list(first.values())[:FULL_PAIRS]
    full = bench.card.diffusion.train_steps if bench.card.diffusion else 0
    there = measure(bench, few, best["sampler"], best["steps"])["psnr_gain"]
    rows.append(measure(bench, few, FULL, full))
    text = NOTE.format(
        pairs=len(chosen),
        nodules=rows[0]["nodules"],
        full=full,
        few=len(few),
        knee=words,
        by=by,
        name=best["sampler"],
        steps=best["steps"],
        there=there,
    )
    heads = ["sampler", "steps", "PSNR gain, dB", "BSR", "nodule contrast kept", "seconds"]
    cells = [
        [
            r["sampler"],
            r["steps"],
            f"{r['psnr_gain']:+.2f}",
            f"{r['bsr']:.3f}",
            f"{r['nodule_contrast']:.1%}",
            f"{r['seconds']:.2f}",
        ]
        for r in rows
    ]
    figures: dict[str, Any] = {"pairs": len(chosen), "knee": words}
    figures["each"] = "PSNR gain in dB, BSR, median nodule contrast kept, seconds"
    for r in rows:
        found = [r[k] for k in ("psnr_gain", "bsr", "nodule_contrast", "seconds")]
        figures.setdefault(r["sampler"], {})[str(r["steps"])] = found
    picture = plot(rows, bench.out / "steps.png", apart=len(chosen) != len(few))
    return Part("Steps against quality", f"{text}\n\n{table(heads, cells)}", figures, [picture])


def plot(rows: list[dict[str, Any]], path: Path, apart: bool) -> Path:
    """PSNR gain, BSR and nodule contrast over the steps, a line for each sampler.

    ``apart``: the last row is of other pairs than the others; a ring shows it, joined to nothing.
    """
    panels = (
        ("psnr_gain", "PSNR gain, dB (what is below 0 lies at the foot)"),
        ("bsr", "BSR (what is below 0 lies at the foot)"),
        ("nodule_contrast", "nodule contrast kept"),
    )
    names = list(dict.fromkeys(r["sampler"] for r in rows))
    wide, high, margin = 520, 420, 60
    canvas = np.full((high + 40 + 22 * (len(names) // 3 + 2), wide * 3, 3), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX

    def write(text: str, x: float, y: float, colour: tuple[int, ...] = (0, 0, 0)) -> None:
        cv2.putText(canvas, text, (round(x), round(y)), font, 0.45, colour, 1, cv2.LINE_AA)

    def colour_of(name: str) -> tuple[int, ...]:
        hue = np.uint8([[[180 * names.index(name) // len(names), 220, 190]]])
        return tuple(int(v) for v in cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0])

    furthest = max(r["steps"] for r in rows)
    for number, (key, title) in enumerate(panels):
        values = [max(r[key], 0) for r in rows]
        low, high_value = min(values), max(values)
        span = max(high_value - low, 1e-6)

        def at(
            steps: int, value: float, number: int = number, low: float = low, span: float = span
        ) -> tuple[int, int]:
            across = np.log(steps) / np.log(max(furthest, 2))
            x = number * wide + margin + across * (wide - margin - 30)
            return round(x), round(high - 40 - (max(value, 0) - low) / span * (high - 90))

        write(title, number * wide + margin, 24)
        for value in np.linspace(low, high_value, 5):
            x, y = at(1, float(value))
            cv2.line(canvas, (x, y), at(furthest, float(value)), (225, 225, 225), 1)
            write(f"{value:.3g}", x - 52, y + 4)
        for steps in sorted({r["steps"] for r in rows}):
            write(str(steps), at(steps, low)[0] - 6, high - 18)
        for name in names:
            joined = rows[:-1] if apart else rows
            points = [at(r["steps"], r[key]) for r in joined if r["sampler"] == name]
            for one, other in itertools.pairwise(points):
                cv2.line(canvas, one, other, colour_of(name), 2, cv2.LINE_AA)
            for point in points:
                cv2.circle(canvas, point, 3, colour_of(name), -1, cv2.LINE_AA)
        if apart:
            point = at(rows[-1]["steps"], rows[-1][key])
            cv2.circle(canvas, point, 5, colour_of(rows[-1]["sampler"]), 1, cv2.LINE_AA)
    for number, name in enumerate(names):
        write(name, 60 + (number % 3) * wide, high + 20 + 22 * (number // 3), colour_of(name))
    if apart:
        write("ring: of fewer pairs", 60, high + 20 + 22 * (len(names) // 3 + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), canvas)
    return path
