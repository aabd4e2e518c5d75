"""Geometry of the timeline: bars of every step on lanes, in the units of an SVG drawing."""

from __future__ import annotations

from dataclasses import dataclass, field

from pacs_node.demo.outcome import Bar, Outcome
from pacs_node.tasks import Task

WIDTH, LEFT, RIGHT = 1000.0, 120.0, 24.0
BAR, GAP, GROUP_GAP, AXIS = 20.0, 4.0, 12.0, 26.0
MIN_BAR = 2.0
CHARACTER = 6.4
"""Width of a character of a bar's label."""

KINDS = {
    "receive": "receive",
    "route": "route",
    "decode": "route",
    Task.BONE_SUPPRESSION.value: "bone",
    Task.RESTORATION.value: "restoration",
    Task.ANOMALY.value: "anomaly",
    "report": "report",
}
LEGEND = (
    ("receive", "receive"),
    ("route", "route and decode"),
    ("bone", "bone suppression"),
    ("restoration", "restoration"),
    ("anomaly", "anomaly"),
    ("report", "report"),
    ("deliver", "deliver"),
)


@dataclass(frozen=True)
class Mark:
    """One drawn bar; ``label`` is empty where it does not fit in."""

    x: float
    y: float
    width: float
    kind: str
    label: str
    title: str


@dataclass
class Chart:
    """Everything that the drawing needs: ``height``, bars, lane names (y, text), ticks (x, text)."""

    height: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    lanes: list[tuple[float, str]] = field(default_factory=list)
    ticks: list[tuple[float, str]] = field(default_factory=list)


def timeline(outcome: Outcome) -> Chart:
    """Two lanes for each image (work above, deliveries below), and two for the reports of the study."""
    lanes = groups(outcome)
    last = max((bar.end for _, bars in lanes for bar in bars), default=1.0)
    step = tick_step(last)
    scale = (WIDTH - LEFT - RIGHT) / max(last, step)
    chart = Chart()
    y = GAP
    for name, bars in lanes:
        chart.lanes.append((y + BAR / 2, name))
        work = [bar for bar in bars if not bar.step.startswith("deliver")]
        deliveries = [bar for bar in bars if bar.step.startswith("deliver")]
        for lane in (work, *_lanes(deliveries)):
            if lane:
                chart.marks += [_mark(bar, y, scale) for bar in lane]
                y += BAR + GAP
        y += GROUP_GAP
    chart.height = y + AXIS
    number = 0
    while number * step <= last + 1e-9:
        chart.ticks.append((LEFT + number * step * scale, f"{number * step:g} s"))
        number += 1
    return chart


def groups(outcome: Outcome) -> list[tuple[str, list[Bar]]]:
    """The bars of each image and of the study's report, with their names; none that is empty."""
    named = [(f"image {image.number}", image.bars) for image in outcome.images]
    named.append(("study report", outcome.study_bars))
    return [(name, sorted(bars, key=lambda bar: bar.begin)) for name, bars in named if bars]


def tick_step(last: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most ten ticks."""
    step = 0.01
    while True:
        for factor in (1, 2, 5):
            if last / (step * factor) <= 10:
                return step * factor
        step *= 10


def _lanes(bars: list[Bar]) -> list[list[Bar]]:
    """Bars on as few lanes as keep them apart."""
    lanes: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: bar.begin):
        for lane in lanes:
            if lane[-1].end <= bar.begin:
                lane.append(bar)
                break
        else:
            lanes.append([bar])
    return lanes


def _mark(bar: Bar, y: float, scale: float) -> Mark:
    name = bar.step.replace("_", " ")
    title = f"{name}: {bar.seconds:.2f} s, from {bar.begin:.2f} s" + (f" ({bar.note})" if bar.note else "")
    width = max(MIN_BAR, bar.seconds * scale)
    long = f"{name} {bar.seconds:.1f} s"
    label = next((text for text in (long, name) if len(text) * CHARACTER + 8 < width), "")
    kind = "deliver" if bar.step.startswith("deliver") else KINDS.get(bar.step, "route")
    return Mark(LEFT + bar.begin * scale, y, width, kind, label, title)
