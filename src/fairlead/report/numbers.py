"""Numbers as people read them. What was not measured is an em dash, never a zero."""

from __future__ import annotations

import math

MISSING = "—"
MINUS = "\u2212"
THIN = "\u2009"


def percent(value: float | None) -> str:
    """0.634 -> `63`. Whole points: intervals at these n are several points wide."""
    return MISSING if value is None else f"{100 * value:.0f}"


def points(value: float | None) -> str:
    """A signed difference of rates in percentage points: 0.39 -> `+39`."""
    if value is None:
        return MISSING
    rounded = round(100 * value)
    return "0" if rounded == 0 else f"{'+' if rounded > 0 else MINUS}{abs(rounded)}"


def span(lo: float | None, hi: float | None) -> str:
    """An interval of rates: `57–70`."""
    return MISSING if lo is None or hi is None else f"{percent(lo)}–{percent(hi)}"


def points_span(lo: float | None, hi: float | None) -> str:
    """An interval of differences: `+31 to +47`."""
    return MISSING if lo is None or hi is None else f"{points(lo)} to {points(hi)}"


def p_value(p: float | None) -> str:
    """`p < .001` or `p = .013`; APA style without the leading zero."""
    if p is None:
        return MISSING
    if p < 0.001:
        return "p < .001"
    return f"p = {p:.3f}".replace("0.", ".") if p < 0.9995 else "p = 1"


def signed(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def quantity(value: float | None) -> str:
    """Three significant digits with an SI suffix: 3.1e11 -> `310 G`."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "∞"
    for limit, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{_three(value / limit)}{THIN}{suffix}"
    return _three(value)


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    if value < 0.05:
        return f"0{THIN}s"
    if value < 90:
        return f"{_three(value)}{THIN}s"
    return f"{value / 60:.0f}{THIN}min" if value < 5400 else f"{value / 3600:.1f}{THIN}h"


def _three(value: float) -> str:
    size = abs(value)
    if size >= 100 or (size >= 10 and value == int(value)) or (size < 10 and value == int(value)):
        return f"{value:.0f}".replace("-", MINUS)
    return (f"{value:.1f}" if size >= 10 else f"{value:.2g}" if size < 1 else f"{value:.2f}").replace("-", MINUS)
