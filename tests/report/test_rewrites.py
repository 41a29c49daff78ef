"""The section on rewritten prompts, from invented Records whose counts are known, hostile text included."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fairlead.core.plan import plan_from
from fairlead.core.records import Store
from fairlead.core.types import Cost, Record
from fairlead.report import rewrites as section
from fairlead.report.html import render

EVIL = "</pre><script>window.__owned=1</script>"
NOTE = f'Note: here "bats" means owls, not {EVIL}.'
BY = "latent 3 beside 9"
# item: (none is right, the claim is right, annotated, leaked)
ITEMS = {
    "a": (False, True, True, False), "b": (False, True, True, False), "c": (True, False, True, False),
    "d": (False, False, True, True), "e": (True, True, False, False), "f": (False, False, False, False),
    "g": (True, True, True, False), "h": (False, False, True, False),
}  # fmt: skip
MISREADING = {
    "trigger": {"at": {"latent": 3, "above": 0.1}, "beside": {"latent": 9, "above": 0.0}}, "wrong": 4, "right": 0,
    "clusters": 4, "words": {"bats": 4}, "senses": {}, "gloss": {"meant": "owls", "taken": EVIL},
    "labels": {"meant": {"held": {"auroc": 0.91}}, "taken": {"held": None}},
}  # fmt: skip
ABOUT = {
    "misreadings": [MISREADING], "dropped": {"no label holds for the sense": 2}, "wrong": 5, "right": 3, "kept": [BY],
    "coverage": {"latents": 6, "labelled": 4, "below": 1, "none": 1, "threshold": 0.7},
    "latents": {"fired": 40, "passed": 7}, "tried": [{"annotate": 0, "score": 0.4}],
}  # fmt: skip


def write(root: Path, *, rewritten: bool = True) -> Path:
    plan = plan_from({
        "question": "Do notes help?", "task": "misread", "model": "pocket/reader-s", "arms": ["none", "reformulate"],
        "claim": "reformulate", "primary": "strict", "smallest_effect": 0.1, "n": 8, "n_train": 8, "n_validation": 8,
    })  # fmt: skip
    with Store(root) as store:
        store.begin(plan, plan.trials(), text="question = 'x'\n")
        for trial in plan.trials():
            claim = trial.arm == "reformulate"
            store.save_fitted(trial.key, lambda _: None, ABOUT if claim and rewritten else {}, {"spent": {}})
            store.append([record(store, trial, item, *row) if claim and rewritten else bare(trial, item, row[0])
                          for item, row in ITEMS.items()])  # fmt: skip
            ledger = {"trial": trial.key, "arm": trial.arm, "model": trial.model, "seed": 0, "spent": asdict(Cost())}
            store.write_ledger(trial.key, {**ledger, "over_budget": False})
            store.finish(trial.key, "complete", planned=len(ITEMS))
    return root


def bare(trial, item, right, outcome=None, score=None, trace=None):
    score = {"strict": right} if score is None else score
    place = (trial.key, trial.arm, trial.model, trial.decoding, 0, item, item, "test", {})
    return Record(*place, outcome or {"said": "x"}, score, None, Cost(10, 1, 1.0, 0.1, 1), trace)


def record(store, trial, item, was, now, annotated, leaked):
    note = {"note": NOTE, "span": "bats", "start": 4, "by": BY, "plain": "4", "tokens": 12} if annotated else None
    outcome = {"said": "7", "found": "4" if leaked else "7", "plain": "4" if annotated else None, "answer": "7",
               "rewrite": note, "leaked": leaked}  # fmt: skip
    steps = [{"i": 0, "observation": f"user: the bats fly\nhow many {EVIL}", "action": item}]
    trace = store.save_trace({"steps": steps})
    return bare(trial, item, now, outcome, {"strict": now, "annotated": annotated}, trace)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rewrites") / "run")


def test_counts_are_those_of_the_records(run):
    found = section.told(run)
    (did,) = found["arms"]
    expected = {"arm": "reformulate", "n": 8, "annotated": 6, "fixed": 2, "broken": 1, "leaked": 1, "tokens": 12.0}
    assert {k: did[k] for k in expected} == expected
    assert did["of_wrong"] == (4, 5) and did["of_right"] == (2, 3)
    (word,) = found["words"]
    assert (word["span"], word["by"], word["n"], word["fixed"], word["broken"]) == ("bats", BY, 6, 2, 1)
    assert word["held"] == (0.91, None)
    assert found["searches"][0]["dropped"] == {"no label holds for the sense": 2}
    json.dumps(found, allow_nan=False)


def test_items_are_shown_before_and_after_the_note_behind_its_line(run):
    shown = section.told(run)["items"]
    assert {s["outcome"] for s in shown} == {"fixed", "broken", "leaked", "right", "wrong"}
    for one in shown:
        assert one["lines"][0] == ("user: the bats fly", False) and one["lines"][1] == (NOTE, True)
        assert len(one["lines"]) == 3


def test_the_page_holds_the_section_and_no_text_escapes(run):
    page = render(run).read_text(encoding="utf-8")
    assert "Words that reformulate annotated" in page and "Fixed and broken" in page
    assert EVIL not in page and "&lt;script&gt;window.__owned=1" in page


def test_a_run_without_rewrites_has_no_such_section(tmp_path):
    run = write(tmp_path / "run", rewritten=False)
    assert section.told(run) is None
    assert 'id="rewrites"' not in render(run).read_text(encoding="utf-8")
