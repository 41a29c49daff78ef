"""A made-up study that passes every row of the rubric. Tests break one thing at a time."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

from fairlead.core.ledger import Budget
from fairlead.core.lock import Lock, Locks, Witness
from fairlead.core.plan import Plan
from fairlead.core.records import Run
from fairlead.core.types import Cost, Record

BASELINES = ("prompt", "prompt_search", "few_shot", "probe_gated", "vector", "lora", "gcg")
CONTROLS = ("wrong_sign", "random", "noise", "random_dictionary", "shuffled_decoder", "pca", "kmeans")
STRESS = (
    *(f"dose_{x}" for x in ("0_25", "0_5", "2", "4")),
    *(f"layer_{x}" for x in ("minus_1", "minus_2", "plus_1", "plus_2")),
    "scope_all", "scope_last", "scope_prompt", *(f"paraphrase_{i}" for i in range(1, 6)), "dictionary_2",
)  # fmt: skip
RATES = {"none": 0.3, "feature": 0.9, "reference": 0.95, **dict.fromkeys(BASELINES, 0.4)}
SHA = "ab" * 32
PROTOCOL = {
    "origin": "https://example.org/task", "predates_study": True, "users": "shoppers", "choice": "pre",
    "concepts": {"stratum": "category", "values": ["promo", "upsell"]},
    "artifacts": [{"url": "https://example.org/weights", "sha256": SHA}],
    "human": {row: {"verdict": "pass", "signer": "A. Person", "reason": "seen in shops"} for row in ("task", "useful")},
}  # fmt: skip


@cache
def chance(name: str) -> float:
    return random.Random(name).random()


def fair_plan(**changes) -> Plan:
    arms = ("none", "feature", *BASELINES, *(f"control.{c}" for c in CONTROLS), *(f"stress.{s}" for s in STRESS))
    fixed = dict(
        question="Does it?", task="shop", models=("m",), arms=arms, primary="strict", smallest_effect=0.3, n=60,
        dictionaries=("d",), seeds=(0, 1, 2), budget=Budget(20, 1e12), claim="feature", baselines=BASELINES,
        protocol=PROTOCOL, reference="big",
    )  # fmt: skip
    return Plan(**{**fixed, **changes})


def fair_run(plan: Plan | None = None, *, rates=None, n=60, locked=True, keep=lambda record: True) -> Run:
    """Records of every arm; items succeed in the same order of difficulty in all arms, seeds differ a little."""
    plan = plan or fair_plan()
    rates = {**RATES, **(rates or {})}
    locks = Locks((Lock({"plan": plan.hash}),)) if locked else None
    if locks is not None:
        locks = replace(locks, witnesses=(Witness("git-remote", "origin abc", locks.current.hash),))
    records, ledgers = [], {}
    for arm in (*plan.run_arms, *(["reference"] if plan.reference else [])):
        rate = rates.get(arm, 0.85 if arm.startswith("stress.") else 0.35)
        for seed in plan.seeds:
            trial = f"{arm}-{seed}"
            share = {"ref": "d", "share_flops": 1e10} if arm not in RATES or arm == "feature" else None
            ledgers[trial] = {
                "arm": arm, "model": "m", "fit": {"flops": 5e10, "tuning_trials": 12}, "dictionary": share,
                "budget": {"tuning_trials": 20, "flops": 1e12}, "over_budget": False,
            }  # fmt: skip
            for i in range(n):
                luck = chance(str(i)) * 0.9 + chance(f"{i}/{seed}/{arm}") * 0.1
                records.append(
                    Record(
                        trial=trial, arm=arm, model="big" if arm == "reference" else "m", decoding="constrained",
                        seed=seed, item=f"i{i}", cluster=f"i{i}", split="test",
                        strata={"category": "promo" if i % 2 else "upsell"}, outcome={}, error=None,
                        score={"strict": luck < rate, "loose": luck < rate + 0.03},
                        cost=Cost(prompt_tokens=100, new_tokens=10, flops=1e8 * (9 if arm == "reference" else 1)),
                        lock=None if locks is None else locks.current.hash,
                    )
                )  # fmt: skip
    run = Run.of([r for r in records if keep(r)], plan)
    return replace(run, ledgers=ledgers, locks=locks)
