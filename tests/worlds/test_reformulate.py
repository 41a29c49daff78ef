"""Reformulate on the planted misreading: what was planted is found and repaired, what was not is left alone."""

import asyncio

import pytest

from fairlead import dictionaries
from fairlead.core import plugins
from fairlead.core.protocols import FitContext
from fairlead.lm.load import load
from fairlead.methods import reformulate
from fairlead.study.play import rollout

TASK = plugins.get("tasks", "misread")({})


class Budget:
    def part(self, _n):
        pass


def context(subject, dictionary, sibling=None):
    async def roll(world, items):
        return await rollout(TASK, items, world, 64)

    return FitContext(
        subject, dictionary, TASK.items("train"), TASK.items("validation"), 0, Budget(), roll, lambda: None, {},
        sibling or (lambda name: pytest.fail(f"asked for {name}")),
    )  # fmt: skip


def fit(variant, ctx):
    return asyncio.run(reformulate.plugin(variant, {}).fit(ctx))


def played(fitted, subject, items):
    with fitted.open(subject) as world:
        return asyncio.run(rollout(TASK, items, world, 64))


@pytest.fixture(scope="module")
def reader():
    return load("pocket/reader-s"), dictionaries.load("pocket/reader-s@resid.0")


@pytest.fixture(scope="module")
def fitted(reader):
    return fit("", context(*reader))


@pytest.mark.slow
def test_it_repairs_planted_words_and_leaves_what_is_read_rightly_alone(reader, fitted):
    items = TASK.items("test")[:256]
    before = asyncio.run(rollout(TASK, items, reader[0], 64))
    after = played(fitted, reader[0], items)
    right = [[bool(e.score.values["strict"]) for e in episodes] for episodes in (before, after)]
    noted = [e.outcome.data["rewrite"] for e in after]
    fixed = sum(b and not a for a, b in zip(*right, strict=True))
    broken = sum(a and not b for a, b in zip(*right, strict=True))
    assert fixed > 3 * broken and fixed >= 10
    on_right = [n is not None for n, ok in zip(noted, right[0], strict=True) if ok]
    assert sum(on_right) <= 0.07 * len(on_right)  # 5 % wanted of all of test, of which these are a third
    planted = [(n, i) for n, i in zip(noted, items, strict=True) if i.data["hard"]]
    at_the_word = [n is not None and n["span"] == i.data["gloss"]["span"] for n, i in planted]
    assert sum(at_the_word) >= 0.8 * len(planted)
    for one, item in zip(after, items, strict=True):
        if one.outcome.data["rewrite"] is None:  # byte-identical prompts: the answers are those of the bare model
            assert one.outcome.data["found"] == before[items.index(item)].outcome.data["found"]


@pytest.mark.slow
def test_other_labels_at_the_same_places_repair_less(reader, fitted):
    items = [i for i in TASK.items("test") if i.data["hard"]][:128]
    share = {}
    for variant in ("", "shuffled_label", "generic"):
        one = fitted if not variant else fit(variant, context(*reader, sibling=lambda _: fitted))
        share[variant] = sum(bool(e.score.values["strict"]) for e in played(one, reader[0], items)) / len(items)
    assert share[""] > share["shuffled_label"] + 0.05
    assert share[""] > share["generic"] + 0.05


@pytest.mark.slow
def test_a_reader_without_the_bias_has_nothing_to_find():
    subject = load("pocket/reader-c")
    found = fit("", context(subject, dictionaries.load("pocket/reader-c@resid.0")))
    items = TASK.items("test")[:128]
    noted = [e.outcome.data["rewrite"] is not None for e in played(found, subject, items)]
    assert sum(noted) <= 0.05 * len(noted)
