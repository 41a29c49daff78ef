"""Numbers in text: found as written, kept exactly, and the one that is the answer told from the rest.

Read: 1,234.5  1 234.5 (no-break or thin space)  -3 and −3  +2  .5  12.  1/2  1 1/2  ½  1½  \\frac{1}{2}  5%  1.5e3
1.5×10^3  $3.50, and digits of any script. A comma groups digits only in threes ("1,2,3" is three numbers, and so
is "1,234,5"); a point is the decimal sign, always. A minus after a letter, a digit or a closing bracket is a dash.
Not read: number words, Roman numerals, "1.234,5", and chains such as dates and versions (2026-05-01, 1.2.3).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

DIGITS = 60  # in one number; what is longer is an identifier, not a quantity
EXPONENT = 300
_VULGAR = {c: unicodedata.normalize("NFKD", c).replace("⁄", "/") for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_FRAC = re.compile(r"\\[dt]?frac ?\{ ?([-−]?\d{1,60}) ?\} ?\{ ?(\d{1,60}) ?\}")
_BOXED = re.compile(r"\\(?:boxed|fbox) ?\{")
_SAYS = re.compile(r"(?:answer|result|total|solution)\b[^\n\d]{0,40}?(?:is|was|are|=|:)|####", re.IGNORECASE)
_WHOLE = r"\d{1,3}(?:,\d{3})+(?![,\d])|\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+])?
    (?:[$€£¥]\s?)?
    (?:
      (?P<chain>\d++(?:[./-]\d++){{2,}}+)
    | (?:(?P<mixed>\d{{1,60}})\ )?(?P<top>\d{{1,60}})\ ?/\ ?(?P<bottom>\d{{1,60}})(?![\d/.,]\d|/)
    | (?P<whole>{_WHOLE})(?:\.(?P<part>\d+)(?!\.\d)|\.(?!\d))?
      (?:[eE](?P<e>[-+]?\d{{1,4}})(?![\w.])|\ ?(?:[x×*·]|\\times)\ ?10\ ?\^\ ?\{{?(?P<ten>[-+]?\d{{1,4}})\}}?)?
    | (?<![\d.])\.(?P<small>\d+)(?!\.\d)
    )
    (?P<percent>\ ?%)?""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Number:
    """One number as written: its exact value, whether a percent sign follows (5% has the value 5), and where it
    lies in the cleaned text."""

    value: Fraction
    percent: bool
    start: int
    end: int

    def equals(self, wanted: Fraction, tolerance: Fraction = Fraction(0)) -> bool:
        """Within `tolerance` of `wanted`; "5%" is 5 as well as 0.05."""
        values = (self.value, self.value / 100) if self.percent else (self.value,)
        return any(abs(v - wanted) <= tolerance for v in values)


def numbers(text: str) -> list[Number]:
    """Every number in `text`, in order. Linear in the length of the text."""
    return list(_found(_clean(text)))


def final_number(text: str) -> Number | None:
    """The number that is the answer: in the last \\boxed{}, else the first after the last "answer is", "result:",
    "total =" or "####", else the last one in the text. None where there is no number."""
    clean = _clean(text)
    found = list(_found(clean))
    boxes = [m.end() for m in _BOXED.finditer(clean)]
    if boxes:
        inside = [n for n in found if boxes[-1] <= n.start < _closing(clean, boxes[-1])]
        if inside:
            return inside[-1]
    said = [m.end() for m in _SAYS.finditer(clean)]
    if said:
        after = [n for n in found if n.start >= said[-1]]
        if after:
            return after[0]
    return found[-1] if found else None


def exact(value: int | float | str) -> Fraction | None:
    """A number of a case file as a Fraction: JSON's 0.1 is one tenth. Text must hold one number and nothing else."""
    text = repr(value) if isinstance(value, int | float) else value.strip()
    clean = _clean(text)
    found = list(_found(clean))
    if len(found) != 1 or clean[: found[0].start].strip() or clean[found[0].end :].strip():
        return None
    return found[0].value


def _clean(text: str) -> str:
    """Digits of any script as 0-9, minus signs as -, vulgar fractions as a/b."""
    if text.isascii():
        flat = text
    else:
        flat = "".join(_plain(c, text[i - 1] if i else "") for i, c in enumerate(text))
    return _FRAC.sub(lambda m: f"{m[1].replace('−', '-')}/{m[2]}", flat)


def _plain(char: str, before: str) -> str:
    if char in "−﹣－":
        return "-"
    if char in "⁄∕":
        return "/"
    if char in _VULGAR:
        return (" " if before.isdecimal() else "") + _VULGAR[char]
    if char == "％":
        return "%"
    return str(unicodedata.decimal(char)) if char.isdecimal() else char


def _found(text: str) -> Iterator[Number]:
    at = 0
    while match := _NUMBER.search(text, at):
        at = match.end()
        value = _value(match)
        if value is None:
            continue
        start, sign = match.start(), match["sign"]
        if sign and start and (text[start - 1].isalnum() or text[start - 1] in ")]}_"):
            start, sign = start + 1, None  # a dash, as in 3-5 or x-1
        yield Number(-value if sign == "-" else value, match["percent"] is not None, start, match.end())


def _value(match: re.Match[str]) -> Fraction | None:
    if match["chain"]:
        return None  # a date, a version
    if match["bottom"]:
        bottom = int(match["bottom"])
        return None if bottom == 0 else int(match["mixed"] or 0) + Fraction(int(match["top"]), bottom)
    whole = re.sub(r"\D", "", match["whole"] or "0")
    part = match["part"] or match["small"] or ""
    exponent = int(match["e"] or match["ten"] or 0)
    if len(whole) + len(part) > DIGITS or abs(exponent) > EXPONENT:
        return None
    return Fraction(int(whole + part), 10 ** len(part)) * Fraction(10) ** exponent


def _closing(text: str, start: int) -> int:
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place
    return len(text)
