"""Plots as inline SVG. Colours are CSS classes, so that a plot follows the page into the dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fairlead.report.numbers import MINUS, percent, signed

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLOURS = 5
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Point:
    """One dose: x, and y with its interval. None means not measured."""

    x: float
    y: float
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class Line:
    """A named series of points."""

    name: str
    points: tuple[Point, ...]


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """An element, all text escaped. `class_` writes class, `text_anchor` text-anchor."""
    named = [Markup(' {}="{}"').format(k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items()]
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(named), inside)


def dot(value: float | None, lo: float | None, hi: float | None, guide: float | None, kind: str = "") -> Markup:
    """A rate from 0 to 1 as a dot on its interval; `guide` draws the baseline's rate behind it."""
    width, height, pad = 200, 26, 6
    mid = height / 2

    def at(share: float) -> float:
        return round(pad + (width - 2 * pad) * min(1.0, max(0.0, share)), 1)

    parts = [tag("line", class_="rail", x1=pad, x2=width - pad, y1=mid, y2=mid)]
    parts += [tag("line", class_="tick", x1=at(t), x2=at(t), y1=mid - 3, y2=mid + 3) for t in TICKS]
    if guide is not None:
        parts.append(tag("line", class_="guide", x1=at(guide), x2=at(guide), y1=0, y2=height))
    if value is not None and lo is not None and hi is not None:
        parts.append(tag("line", class_="bar", x1=at(lo), x2=at(hi), y1=mid, y2=mid))
    if value is not None:
        parts.append(tag("circle", class_="dot", cx=at(value), cy=mid, r=4.5))
    label = "not measured" if value is None else f"{percent(value)} percent"
    return frame(f"dots {kind}", width, height, label, parts, fixed=True)


def funnel(shares: Sequence[tuple[str, float | None]]) -> Markup:
    """Nested shares of steps as falling bars."""
    step, height = 11, 24
    parts = []
    for i, (name, share) in enumerate(shares):
        if share is None:
            parts.append(tag("line", class_="tick", x1=i * step, x2=i * step + 7, y1=height, y2=height))
            continue
        tall = round(max(1.0, share * height), 1)
        title = tag("title", f"{name} {percent(share)} % of steps")
        parts.append(tag("rect", title, class_="step", x=i * step, y=height - tall, width=8, height=tall))
    label = ", ".join(f"{name} {percent(share)}" for name, share in shares)
    return frame("funnel", step * max(1, len(shares)), height, label, parts, fixed=True)


def curves(lines: Sequence[Line], x_label: str, *, width: int = 680, height: int = 300, labels: bool = True) -> Markup:
    """Rates over a dose, each with a band, each named at its right end."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    left, right, top, bottom = (40, 130, 10, 40) if labels else (4, 4, 4, 4)
    xs = sorted({p.x for line in lines for p in line.points})
    low, high = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1
    floor, edge = height - bottom, width - right

    def px(x: float) -> float:
        return round(left + (edge - left) * (x - low) / (high - low), 1)

    def py(y: float) -> float:
        return round(top + (floor - top) * (1 - min(1.0, max(0.0, y))), 1)

    parts: list[Markup] = []
    if labels:
        for level in TICKS:
            parts.append(tag("line", class_="grid", x1=left, x2=edge, y1=py(level), y2=py(level)))
            parts.append(tag("text", percent(level), class_="axis", x=left - 8, y=py(level) + 4, text_anchor="end"))
        parts += [tag("text", _short(x), class_="axis", x=px(x), y=floor + 16, text_anchor="middle") for x in _thin(xs)]
        middle = left + (edge - left) / 2
        parts.append(tag("text", x_label, class_="axis", x=middle, y=height - 6, text_anchor="middle"))
    if low < 0 < high:
        parts.append(tag("line", class_="guide", x1=px(0), x2=px(0), y1=top, y2=floor))
    parts += [_curve(line, i, px, py) for i, line in enumerate(lines)]
    if labels:
        parts += _end_labels(lines, px, py, floor)
    return frame("curves", width, height, "dose-response of " + ", ".join(line.name for line in lines), parts)


def frame(kind: str, width: int, height: int, label: str, parts: Sequence[Markup], *, fixed: bool = False) -> Markup:
    size = {"width": width, "height": height} if fixed else {}
    return tag("svg", *parts, class_=kind, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, **size)


def _curve(line: Line, i: int, px: Scale, py: Scale) -> Markup:
    colour = f"s{i % COLOURS}"
    points = sorted(line.points, key=lambda p: p.x)
    path = " ".join(f"{'M' if k == 0 else 'L'}{px(p.x)} {py(p.y)}" for k, p in enumerate(points))
    out = Markup("")
    banded = [(p.x, p.lo, p.hi) for p in points if p.lo is not None and p.hi is not None]
    if len(banded) > 1:
        edge = [f"{px(x)},{py(hi)}" for x, _, hi in banded] + [f"{px(x)},{py(lo)}" for x, lo, _ in reversed(banded)]
        out += tag("polygon", class_=f"band {colour}", points=" ".join(edge))
    out += tag("path", class_=f"curve {colour}", d=path)
    for p in points:
        title = tag("title", f"{line.name} at {signed(p.x, 2)}: {percent(p.y)} %")
        out += tag("circle", title, class_=f"mark {colour}", cx=px(p.x), cy=py(p.y), r=3)
    return out


def _end_labels(lines: Sequence[Line], px: Scale, py: Scale, floor: float) -> list[Markup]:
    ends = [(max(line.points, key=lambda p: p.x), i, line.name) for i, line in enumerate(lines)]
    out, last = [], -100.0
    for point, i, name in sorted(ends, key=lambda end: py(end[0].y)):
        last = max(py(point.y), last + 16)
        y = min(last, floor + 20) + 4
        out.append(tag("text", name, class_=f"name s{i % COLOURS}", x=px(point.x) + 10, y=y))
    return out


def _thin(xs: Sequence[float], most: int = 9) -> list[float]:
    return list(xs) if len(xs) <= most else [xs[round(i * (len(xs) - 1) / (most - 1))] for i in range(most)]


def _short(x: float) -> str:
    return f"{x:g}".replace("-", MINUS)
