"""Numbers in text: found as written, kept exactly, and the one that is the answer told from the rest.

Read: 1,234.5  1{,}234  1 234.5 (no-break or thin space)  -3 and −3  = - 3  negative 3  +2  .5  12.  1/2  1 1/2  ½  1½
\\frac{1}{2}  \\frac12  5%  5 percent  1.5e3  1.5×10^3  1.5×10³  3 million  $3.50, and digits of any script. A comma
groups digits only in threes ("1,2,3" is three numbers, and so is "1,234,5"); a point is the decimal sign, always. A
minus after a letter, a digit or a closing bracket is a dash. Numbers in words (words.py) count as the answer where they
stand behind "answer is" and the like, or where the text has no digits; `numbers` gives them when asked.
Not read: Roman numerals, "1.234,5", "5k", "2 and a half", roots and powers, and chains such as dates and versions
(2026-05-01, 1.2.3).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from fairlead.tasks.cases.words import SCALES, worded

DIGITS = 60  # in one number; what is longer is an identifier, not a quantity
EXPONENT = 300
_VULGAR = {c: unicodedata.normalize("NFKD", c).replace("⁄", "/") for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_FRAC = re.compile(r"(?:(?<!\d)(\d{1,60}) ?)?\\[dt]?frac ?(?:\{ ?([-−]?\d{1,60}) ?\} ?\{ ?(\d{1,60}) ?\}|(\d)(\d))")
_BOXED = re.compile(r"\\(?:boxed|fbox) ?\{")
_IS = r"(?:\b(?:is|was|are|equals)\b|=|:)"
_SAYS = re.compile(rf"(?:answer|result|total|solution)\b[^\n\d]{{0,40}}?{_IS}|####", re.IGNORECASE)
_LEADS = frozenset(
    "a about an approximately around clearly equal exactly just nearly of only roughly simply then therefore thus to "
    "total text mathrm textbf".split()
)
_OPERATOR = re.compile(r"[-+*/×÷·^]| x |\\times|\\cdot|\\div")
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_WHOLE = r"\d{1,3}(?:,\d{3})+(?!,?\d)|\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+])?
    (?:\\?[$€£¥₹₩₽]\s?)?
    (?:
      (?P<chain>\d++(?:[./-]\d++){{2,}}+)
    | (?:(?P<mixed>\d{{1,60}})\ )?(?P<top>\d{{1,60}})\ ?/\ ?(?P<bottom>\d{{1,60}})(?![\d/.,]\d|/)
    | (?P<whole>{_WHOLE})(?:\.(?P<part>\d+)(?!\.\d)|\.(?!\d))?
      (?:[eE](?P<e>[-+]?\d{{1,4}})(?![^\W_]|\.\d)
        |\ ?(?:[x×*·]|\\times|\\cdot)\ ?10(?:\ ?\^\ ?\{{?(?P<ten>[-+]?\d{{1,4}})\}}?|(?P<super>[⁻⁺]?[⁰¹²³⁴-⁹]{{1,4}}))
        |\ (?P<scale>hundred|thousand|million|billion|trillion)(?![^\W_]))?
    | (?<![\d.])\.(?P<small>\d+)(?!\.\d)
    )
    (?P<percent>\ ?\\?%|\ per\ ?cent(?![^\W_]))?""",
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


def numbers(text: str, *, words: bool = False) -> list[Number]:
    """Every number in `text`, in order; with `words` those in words too. Linear in the length of the text."""
    clean = _clean(text)
    found = list(_found(clean))
    return sorted([*found, *_in_words(clean)], key=lambda n: n.start) if words else found


def final_number(text: str) -> Number | None:
    """The number that is the answer: in the last \\boxed{}, else the first behind the last "answer is", "result:",
    "total =" or "####" that has one (behind its last "=" where a sum follows), else the last one in the text. None
    where there is no number, or a choice between two: "12 or 13", "between 12 and 13"."""
    clean = _clean(text)
    found = list(_found(clean))
    inside = _boxes(clean)
    if inside is not None:
        boxed_ = [n for n in found if inside[0] <= n.start < inside[1]] or _in_words(clean[inside[0] : inside[1]])
        if boxed_:
            return boxed_[-1]
    starts = [n.start for n in found]
    for marker in reversed(list(_SAYS.finditer(clean))):
        first = bisect_left(starts, marker.end())
        said = _worded_behind(clean, marker.end(), starts[first] if first < len(found) else len(clean))
        if said is not None:
            return said
        if first < len(found):
            return _settled(clean, found, _place(clean, found, first), ahead=True)
    if found:
        return _settled(clean, found, len(found) - 1, ahead=False)
    return next(reversed(_in_words(clean)), None)


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{}; None where there is none."""
    inside = _boxes(text)
    return None if inside is None else text[inside[0] : inside[1]]


def exact(value: int | float | str) -> Fraction | None:
    """A number of a case file as a Fraction: JSON's 0.1 is one tenth. Text must hold one number and nothing else."""
    text = repr(value) if isinstance(value, int | float) else value.strip()
    clean = _clean(text)
    found = list(_found(clean))
    if len(found) != 1 or clean[: found[0].start].strip() or clean[found[0].end :].strip():
        return None
    return found[0].value


def _boxes(text: str) -> tuple[int, int] | None:
    """Where the inside of the last box begins and ends."""
    starts = [m.end() for m in _BOXED.finditer(text)]
    return (starts[-1], _closing(text, starts[-1])) if starts else None


def _in_words(text: str) -> list[Number]:
    return [Number(w.value, _percent_follows(text, w.end), w.start, w.end) for w in worded(text)]


def _percent_follows(text: str, end: int) -> bool:
    return text[end : end + 8].lstrip(" ").startswith(("%", "percent", "per cent"))


def _worded_behind(text: str, start: int, end: int) -> Number | None:
    """The number in words that follows a marker at once, on its line, before the next digits."""
    line = text[start:end].partition("\n")[0][:200]
    said = _in_words(line)
    if not said or any(w.lower() not in _LEADS for w in re.findall(r"[^\W\d_]+", line[: said[0].start])):
        return None
    return replace(said[0], start=start + said[0].start, end=start + said[0].end)


def _place(text: str, found: Sequence[Number], first: int) -> int:
    """Which number behind a marker is meant: the first; the next where it says "not 12 but 13"; behind the last "=" of
    the line where the first begins a sum."""
    line = text.find("\n", found[first].start)
    line = len(text) if line < 0 else line
    on_line = first
    while on_line + 1 < len(found) and found[on_line + 1].start < line:
        on_line += 1
    if first < on_line and text[max(0, found[first].start - 5) : found[first].start].lower().endswith(
        (" not ", "n't ")
    ):
        return first + 1
    place = first
    for i in range(first, on_line):
        between = text[found[i].end : found[i + 1].start]
        if "=" in between:
            place = i + 1
        elif not _OPERATOR.search(between):
            break
        if any(c in between for c in "(;,"):
            break
    return place if place == first or _OPERATOR.search(text, found[first].end, found[place].start) else first


def _settled(text: str, found: Sequence[Number], place: int, *, ahead: bool) -> Number | None:
    """The number at `place`, unless the text wavers between it and its neighbour."""
    other = place + 1 if ahead else place - 1
    if 0 <= other < len(found):
        one, two = sorted((place, other))
        between = text[found[one].end : found[two].start].replace(",", " ").lower().split()
        range_ = between == ["and"] and text[: found[one].start].rstrip(" $").lower().endswith("between")
        wavers = "or" in between and len(between) <= 3
        if (range_ or wavers) and found[one].value != found[two].value:
            return None
    return found[place]


def _clean(text: str) -> str:
    """Digits of any script as 0-9, minus signs as -, vulgar fractions as a/b, LaTeX's spacing within numbers gone."""
    if text.isascii():
        flat = text
    else:
        flat = "".join(_plain(c, text[i - 1] if i else "") for i, c in enumerate(text))
    if "\\" in flat or "{" in flat:
        flat = flat.replace("{,}", ",").replace("\\!", "")
        flat = _FRAC.sub(_fraction, flat)
    return flat


def _fraction(match: re.Match[str]) -> str:
    top, bottom = (match[2], match[3]) if match[2] else (match[4], match[5])
    return f"{match[1] + ' ' if match[1] else ''}{top.replace('−', '-')}/{bottom}"


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
        if sign and _joined(text[max(0, start - 2) : start]):
            start, sign = start + 1, None  # a dash, as in 3-5 or x-1
        elif sign is None and _negated(text, start):
            sign = "-"
        yield Number(-value if sign == "-" else value, match["percent"] is not None, start, match.end())


def _joined(before: str) -> bool:
    """Whether what stands before a sign makes it a dash; two underscores are emphasis."""
    last = before[-1:]
    return last.isalnum() or last in (")", "]", "}") or (last == "_" and before != "__")


def _negated(text: str, start: int) -> bool:
    """Whether a minus stands apart from its number: "= - 3", "–3" (an en dash), "negative 3", "is minus 3"."""
    before = text[max(0, start - 24) : start]
    if before.endswith("–"):
        last = before[:-1].rstrip(" ")[-1:]
        return not (last.isalnum() or last in (")", "]", "}"))
    bare = before.rstrip(" ").lower()
    if bare.endswith("negative"):
        return True
    if bare.endswith("minus"):
        lead = bare[:-5].rstrip(" ")
        return lead.endswith(("is", "=", ":", "equals")) or (not lead and start <= len(before))
    return bare.endswith(("-", "–")) and bare[:-1].rstrip(" ").endswith(("=", "{"))


def _value(match: re.Match[str]) -> Fraction | None:
    if match["chain"]:
        return None  # a date, a version
    if match["bottom"]:
        bottom = int(match["bottom"])
        return None if bottom == 0 else int(match["mixed"] or 0) + Fraction(int(match["top"]), bottom)
    whole = re.sub(r"\D", "", match["whole"] or "0")
    part = match["part"] or match["small"] or ""
    exponent = int(match["e"] or match["ten"] or (match["super"] or "0").translate(_SUPER))
    if len(whole) + len(part) > DIGITS or abs(exponent) > EXPONENT:
        return None
    scale = {"hundred": 100, **SCALES}.get(match["scale"] or "", 1)
    return Fraction(int(whole + part), 10 ** len(part)) * Fraction(10) ** exponent * scale


def _closing(text: str, start: int) -> int:
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place
    return len(text)
