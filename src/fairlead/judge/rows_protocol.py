"""Rows of the rubric about the protocol: the task, its constraints, the budget, the lock, what is public."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fairlead.core.ledger import DICTIONARY_SHARE
from fairlead.judge.evidence import FAIL, HUMAN, NOT_MEASURED, PASS, Evidence, Finding, names
from fairlead.judge.question import BASELINE, is_control

_SHA256 = re.compile(r"[0-9a-f]{64}")


def signed(seen: Evidence, row: str, evidence: tuple[str, ...] = ()) -> Finding | None:
    """The judgement in `[protocol.human.<row>]`: HUMAN for a pass, FAIL for a fail; None where nobody signed."""
    people = seen.protocol.get("human")
    said: Any = people.get(row) if isinstance(people, Mapping) else None
    if not isinstance(said, Mapping):
        return None
    verdict, signer, reason = (str(said.get(key, "")).strip() for key in ("verdict", "signer", "reason"))
    if verdict.lower() not in ("pass", "fail") or not signer or not reason:
        return Finding(
            FAIL, f'protocol.human.{row} needs verdict = "pass" or "fail", a signer and a reason', (repr(dict(said)),)
        )
    result = HUMAN if verdict.lower() == "pass" else FAIL
    return Finding(result, f"{signer} judged {verdict.lower()}: {reason}", evidence)


def task(seen: Evidence) -> Finding:
    """Interest is a human judgement; an origin and both a strict and a lenient measure are facts."""
    measures = seen.cells.columns.measures
    lost = [
        f"{name} for {arm}"
        for name in ("strict", "loose")
        for arm in dict.fromkeys((seen.question.claim, BASELINE, *seen.question.rivals))
        if arm in seen.measured_arms and not _measured(seen, arm, name)
    ]
    have = tuple(name for name in ("strict", "loose") if name in measures)
    origin = str(seen.protocol.get("origin", ""))
    read = (f"measures: {', '.join(measures) or 'none'}", f"origin: {origin or 'not stated'}")
    if len(have) == 2 and lost:
        return Finding(FAIL, f"strict and lenient success are not both measured: no {', no '.join(lost)}", read)
    if len(have) < 2 and not (set(measures) - {"strict", "loose"}):
        return Finding(FAIL, f"only {' and '.join(have) or 'neither'} of strict and lenient success is measured", read)
    human = signed(seen, "task", read)
    if human is not None:
        if human.result == HUMAN and (not origin or "predates_study" not in seen.protocol):
            return Finding(FAIL, "protocol.origin and protocol.predates_study are not stated", read)
        return human
    return Finding(NOT_MEASURED, "nobody signed that the task is interesting (protocol.human.task)", read)


def _measured(seen: Evidence, arm: str, name: str) -> bool:
    rows = [seen.cells.get(*where, arm, seen.question.where) for where in seen.cells.groups]
    return any(bool((~np.isnan(seen.cells.values(own, name))).any()) for own in rows if len(own))


def useful(seen: Evidence) -> Finding:
    """Whether the task matters to somebody. A plus; it gates nothing."""
    users = seen.protocol.get("users")
    read = (f"users: {users or 'not stated'}",)
    return signed(seen, "useful", read) or Finding(NOT_MEASURED, "nobody signed it (protocol.human.useful)", read)


def constraints(seen: Evidence) -> Finding:
    """Each constraint says why and who has it, binds the claim and all rivals, and one arm without it is reported."""
    if seen.run.plan is None:
        return Finding(NOT_MEASURED, "there is no plan that could state constraints")
    stated = seen.protocol.get("constraints") or []
    if not stated:
        return Finding(PASS, "no constraint is put on any arm")
    wrong, read = [], []
    competing = {seen.question.claim, *seen.question.rivals} & set(seen.measured_arms)
    for number, one in enumerate(stated, start=1):
        if not isinstance(one, Mapping) or any(not one.get(key) for key in ("rule", "why", "who_has_it", "arms")):
            wrong.append(f"constraint {number} lacks rule, why, who_has_it or arms")
            continue
        arms = set(one["arms"])
        read.append(f"{one['rule']}: {', '.join(sorted(arms))}; because {one['why']} ({one['who_has_it']})")
        free = [a for a in seen.measured_arms if a not in arms and a != BASELINE and not is_control(a)]
        if competing - arms:
            wrong.append(f"{one['rule']!r} does not bind {', '.join(sorted(competing - arms))}")
        elif not free:
            wrong.append(f"no arm without {one['rule']!r} is reported")
    if wrong:
        return Finding(FAIL, "; ".join(wrong), tuple(read))
    return Finding(PASS, f"{len(stated)} stated, each with its reason, and an arm without it", tuple(read))


def budget(seen: Evidence) -> Finding:
    """One FLOP cap for all arms, kept, search and a tenth of the dictionary's training included."""
    run, plan = seen.run, seen.run.plan
    if not run.ledgers:
        return Finding(NOT_MEASURED, "no ledger in this run")
    amortise = plan.amortise if plan is not None else DICTIONARY_SHARE
    if amortise < DICTIONARY_SHARE:
        said = f"only {amortise:.0%} of the dictionary's training is charged; {DICTIONARY_SHARE:.0%} is the rule"
        return Finding(FAIL, said)
    parity = seen.check("budget parity")
    if parity.result == "fail":
        return Finding(FAIL, parity.detail)
    caps = [(ledger.get("budget") or {}).get("flops") for ledger in run.ledgers.values()]
    if None in caps:
        return Finding(FAIL, "no FLOP cap is stated for some arms", (parity.detail,))
    high = plan.prices.get("dictionary_flops_high") if plan is not None else None
    over, unknown = [], []
    for ledger in run.ledgers.values():
        spent = float((ledger.get("fit") or {}).get("flops", 0.0))
        share = (ledger.get("dictionary") or {"share_flops": 0.0}).get("share_flops")
        if share is None:
            unknown.append(str(ledger["arm"]))
            share = amortise * float(high) if high is not None else 0.0
        if spent + share > float(ledger["budget"]["flops"]):
            over.append(f"{ledger['arm']}: {spent:.3g} + {share:.3g} of {ledger['budget']['flops']:.3g}")
    read = (parity.detail, f"{amortise:.0%} of the dictionary's training is charged to each arm that uses it")
    lines = tuple(dict.fromkeys(c.sensitivity for c in seen.costs if c.sensitivity))
    if over:
        return Finding(FAIL, "over the cap with the dictionary's share: " + "; ".join(over), read + lines)
    if unknown and high is None:
        return Finding(NOT_MEASURED, "the dictionary's training FLOPs are unknown and no range is stated", read + lines)
    return Finding(PASS, "one FLOP cap for all arms, kept with search and the dictionary's share", read + lines)


def lock(seen: Evidence) -> Finding:
    """Locked before the test split was opened, opened once, and honest about when the task was chosen."""
    run = seen.run
    if run.locks is None or run.lock is None:
        return Finding(FAIL, "nothing was locked before the test split was opened: exploratory")
    read = (f"lock {run.lock[:16]}", f"witness: {run.locks.witness}", *run.deviations)
    if run.exploratory:
        return Finding(FAIL, "some Records were made outside the lock: exploratory", read)
    times = max((state.evaluations or 0 for state in run.trials), default=0)
    if times > 1:
        return Finding(FAIL, f"the test split was evaluated {times} times; one is allowed", read)
    choice = seen.protocol.get("choice")
    if choice not in ("pre", "posthoc"):
        return Finding(FAIL, 'protocol.choice does not say whether the task was chosen "pre" or "posthoc"', read)
    return Finding(PASS, f"locked, then evaluated once; the task was chosen {choice}", read)


def dictionary(seen: Evidence) -> Finding:
    """Any sparse dictionary is allowed when it is named in advance; k-means and PCA are controls."""
    plan = seen.run.plan
    if plan is None:
        return Finding(NOT_MEASURED, "there is no plan that could name a dictionary")
    used = {str(x["dictionary"]["ref"]) for x in seen.run.ledgers.values() if x.get("dictionary")}
    named = {str(name) for name in plan.dictionaries if name is not None}
    if used - named:
        return Finding(FAIL, f"used but not named in advance: {', '.join(sorted(used - named))}", tuple(sorted(named)))
    posing = [a for a in seen.measured_arms if not is_control(a) and names(a) & {"kmeans", "pca"}]
    if posing:
        return Finding(FAIL, f"{', '.join(posing)} stands as a contender; k-means and PCA are controls", tuple(named))
    if not named:
        return Finding(NOT_MEASURED, "the plan names no dictionary")
    return Finding(PASS, f"named in advance: {', '.join(sorted(named))}", tuple(sorted(used)))


def public(seen: Evidence) -> Finding:
    """Everything that a clean clone needs, with address and hash."""
    if seen.run.plan is None:
        return Finding(NOT_MEASURED, "there is no plan that could list artifacts")
    stated = seen.protocol.get("artifacts") or []
    wrong = [
        f"artifact {i}"
        for i, one in enumerate(stated, start=1)
        if not isinstance(one, Mapping) or not one.get("url") or not _SHA256.fullmatch(str(one.get("sha256", "")))
    ]
    read = tuple(f"{one.get('url')} {str(one.get('sha256'))[:16]}" for one in stated if isinstance(one, Mapping))
    if not stated:
        return Finding(FAIL, "no artifact is listed (protocol.artifacts): missing weights cannot be checked")
    if wrong:
        return Finding(FAIL, f"{', '.join(wrong)} has no url or no sha256", read)
    return Finding(PASS, f"all {len(stated)} listed with url and sha256; fairlead verify replays the numbers", read)


__all__ = ["budget", "constraints", "dictionary", "lock", "public", "signed", "task", "useful"]
