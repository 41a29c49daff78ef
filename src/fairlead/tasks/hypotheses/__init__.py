"""What in these texts explains this label? A table of texts; arms make claims, and predict rows nobody has shown them.

`plugin(options)` builds the task. Options: file (see `read`), sha256 (of the file: a plan that holds it refuses
another file), text (one column, or two for a pairwise label), label, pair, covariates, group, positive, kind (as in
`read.Columns`), shares (of the five parts, see `splits`), split_seed.

A world of claims (`core.claims`) predicts each row. Measures, all the better the larger they are but the last two:
correct (binary, pairwise, multiclass), explained (numeric: 1 − squared error / variance on train; its mean is R² by
the mean of train), log_loss, squared_error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.core.claims import Claims, Prediction
from fairlead.core.errors import LoadError, PlanError
from fairlead.core.keys import content_key
from fairlead.core.types import Item, Outcome, Score
from fairlead.tasks._tables import file_hash
from fairlead.tasks.hypotheses.read import Columns, read_table
from fairlead.tasks.hypotheses.splits import PARTS, SHARES, SPLIT_OF, Placed, assign, check_sizes

DEFAULTS: dict[str, Any] = {
    "file": "", "sha256": "", "text": [], "label": "", "pair": "", "covariates": [], "group": "", "positive": "",
    "kind": "", "shares": list(SHARES), "split_seed": 0, "decoding": "constrained", "n": 0,
}  # fmt: skip
SMALLEST = 1e-6  # a probability that is said to be smaller counts as this, so that log loss stays finite


class HypothesesTask:
    """`needs` claims. An item is a row; its cluster is its group, with all rows that share a text."""

    name = "hypotheses"
    needs = "claims"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = _options(dict(options or {}))
        if not (self.options["file"] and self.options["text"] and self.options["label"]):
            expected = '[task_options] file = "data.csv", text = "headline", label = "clicked"'
            raise PlanError("hypotheses needs a table", expected=expected)
        path = Path(self.options["file"])
        found = file_hash(path)
        if self.options["sha256"] not in ("", found):
            raise LoadError(
                f"{path} is not the file of this plan",
                expected=f"sha256 {self.options['sha256'][:12]}",
                got=found[:12],
                do="restore the file; a table that was changed is a new study",
            )
        self.columns = columns_of(self.options)
        self.table = read_table(path, self.columns)
        self.placed = assign(self.table.rows, self.options["shares"], self.options["split_seed"])
        check_sizes(self.placed, self.table.kind)
        self.mean, self.variance = _spread(self.placed) if self.table.kind == "numeric" else (0.0, 1.0)

    def items(self, split: str) -> Sequence[Item]:
        return [_item(p, self.table.kind) for p in self.placed if SPLIT_OF[p.part] == split]

    def manifest(self, split: str) -> str:
        """Of what the rows say, not of where the file lies."""
        return content_key([asdict(item) for item in self.items(split)])

    async def run(self, item: Item, world: Claims) -> Outcome:
        """What the claims say of this row."""
        found: Prediction = await world.predict(item)
        data: dict[str, Any] = {"label": item.data["label"], "fired": [round(float(x), 6) for x in found.fired]}
        for key in ("p", "value", "classes"):
            value = getattr(found, key)
            if value is not None:
                data[key] = {k: float(v) for k, v in value.items()} if key == "classes" else float(value)
        return Outcome(data)

    def score(self, item: Item, outcome: Outcome) -> Score:
        label, said, kind = item.data["label"], outcome.data, self.table.kind
        if kind == "numeric":
            error = (float(said["value"]) - float(label)) ** 2
            return Score({"explained": 1 - error / self.variance, "squared_error": error})
        if kind == "multiclass":
            classes = said["classes"]
            right = max(sorted(classes), key=classes.__getitem__) == label
            return Score({"correct": right, "log_loss": _surprise(classes.get(label, 0.0))})
        p = float(said["p"])
        return Score({"correct": (p >= 0.5) == label, "log_loss": _surprise(p if label else 1 - p)})


def columns_of(options: Mapping[str, Any]) -> Columns:
    """The options' columns."""
    text = options["text"]
    return Columns(
        (text,) if isinstance(text, str) else tuple(text),
        options["label"], options["pair"], tuple(options["covariates"]), options["group"], options["positive"],
        options["kind"],
    )  # fmt: skip


def _item(placed: Placed, kind: str) -> Item:
    row = placed.row
    data: dict[str, Any] = {"label": row.label, "kind": kind, "part": placed.part, "row": row.number}
    data |= {"text": row.texts[0]} if len(row.texts) == 1 else {"texts": list(row.texts)}
    if row.covariates:
        data["covariates"] = dict(row.covariates)
    return Item(f"row-{row.number}", SPLIT_OF[placed.part], placed.cluster, {}, data)


def _surprise(p: float) -> float:
    return -math.log(min(1.0, max(SMALLEST, p)))


def _spread(placed: Sequence[Placed]) -> tuple[float, float]:
    values = [float(p.row.label) for p in placed if SPLIT_OF[p.part] == "train"]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    if variance <= 0:
        raise LoadError("the label does not vary on train", expected="numbers that differ", got=f"{mean:g} everywhere")
    return mean, variance


def _options(given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise PlanError("unknown hypotheses option", expected=", ".join(DEFAULTS), got=", ".join(unknown))
    options = {**DEFAULTS, **given}
    for key, value in options.items():
        texts = key == "text" and isinstance(value, str)
        if not texts and type(value) is not type(DEFAULTS[key]):
            raise PlanError(f"hypotheses option {key}", expected=f"a value like {DEFAULTS[key]!r}", got=repr(value))
    shares = options["shares"]
    if len(shares) != len(PARTS) or not all(isinstance(s, (int, float)) and s >= 0 for s in shares) or sum(shares) <= 0:
        raise PlanError("hypotheses option shares", expected="five numbers: " + ", ".join(PARTS), got=repr(shares))
    return options


plugin = HypothesesTask
