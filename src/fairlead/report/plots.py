"""Plots of the fight: a forest of contrasts, and success against compute. Inline SVG, coloured by CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fairlead.report.numbers import points, points_span, quantity
from fairlead.report.svg import Scale, frame, tag

ROW, WIDTH, LEFT, RIGHT = 24, 820, 230, 190


@dataclass(frozen=True)
class Bar:
    """One contrast: a label, an estimate with its interval (differences of rates), and its kind: `win`, `loss`
    (the interval lies above or below 0), `open`, or `missing`. `note` is small print at the right."""

    label: str
    estimate: float | None
    lo: float | None
    hi: float | None
    note: str = ""

    @property
    def kind(self) -> str:
        if self.estimate is None or self.lo is None or self.hi is None:
            return "missing"
        return "win" if self.lo > 0 else "loss" if self.hi < 0 else "open"


@dataclass(frozen=True)
class Group:
    """Bars under one heading."""

    title: str
    bars: tuple[Bar, ...]


def forest(groups: Sequence[Group], wanted: float | None = None) -> Markup:
    """Contrasts as dots on their intervals, 0 in the middle of things; `wanted` draws the smallest effect of
    interest. Empty where there is nothing to draw."""
    groups = [group for group in groups if group.bars]
    ends = [x for g in groups for b in g.bars for x in (b.lo, b.hi, b.estimate) if x is not None]
    if not ends:
        return Markup("")
    low, high = _round(min(0.0, *ends), down=True), _round(max(0.0, wanted or 0.0, *ends), down=False)
    right = WIDTH - RIGHT
    rows = sum(len(g.bars) + 1 for g in groups)
    height = rows * ROW + 40

    def px(x: float) -> float:
        return round(LEFT + (right - LEFT) * (x - low) / (high - low), 1)

    floor = rows * ROW + 8
    ticks = _ticks(low, high)
    parts = [tag("line", class_="grid", x1=px(t), x2=px(t), y1=4, y2=floor) for t in ticks]
    parts += [tag("text", points(t), class_="axis", x=px(t), y=floor + 16, text_anchor="middle") for t in ticks]
    parts.append(tag("line", class_="zero", x1=px(0), x2=px(0), y1=4, y2=floor))
    if wanted:
        title = tag("title", f"smallest effect of interest, {points(wanted)} points")
        parts.append(tag("line", title, class_="wanted", x1=px(wanted), x2=px(wanted), y1=4, y2=floor))
    y = 4.0
    for group in groups:
        parts.append(tag("text", group.title, class_="heading", x=0, y=round(y + 17, 1)))
        y += ROW
        for bar in group.bars:
            parts += _bar(bar, px, y + ROW / 2, right)
            y += ROW
    return frame("forest", WIDTH, height, "contrasts with 95 % intervals, in points", parts)


def _bar(bar: Bar, px: Scale, y: float, right: int) -> list[Markup]:
    label = bar.label if len(bar.label) <= 32 else bar.label[:31] + "…"
    parts = [tag("text", label, tag("title", bar.label), class_="label", x=12, y=y + 4)]
    if bar.estimate is None or bar.lo is None or bar.hi is None:
        parts.append(tag("text", "not measured", class_="number", x=right + 14, y=y + 4))
        return parts
    parts.append(tag("line", class_=f"span {bar.kind}", x1=px(bar.lo), x2=px(bar.hi), y1=y, y2=y))
    parts.append(tag("circle", class_=f"mark {bar.kind}", cx=px(bar.estimate), cy=y, r=4))
    text = f"{points(bar.estimate)} ({points_span(bar.lo, bar.hi)})"
    note = tag("tspan", f"  {bar.note}", class_="soft")
    parts.append(tag("text", text, note, class_="number", x=right + 14, y=y + 4))
    return parts


def _round(x: float, *, down: bool) -> float:
    step = 0.1
    return (math.floor(x / step + 1e-9) if down else math.ceil(x / step - 1e-9)) * step


def _ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.1, 0.2, 0.25, 0.5, 1.0) if (high - low) / s <= 9 or s == 1.0)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 4) for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Spot:
    """One arm: FLOPs an item, success with its interval, whether it is on the front, and its kind for the colour."""

    label: str
    flops: float
    success: float
    lo: float | None
    hi: float | None
    front: bool
    kind: str


def pareto(spots: Sequence[Spot], *, width: int = 820, height: int = 380) -> Markup:
    """Success against FLOPs an item on a logarithmic axis; the front is a stepped line. Empty for fewer than two."""
    if len(spots) < 2:
        return Markup("")
    left, right, top, floor = 46, width - 170, 12, height - 44
    logs = [math.log10(s.flops) for s in spots]
    low, high = min(logs) - 0.06, max(logs) + 0.06
    if high - low < 0.4:
        low, high = (low + high) / 2 - 0.2, (low + high) / 2 + 0.2

    def px(flops: float) -> float:
        return round(left + (right - left) * (math.log10(flops) - low) / (high - low), 1)

    def py(share: float) -> float:
        return round(top + (floor - top) * (1 - min(1.0, max(0.0, share))), 1)

    parts: list[Markup] = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(tag("line", class_="grid", x1=left, x2=right, y1=py(level), y2=py(level)))
        parts.append(tag("text", f"{100 * level:.0f}", class_="axis", x=left - 8, y=py(level) + 4, text_anchor="end"))
    for flops in _decades(low, high):
        parts.append(tag("line", class_="tick", x1=px(flops), x2=px(flops), y1=floor, y2=floor + 5))
        parts.append(tag("text", quantity(flops), class_="axis", x=px(flops), y=floor + 18, text_anchor="middle"))
    middle = (left + right) / 2
    parts.append(tag("text", "FLOPs an item, fit and dictionary share included (log scale)", class_="axis", x=middle,
                     y=height - 6, text_anchor="middle"))  # fmt: skip
    front = sorted((s for s in spots if s.front), key=lambda s: s.flops)
    if len(front) > 1:
        path = f"M{px(front[0].flops)} {py(front[0].success)}"
        for spot in front[1:]:
            path += f" H{px(spot.flops)} V{py(spot.success)}"
        parts.append(tag("path", class_="front", d=path))
    for spot in sorted(spots, key=lambda s: s.front):
        x, kind = px(spot.flops), f"{spot.kind}{' on' if spot.front else ''}"
        if spot.lo is not None and spot.hi is not None:
            parts.append(tag("line", class_=f"span {kind}", x1=x, x2=x, y1=py(spot.lo), y2=py(spot.hi)))
        title = tag("title", f"{spot.label}: {100 * spot.success:.0f} %, {quantity(spot.flops)}FLOP an item")
        parts.append(tag("circle", title, class_=f"mark {kind}", cx=x, cy=py(spot.success), r=4.5))
    parts += _names(spots, px, py, right, floor)
    return frame("pareto", width, height, "success against compute an item", parts)


def _names(spots: Sequence[Spot], px: Scale, py: Scale, right: int, floor: int) -> list[Markup]:
    """Names in a column at the right, in the order of success, each tied to its spot by a thin line."""
    shown = [s for s in spots if s.front or s.kind != "control"]
    ordered = sorted(shown, key=lambda s: (py(s.success), -s.flops))
    step = min(17.0, (floor - 4) / max(1, len(ordered)))
    ys, last = [], -1e9
    for spot in ordered:
        last = max(py(spot.success), last + step)
        ys.append(last)
    over = max(0.0, ys[-1] - floor) if ys else 0.0
    for i in range(len(ys) - 1, -1, -1):  # push back up what fell off the bottom
        limit = floor if i == len(ys) - 1 else ys[i + 1] - step
        ys[i] = min(ys[i], limit) if over else ys[i]
    parts = []
    for spot, y in zip(ordered, ys, strict=True):
        kind = f"{spot.kind}{' on' if spot.front else ''}"
        x, at = px(spot.flops) + 6, py(spot.success)
        parts.append(tag("line", class_="lead", x1=x, y1=at, x2=right + 10, y2=round(y, 1)))
        parts.append(tag("text", spot.label, class_=f"name {kind}", x=right + 14, y=round(y + 4, 1)))
    return parts


def _decades(low: float, high: float) -> list[float]:
    """Round numbers inside the range of logarithms, three to seven of them: powers of ten where they suffice."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1,), (1, 2, 5), range(1, 10), [m / 10 for m in range(10, 100)]):
        found = [m * 10.0**e for e in exponents for m in steps if low <= math.log10(m * 10.0**e) <= high]
        if len(found) >= 3:
            break
    return found[:: math.ceil(len(found) / 7)]
