"""What an arm cost: per item, per success with an interval, against the reference model, and the Pareto front.

A cost is FLOPs by the ledger's formulas; `prices` of the plan turn it into money and say over how many uses the
fit and the dictionary's share are spread. Prices are configuration, not truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fairlead.core.ledger import DICTIONARY_SHARE
from fairlead.core.plan import REFERENCE
from fairlead.core.records import Run
from fairlead.core.types import Cost
from fairlead.judge.question import Question
from fairlead.judge.stats import Floats, Interval, Ints, clustering, t_quantile, wilson
from fairlead.judge.tables import Cells

USES = 10_000  # items over which the fit and the dictionary's share are spread where the plan's prices do not say
MEASURES = ("strict", "loose")


@dataclass(frozen=True)
class Ratio:
    """A ratio with its interval; `high` None: there is no upper bound, because no success cannot be excluded."""

    value: float
    low: float
    high: float | None


@dataclass(frozen=True)
class PerSuccess:
    """FLOPs for one success by a measure, all costs included, and the same divided by the reference model's."""

    measure: str
    flops: Ratio | None
    usd: float | None
    to_reference: Ratio | None


@dataclass(frozen=True)
class ArmCost:
    """What an arm cost to run on the test items within `where`, per success too, and to fit (from the ledger).

    None is not measured: no success to divide by, or no ledger. `flops_per_item` includes the fit and the
    dictionary's share, spread over `uses` items; `front` says whether no other arm here has at least its success
    for at most its FLOPs. `sensitivity` states what is not known."""

    model: str
    decoding: str
    arm: str
    run: Cost
    successes: int
    flops_per_success: float | None
    tokens_per_success: float | None
    fit: Cost | None
    dictionary_flops: float | None
    items: int = 0
    success: float | None = None
    interval: Interval | None = None
    flops_per_item: float | None = None
    uses: int = USES
    front: bool = False
    per_success: tuple[PerSuccess, ...] = ()
    sensitivity: str = ""


def costs(run: Run, cells: Cells, question: Question) -> list[ArmCost]:
    """One per arm, model and decoding mode, the Pareto front marked within each model and mode."""
    prices: Mapping[str, Any] = getattr(run.plan, "prices", {}) or {}
    found = []
    for (model, decoding), arms in cells.groups.items():
        reference = cells.get(model, decoding, REFERENCE, question.where)
        group = [_arm(run, cells, question, (model, decoding, arm), reference, prices) for arm in arms]
        found += _front(group)
    return found


def _arm(
    run: Run, cells: Cells, question: Question, name: tuple[str, str, str], reference: Ints, prices: Mapping[str, Any]
) -> ArmCost:
    table, rows = cells.columns, cells.get(*name, question.where)
    sums = {key: float(values[rows].sum()) for key, values in table.costs.items()}
    cost = Cost(
        prompt_tokens=int(sums["prompt_tokens"]),
        new_tokens=int(sums["new_tokens"]),
        flops=sums["flops"],
        seconds=sums["seconds"],
        forwards=int(sums["forwards"]),
    )
    won = cells.values(rows, question.primary)
    seen = ~np.isnan(won)
    wins, tokens = int((won[seen] > 0).sum()), cost.prompt_tokens + cost.new_tokens
    ledgers = [run.ledgers[k] for k in (table.trials[c] for c in np.unique(table.trial[rows])) if k in run.ledgers]
    fits = [Cost(**ledger["fit"]) for ledger in ledgers if ledger.get("fit")]
    shares = [ledger["dictionary"]["share_flops"] for ledger in ledgers if ledger.get("dictionary")]
    share = None if None in shares else float(sum(shares)) if ledgers else None
    fit, uses = sum(fits, Cost()) if fits else None, max(1, int(prices.get("uses", USES)))
    fixed = ((fit.flops if fit else 0.0) + (share or 0.0)) / max(1, len(ledgers)) / uses
    yes_no = question.primary in table.measures and table.is_yes_no(rows, question.primary)
    return ArmCost(
        model=name[0],
        decoding=name[1],
        arm=name[2],
        run=cost,
        successes=wins,
        flops_per_success=cost.flops / wins if wins and cost.flops else None,
        tokens_per_success=tokens / wins if wins and tokens else None,
        fit=fit,
        dictionary_flops=share,
        items=len(rows),
        success=float(won[seen].mean()) if seen.any() else None,
        interval=_rate(won[seen], table.cluster[rows][seen]) if yes_no else None,
        flops_per_item=cost.flops / len(rows) + fixed if len(rows) and cost.flops else None,
        uses=uses,
        per_success=tuple(_per_success(cells, rows, reference, m, fixed, prices) for m in MEASURES),
        sensitivity=_sensitivity(ledgers, prices, uses, getattr(run.plan, "amortise", DICTIONARY_SHARE)),
    )


def _rate(won: Floats, clusters: Ints) -> Interval | None:
    if not len(won):
        return None
    worth = clustering(won, clusters).effective_n
    return wilson(float(won.mean()) * worth, worth)


def _sensitivity(ledgers: Sequence[Mapping[str, Any]], prices: Mapping[str, Any], uses: int, amortise: float) -> str:
    unknown = [x["dictionary"].get("ref") for x in ledgers if x.get("dictionary")
               and x["dictionary"].get("share_flops") is None]  # fmt: skip
    if not unknown:
        return ""
    stated = [prices.get(f"dictionary_flops_{end}") for end in ("low", "high")]
    if None in stated:
        return (
            f"the training FLOPs of {unknown[0]} are unknown and no range is stated (prices.dictionary_flops_low and "
            "_high); its share is left out"
        )
    low, high = (amortise * float(x or 0.0) / uses for x in stated)
    return f"the training FLOPs of {unknown[0]} are unknown: its share adds {low:.3g} to {high:.3g} FLOPs an item"


def _per_success(
    cells: Cells, rows: Ints, reference: Ints, measure: str, fixed: float, prices: Mapping[str, Any]
) -> PerSuccess:
    mine = _sums(cells, rows, measure, fixed)
    own = None if mine is None else fieller(mine[0], mine[1])
    theirs = _sums(cells, reference, measure, 0.0) if len(reference) else None
    against = None
    if mine is not None and theirs is not None:
        against = ratio_of_ratios(mine, theirs)
    speed, price = prices.get("flops_per_second"), prices.get("usd_per_gpu_second")
    usd = own.value / float(speed) * float(price) if own and speed and price is not None else None
    return PerSuccess(measure, own, usd, against)


def _sums(cells: Cells, rows: Ints, measure: str, fixed: float) -> tuple[Floats, Floats] | None:
    """FLOPs and successes by cluster [number of all clusters]; None without a success or without FLOPs."""
    won = cells.values(rows, measure)
    rows, won = rows[~np.isnan(won)], won[~np.isnan(won)]
    table = cells.columns
    if not len(rows) or not won.sum() or not table.costs["flops"][rows].sum():
        return None
    codes, k = table.cluster[rows], len(table.clusters)
    spent: Floats = np.bincount(codes, weights=table.costs["flops"][rows] + fixed, minlength=k).astype(np.float64)
    wins: Floats = np.bincount(codes, weights=won, minlength=k).astype(np.float64)
    return spent, wins


def fieller(spent: Floats, won: Floats) -> Ratio:
    """Σ spent / Σ won over clusters, with Fieller's interval (1954): where no success cannot be excluded, it has
    no upper end."""
    met = spent > 0
    x, y = spent[met], won[met]
    k, value = len(x), float(x.sum() / y.sum())
    if k < 2:
        return Ratio(value, 0.0, None)
    mx, my = float(x.mean()), float(y.mean())
    covariance = np.cov(x, y) / k
    vx, vy, vxy = float(covariance[0, 0]), float(covariance[1, 1]), float(covariance[0, 1])
    q = t_quantile(0.975, k - 1) ** 2
    a, b, c = my**2 - q * vy, mx * my - q * vxy, mx**2 - q * vx
    root = math.sqrt(max(0.0, b * b - a * c))
    if a <= 0:  # the mean number of successes is not distinguishable from 0
        return Ratio(value, max(0.0, c / (b + root)) if b + root > 0 else 0.0, None)
    return Ratio(value, (b - root) / a, (b + root) / a)


def ratio_of_ratios(mine: tuple[Floats, Floats], theirs: tuple[Floats, Floats]) -> Ratio:
    """(FLOPs per success of one arm) / (of another), delta method on its logarithm, by cluster."""
    parts = [(x / x.sum()) - (y / y.sum()) for x, y in (mine, theirs)]
    met = (mine[0] > 0) | (theirs[0] > 0)
    influence, k = (parts[0] - parts[1])[met], int(met.sum())
    log = math.log(mine[0].sum() / mine[1].sum()) - math.log(theirs[0].sum() / theirs[1].sum())
    if k < 2:
        return Ratio(math.exp(log), 0.0, None)
    half = t_quantile(0.975, k - 1) * math.sqrt(k / (k - 1) * float((influence**2).sum()))
    return Ratio(math.exp(log), math.exp(log - half), math.exp(min(700.0, log + half)))


def _front(group: Sequence[ArmCost]) -> list[ArmCost]:
    """Mark the arms that no other arm dominates (at least the success for at most the FLOPs, one of them better)."""
    points = [(c.success, c.flops_per_item) for c in group]
    marked = []
    for cost, (success, flops) in zip(group, points, strict=True):
        beaten = success is None or flops is None or any(
            s is not None and f is not None and s >= success and f <= flops and (s, -f) != (success, -flops)
            for s, f in points
        )  # fmt: skip
        marked.append(replace(cost, front=not beaten))
    return marked
