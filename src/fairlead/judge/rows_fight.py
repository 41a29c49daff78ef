"""Rows of the rubric about the fight itself: baselines, the contrast, the sample, necessity, coverage, brittleness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fairlead.judge.evidence import FAIL, NOT_MEASURED, PASS, Evidence, Finding, shown
from fairlead.judge.power import detectable
from fairlead.judge.question import BASELINE, is_control
from fairlead.judge.stats import FEW_CLUSTERS, holm
from fairlead.judge.tables import Contrast

ALPHA = 0.05
BASELINES: Mapping[str, tuple[str, ...]] = {
    "none": (BASELINE,),
    "a system prompt": ("prompt",),
    "an optimised prompt": ("prompt_search",),
    "few-shot": ("few_shot",),
    "a linear probe": ("probe", "probe_gated"),
    "a difference-of-means vector": ("vector",),
    "LoRA": ("lora",),
    "a GCG suffix": ("gcg",),
}
CONTROLS: Mapping[str, tuple[str, ...]] = {
    "wrong sign": ("wrong_sign",),
    "random live latents": ("random",),
    "matched-norm noise": ("noise",),
    "random dictionary": ("random_dictionary",),
    "shuffled decoder": ("shuffled_decoder", "shuffled"),
    "PCA": ("pca",),
    "k-means": ("kmeans",),
    "dense difference vector": ("dense", "vector", "difference"),
}


def baselines(seen: Evidence) -> Finding:
    """Every baseline of the field has Records, or a reason why it does not apply; all got the same seeds."""
    excused = seen.excused()
    have, lost, waived = [], [], []
    for label, methods in BASELINES.items():
        arms = seen.arms_of(*methods)
        reasons = [f"{arm} ({why})" for arm, why in excused.items() if arm.partition(".")[0] in methods and why]
        if arms:
            have.append(f"{label}: {', '.join(arms)}")
        elif reasons:
            waived.append(f"{label}: n/a, {'; '.join(reasons)}")
        else:
            lost.append(label)
    read = tuple([*have, *waived])
    if lost:
        return Finding(FAIL, f"neither run nor n/a with a reason: {', '.join(lost)}", read)
    seeds = _seeds(seen)
    if len(set(seeds.values())) > 1:
        said = ", ".join(f"{arm} {n}" for arm, n in seeds.items())
        return Finding(FAIL, f"arms had different numbers of seeds: {said}", read)
    told = [arm for arm in seen.question.rivals if _tuning(seen, arm)]
    note = f"; tuning recorded for {', '.join(told)}" if told else ""
    return Finding(PASS, f"{len(have)} of {len(BASELINES)} run, {len(waived)} n/a with a reason{note}", read)


def _seeds(seen: Evidence) -> dict[str, int]:
    found: dict[str, int] = {}
    for arms in seen.cells.groups.values():
        for arm in (seen.question.claim, *seen.question.rivals):
            if arm in arms:
                found[arm] = len(np.unique(seen.cells.columns.seed[arms[arm]]))
    return found


def _tuning(seen: Evidence, arm: str) -> bool:
    keys = [s.trial.key for s in seen.run.trials if s.trial.arm == arm]
    return any(seen.run.fitted.get(key, {}).get("tried") for key in keys)


def beat(seen: Evidence) -> Finding:
    """Above every rival on more than half of the models: interval above 0, the smallest effect reached, Holm."""
    found = [c for arm in seen.question.rivals for c in seen.against(arm)]
    lost = [arm for arm in seen.question.rivals if not seen.against(arm)]
    read = tuple(shown(c) for c in found)
    if not found:
        return Finding(FAIL, "there is no baseline with Records to beat", read)
    if lost:
        return Finding(FAIL, f"not compared with {', '.join(lost)}", read)
    adjusted = holm({i: 1.0 if c.difference.p is None else c.difference.p for i, c in enumerate(found)})
    lacking: dict[str, list[str]] = {model: [] for model in seen.models}
    for i, c in enumerate(found):
        d, wanted = c.difference, seen.question.smallest_effect
        above = d.interval is not None and d.interval.low > 0 and (d.estimate or 0.0) >= wanted
        if not above or adjusted[i] > ALPHA:
            same = c.p_equivalent is not None and c.p_equivalent <= ALPHA
            lacking[c.model].append(f"{c.against} ({'equivalent' if same else 'no win'})")
    won = [model for model, names in lacking.items() if not names]
    if 2 * len(won) > len(lacking):
        said = f"above each of {len(seen.question.rivals)} baselines on {len(won)} of {len(lacking)} models"
        return Finding(PASS, said, read)
    said = "; ".join(f"{model}: {', '.join(names)}" for model, names in lacking.items() if names)
    return Finding(FAIL, f"not shown to be above {said}", read)


def sample(seen: Evidence) -> Finding:
    """What can be detected with the planned power is no larger than the smallest effect of interest."""
    wanted = seen.question.smallest_effect
    found = [c for arm in dict.fromkeys((*seen.question.rivals, *seen.question.beat)) for c in seen.against(arm)]
    sized: list[tuple[float, Contrast]] = []
    for c in found:
        limit = detectable(c.difference.se, c.difference.clusters, power=seen.question.power)
        if limit is not None:
            sized.append((limit, c))
    if not sized:
        return Finding(NOT_MEASURED, "nothing was compared")
    read = tuple(
        f"{c.arm} − {c.against} on {c.model}: detectable {100 * limit:.1f} points, {c.difference.clusters} clusters, "
        f"effective n {c.difference.effective_n or 0.0:.0f}"
        for limit, c in sized
    )
    if wanted <= 0:
        return Finding(NOT_MEASURED, "no smallest effect of interest is stated", read)
    fewest = min(c.difference.clusters for _, c in sized)
    worst = max(sized, key=lambda pair: pair[0])
    if fewest < FEW_CLUSTERS:
        return Finding(FAIL, f"{fewest} clusters; {FEW_CLUSTERS} wanted for the intervals to hold", read)
    if worst[0] > wanted:
        reason = (
            f"at {seen.question.power:.0%} power {100 * worst[0]:.1f} points are detectable against "
            f"{worst[1].against}, {100 * wanted:g} are of interest"
        )
        return Finding(FAIL, reason, read)
    return Finding(PASS, f"at most {100 * worst[0]:.1f} points are detectable, {100 * wanted:g} are of interest", read)


def necessity(seen: Evidence) -> Finding:
    """The claim lies above each control, compared directly; and every kind of control was run or excused."""
    controls = [arm for arm in seen.measured_arms if is_control(arm)]
    found = [c for arm in controls for c in seen.against(arm)]
    read = tuple(shown(c) for c in found)
    adjusted = holm({i: 1.0 if c.difference.p is None else c.difference.p for i, c in enumerate(found)})
    lost = [f"{c.against} on {c.model}" for i, c in enumerate(found)
            if c.difference.interval is None or c.difference.interval.low <= 0 or adjusted[i] > ALPHA]  # fmt: skip
    if lost:
        return Finding(FAIL, f"not shown to be above {', '.join(lost)}", read)
    excused = {arm for arm, why in seen.excused().items() if why}
    missing = [label for label, kinds in CONTROLS.items() if not _run_or_excused(kinds, controls, excused, seen)]
    if not found:
        return Finding(FAIL, "no control arm: the feature is not shown to be needed", read)
    if missing:
        return Finding(NOT_MEASURED, f"above {len(found)} comparisons with controls, but not run: {', '.join(missing)}",
                       read)  # fmt: skip
    return Finding(PASS, f"above every control in {len(found)} direct comparisons", read)


def _run_or_excused(kinds: Sequence[str], controls: Sequence[str], excused: set[str], seen: Evidence) -> bool:
    wanted = {f"control.{kind}" for kind in kinds}
    dense = "vector" in kinds and bool(seen.arms_of("vector"))  # the dense vector may stand as a baseline instead
    return bool(wanted & {*controls, *excused}) or dense


def cherry_pick(seen: Evidence) -> Finding:
    """Concepts were registered before the search, all of them are reported, and the claim is not over a few."""
    found = seen.coverage
    if seen.run.plan is None:
        return Finding(NOT_MEASURED, "there is no plan that could register concepts")
    if found is None:
        return Finding(FAIL, "no concepts were registered before the search (protocol.concepts)")
    read = tuple(
        f"{concept.value} on {model}: {'usable' if concept.usable else 'not usable'}"
        for model, concept in found.concepts
    )
    if seen.run.lock is None:
        return Finding(FAIL, "the concepts are in the plan, but the plan was not locked", read)
    if found.missing:
        return Finding(FAIL, f"registered but not reported: {', '.join(found.missing)}", read)
    narrowed = seen.question.where.get(found.stratum)
    if narrowed is not None and narrowed != seen.protocol.get("big_deal"):
        said = f"the claim is about {found.stratum} = {narrowed} only, and protocol.big_deal does not name it"
        return Finding(FAIL, said, read)
    if not found.usable:
        return Finding(FAIL, f"none of {found.attempted} registered concepts has a usable feature", read)
    span = found.interval
    ends = "" if span is None else f" [{100 * span.low:.0f}, {100 * span.high:.0f}] %"
    return Finding(PASS, f"{found.usable} of {found.attempted} registered concepts have a usable feature{ends}", read)


def brittle(seen: Evidence) -> Finding:
    """The sign is kept in 80 % of cells where one factor is changed, and every factor was changed or excused."""
    if not seen.brittleness:
        return Finding(NOT_MEASURED, "the claim was not compared with none")
    read = []
    for one in seen.brittleness:
        read.append(f"{one.model}: sign kept in {one.kept} of {one.of} cells, worst {one.worst or 'none measured'}")
        read += [f"{one.model}: n/a, {text}" for text in one.excused]
    broken = [one.model for one in seen.brittleness if one.of and not one.held]
    if broken:
        return Finding(FAIL, f"the sign is kept in less than 80 % of cells on {', '.join(broken)}", tuple(read))
    if not any(one.of for one in seen.brittleness):
        return Finding(FAIL, "no factor was changed: no stress arm, one seed", tuple(read))
    missing = [f"{one.model}: {', '.join(one.missing)}" for one in seen.brittleness if one.missing]
    if missing:
        return Finding(FAIL, f"factors not changed: {'; '.join(missing)}", tuple(read))
    return Finding(PASS, "the sign is kept in at least 80 % of cells", tuple(read))
