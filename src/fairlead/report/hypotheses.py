"""The page of `fairlead hypothesize`, for somebody who knows the texts and not the method; and its sentences.

Made from hypotheses.json alone, so it can be drawn again from a saved file. Texts, labels and column names come from
the user's table: they are text here, whatever they look like.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fairlead.report.html import assets, environment
from fairlead.report.numbers import MINUS, MISSING
from fairlead.report.svg import frame, tag

WORDS = {
    "texts.labels": ("Rules in words", "the hypotheses below: each reads the text and nothing else"),
    "texts.latents": ("The patterns behind the rules", "what the rules put into words, before it was put into words"),
    "texts.residual": ("Patterns that know the label", "looked for with an eye on the label, on rows kept apart"),
    "texts.matryoshka": ("Nested patterns", "coarse and fine patterns in one dictionary"),
    "texts.ica": ("Independent directions", "where texts differ in unrelated ways"),
    "texts.ngrams": ("A list of words and phrases", "as many words or phrases as there are rules"),
    "texts.topics": ("Topics", "groups of words that occur together"),
    "texts.kmeans": ("Groups of similar texts", "each text belongs to the nearest group"),
    "texts.pca": ("Main directions (PCA)", "where texts differ most from each other"),
    "texts.random": ("Random directions", "a floor: patterns drawn blindly"),
    "texts.dense": ("Everything the embedding knows", "a ceiling: it predicts, and explains nothing"),
}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
LONG = 280  # characters of an example that are shown


def page(told: Mapping[str, Any]) -> str:
    """The page as text, self-contained."""
    order = [a for a in (told["lead"]["list"], told["claim"]) if a in told["lists"]]
    lists = [_list_view(told, arm) for arm in dict.fromkeys(order)]
    return environment().get_template("hypotheses.html.j2").render(
        told=told, lists=lists, arms=_arm_views(told), facts=_facts(told), words=WORDS, short=_short,
        dropped=sorted(told["data"]["dropped"].items()), **assets(()),
    )  # fmt: skip


# ---- sentences


def lead(told: Mapping[str, Any]) -> dict[str, Any]:
    """The sentences a reader came for. A simpler arm that predicts better is said first; `list` is the arm whose
    hypotheses stand at the top."""
    claim = told["claim"]
    own = next(a for a in told["arms"] if a["arm"] == claim)
    found = told["lists"].get(claim)
    better = [a for a in told["arms"] if a["simpler"] and a["value"] > own["value"]]
    said, listed = [], claim
    if better:
        best = max(better, key=lambda a: a["value"])
        sure = best["behind_hi"] is not None and best["behind_hi"] < 0
        what, by = told["columns"]["label"], "better than" if sure else "at least as well as"
        said.append(
            f"Something simpler predicts {what} {by} the rules in words do: {_lower(name_of(best['arm']))}, with "
            f"{told['measure']} {best['value']:.2f} against {own['value']:.2f}. "
            f"That difference is {'larger than chance explains' if sure else 'within what chance can do'}."
        )
        listed = best["arm"] if best["arm"] in told["lists"] else claim
    if found is not None:
        n, many = found["found"], len(found["hypotheses"])
        rows = f"{found['n']:,} test rows that no step before had seen"
        if n:
            said.append(f"{n} of {many} rules in words {'holds' if n == 1 else 'hold'} up on {rows}.")
        elif many:
            said.append(f"None of {many} rules in words holds up on {rows}.")
        elif (told.get("made") or {}).get("selected") == 0:
            said.append(f"No pattern in the texts speaks of {told['columns']['label']} clearly enough to be looked at.")
        else:
            said.append("No rule in words could be made of these texts.")
        if n:
            best = found["hypotheses"][0]
            about = f" ({best['effect']['label']})" if best["effect"]["label"] else ""
            size = amount(told["kind"], best["effect"]["value"])
            said[-1] += f" The clearest: the text {best['text']}, {size}{about}."
        said.append(_power(told, found))
    return {"sentences": said, "list": listed, "winner": listed if listed != claim else (
        max(better, key=lambda a: a["value"])["arm"] if better else claim)}  # fmt: skip


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def _power(told: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    shuffled = (
        f"Could it be chance? With the labels shuffled {found['permutations']} times, any rule at all held up in "
        f"{100 * found['null_any']:.0f} % of the tries ({found['null_mean']:.2f} rules on average)."
    )
    if found["detectable"] is None:
        return shuffled
    size = amount(told["kind"], found["detectable"], sign=False)
    return f"{shuffled} With so many rows an effect of {size} is found four times in five; smaller ones may be missed."


def name_of(arm: str) -> str:
    """An arm in words."""
    return WORDS.get(arm, (arm, ""))[0]


def amount(kind: str, value: float, *, sign: bool = True) -> str:
    """An effect with its unit."""
    if kind == "numeric":
        text = f"{value:+.3g}" if sign else f"{abs(value):.3g}"
    else:
        points = 100 * value
        digits = 0 if abs(points) >= 0.5 or points == 0 else 1
        text = (f"{points:+.{digits}f}" if sign else f"{abs(points):.{digits}f}") + " points"
    return text.replace("-", MINUS)


def span(kind: str, lo: float, hi: float) -> str:
    """An interval of effects with its unit."""
    return f"{amount(kind, lo).removesuffix(' points')} to {amount(kind, hi)}"


def rates(kind: str, at: Sequence[float], labels: Sequence[Any], label: str) -> dict[str, Any]:
    """What the label is where a hypothesis holds and where it does not; None where there are no such rows."""
    if kind == "pairwise":
        wins = [bool(y) == (x > 0) for x, y in zip(at, labels, strict=True) if x != 0]
        return {"with": _mean(wins), "without": None}
    value = [float(y == label) if kind == "multiclass" else float(y) for y in labels]
    return {
        "with": _mean([v for v, x in zip(value, at, strict=True) if x != 0]),
        "without": _mean([v for v, x in zip(value, at, strict=True) if x == 0]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def sentence(told: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What was seen on test, in a sentence."""
    kind, effect = told["kind"], row["effect"]
    if effect is None:
        return f"Not tested: {row['note']}." if row["note"] else "Not tested."
    if kind == "pairwise":
        return f"Of {row['holds']:,} pairs in which only one has it, that one is higher in {_percent(row['with'])}."
    if row["with"] is None or row["without"] is None:
        return f"It holds in {_percent(row['prevalence'])} of texts."
    if kind == "numeric":
        return f"{told['positive']} is {row['with']:.3g} on average where it holds, {row['without']:.3g} elsewhere."
    what = effect["label"] if kind == "multiclass" else told["positive"]
    return f"{what} in {_percent(row['with'])} of the texts where it holds, {_percent(row['without'])} of the others."


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, columns = told["data"], told["columns"]
    parts = ", ".join(f"{name} {n:,}" for name, n in data["parts"].items())
    unit = "pairs" if told["kind"] == "pairwise" else "texts"
    counted = f"; counted: {told['positive']}" if told["positive"] else ""
    out = [
        ("table", f"{data['file']}: {data['rows']:,} {unit}, {data['clusters']:,} of them independent"),
        ("label", f"{columns['label']}, {told['kind']}{counted}"),
        ("parts", parts),
        ("embedding", told["embedder"]["name"]),
    ]
    made = told.get("made") or {}
    if "n_features" in made:
        rate = f", error rate {made['rate']:g}" if made.get("rate") else ""
        kept = f"{made['selected']} kept ({made['how']}{rate}, on {made['selected_on']:,} rows)"
        out.append(("patterns", f"{made['n_features']:,} looked at ({made['dictionary']}), {kept}"))
    if asked := told.get("asked"):
        tokens = asked["prompt_tokens"] + asked["new_tokens"]
        out.append(("language model", f"{asked['model']}: {asked['answers']:,} answers, {tokens:,} tokens"))
    if columns["covariates"]:
        out.append(("adjusted for", ", ".join(columns["covariates"])))
    if columns["group"]:
        out.append(("kept together", f"rows with the same {columns['group']}"))
    return out


# ---- views


def _arm_views(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    values = [told["chance"], *(v for a in told["arms"] for v in (a["lo"], a["hi"]))]
    low, high = min(values), max(values)
    out = []
    for arm in sorted(told["arms"], key=lambda a: -a["value"]):
        name, about = WORDS.get(arm["arm"], (arm["arm"], ""))
        out.append({
            **arm, "name": name, "about": about, "mine": arm["arm"] == told["claim"],
            "plot": _dot(arm["value"], arm["lo"], arm["hi"], told["chance"], low, high,
                         "" if arm["arm"] == told["claim"] else "reference" if arm["ceiling"] else "control"),
        })  # fmt: skip
    return out


def _list_view(told: Mapping[str, Any], arm: str) -> dict[str, Any]:
    found = told["lists"][arm]
    rows = found["hypotheses"]
    ends = [v for r in rows if r["effect"] for v in (r["effect"]["lo"], r["effect"]["hi"])]
    reach = max([abs(v) for v in ends], default=1.0) or 1.0
    views = []
    for number, row in enumerate(rows, 1):
        effect = row["effect"]
        views.append({
            **row, "number": number, "sentence": sentence(told, row),
            "amount": None if effect is None else amount(told["kind"], effect["value"]),
            "span": None if effect is None else span(told["kind"], effect["lo"], effect["hi"]),
            "others": _others(told, row), "side": _side(row),
            "plot": Markup("") if effect is None else _dot(
                effect["value"], effect["lo"], effect["hi"], 0.0, -reach, reach, "" if row["found"] else "control"),
        })  # fmt: skip
    axis = () if not ends else (amount(told["kind"], -reach).removesuffix(" points"), "0", amount(told["kind"], reach))
    return {**found, "arm": arm, "name": name_of(arm), "about": WORDS.get(arm, ("", ""))[1], "axis": axis,
            "views": views, "held": [v for v in views if v["found"]],
            "open": [v for v in views if not v["found"]]}  # fmt: skip


def _side(row: Mapping[str, Any]) -> str:
    if not row["found"] or row["effect"] is None:
        return "open"
    return "up" if row["effect"]["value"] > 0 else "down"


def _others(told: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The effect looked at in other ways, and how well words fit the pattern they name."""
    kind, out = told["kind"], []
    for name, key in (("unadjusted", "raw"), ("beside the other rules", "joint")):
        effect = row[key]
        if effect is not None and not (key == "raw" and row["adjusted"] is None):
            out.append((name, f"{amount(kind, effect['value'])} ({span(kind, effect['lo'], effect['hi'])})"))
    out.append(("p, corrected for all rules", MISSING if row["effect"] is None else _p(row["p_holm"])))
    if row.get("fidelity") is not None:
        out.append(("fit of the words to the pattern (AUC on rows kept back)", f"{row['fidelity']:.2f}"))
    return out


def _p(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _dot(value: float, lo: float, hi: float, guide: float, low: float, high: float, kind: str) -> Markup:
    width, height, pad = 200, 22, 6
    wide = (high - low) or 1.0

    def at(x: float) -> float:
        return round(pad + (width - 2 * pad) * min(1.0, max(0.0, (x - low) / wide)), 1)

    middle = height / 2
    parts = [
        tag("line", class_="rail", x1=pad, x2=width - pad, y1=middle, y2=middle),
        tag("line", class_="guide", x1=at(guide), x2=at(guide), y1=2, y2=height - 2),
        tag("line", class_="bar", x1=at(lo), x2=at(hi), y1=middle, y2=middle),
        tag("circle", class_="dot", cx=at(value), cy=middle, r=4.5),
    ]
    label = f"{value:.3g}, between {lo:.3g} and {hi:.3g}"
    return frame(f"dots {kind}", width, height, label, parts, fixed=True)


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 1] + "…"


# ---- for a spreadsheet


def plain_cell(value: Any) -> Any:
    """A cell that no spreadsheet runs: a text that could be a formula gets an apostrophe before it."""
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return "'" + value
    return value


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Flat rows as CSV; None is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([plain_cell(name) for name in names])
    for row in rows:
        writer.writerow(["" if row.get(n) is None else plain_cell(row[n]) for n in names])
    return text.getvalue()


def flat(told: Mapping[str, Any], arm: str = "") -> list[dict[str, Any]]:
    """The hypotheses of one arm (default: the claim), one flat row each."""
    out = []
    for row in told["lists"][arm or told["claim"]]["hypotheses"]:
        effect = row["effect"] or {}
        out.append({
            "hypothesis": row["text"], "found": row["found"], "effect": effect.get("value"), "lo": effect.get("lo"),
            "hi": effect.get("hi"), "about": effect.get("label") or None, "p_holm": row["p_holm"], "q": row["q"],
            "prevalence": row["prevalence"], "holds": row["holds"], "fidelity": row.get("fidelity"),
            "exemplar": " | ".join(row["exemplars"][0]["texts"]) if row["exemplars"] else None,
            "counter_example": " | ".join(row["counter_examples"][0]["texts"]) if row["counter_examples"] else None,
        })  # fmt: skip
    return out


def lead_of_replication(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of the hypotheses that held up before hold up again."""
    before = [row for row in rows if row["found_before"]]
    again = sum(bool(row["found"] and row["same_sign"]) for row in before)
    return f"{again} of {len(before)} hypotheses that held up before hold up here, in the same direction"
