"""What a value looks like in a notebook: a few lines of HTML, every text escaped, legible on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

LONGEST = 400  # characters of one cell
_BOX = "border:1px solid currentColor;border-radius:4px;padding:.5em .7em;margin:.2em 0;display:inline-block"
_CELL = "padding:.1em .8em .1em 0;text-align:left;vertical-align:top;background:none;color:inherit"


def box(title: str, *parts: str) -> str:
    """A titled box around parts that are HTML already. Colours are the notebook's own."""
    return f'<div style="{_BOX}"><strong>{text(title)}</strong>{"".join(parts)}</div>'


def line(words: str) -> str:
    """A line of text."""
    return f"<div>{text(words)}</div>"


def code(words: str) -> str:
    """A line in fixed width."""
    return f'<div><code style="color:inherit;background:none">{text(words)}</code></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of texts and numbers; None is not measured."""
    top = "".join(f'<th style="{_CELL}">{text(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{text(_shown(value))}</td>' for value in row) + "</tr>" for row in rows
    )
    return f'<table style="border-collapse:collapse;color:inherit"><tr>{top}</tr>{body}</table>'


def marked(tokens: Sequence[str], at: int) -> str:
    """Tokens in a row, the one at `at` marked."""
    said = [text(token) for token in tokens]
    if 0 <= at < len(said):
        said[at] = f'<strong style="text-decoration:underline">{said[at]}</strong>'
    return f'<div style="white-space:pre-wrap;font-family:monospace">{"".join(said)}</div>'


def text(words: str) -> str:
    """Escaped, and cut where it is long."""
    return escape(words if len(words) <= LONGEST else words[:LONGEST] + " …", quote=True)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
