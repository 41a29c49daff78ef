"""gcg finds a planted trigger, gains nothing where nothing can be moved, keeps to its budget, and its text is real."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.features import planted
from tests.methods.conftest import Bench

from fairlead.core import plugins
from fairlead.core.errors import NotApplicable, PlanError
from fairlead.core.fake import FakeSubject
from fairlead.core.ledger import Allowance, Budget, Meter
from fairlead.features.points import points
from fairlead.methods.gcg import Reader, allowed

SMALL = {"length": 4, "steps": 12, "width": 12, "top_k": 8, "check": 3, "batch": 6}


def triggered(subject: Any, token: int) -> Any:
    """A world in which the token `token`, anywhere in the prompt, makes the model decide rightly: the planted vector is
    added at the decision token, by how much of the token's embedding the prompt holds."""
    own = subject.model.get_input_embeddings().weight[token].detach()
    vector, state = 12.0 * planted.planted_vector(subject), {}

    def read(hidden: Any, info: Any) -> Any:
        share = (hidden @ own / (own @ own)).relu() ** 2
        state["there"] = (share * info.is_prompt).sum(1)[:, None, None]
        return hidden

    def write(hidden: Any, info: Any) -> Any:
        state["rows"] = len(hidden)
        return hidden + (state["there"] - 2.5) * vector * (~info.is_prompt | info.is_last)[..., None]

    return subject.edited([("resid_pre.0", read), ("resid.2", write)], "triggered", lambda: [()] * state["rows"])


def frozen(subject: Any) -> Any:
    """A world that decides the same whatever it reads."""
    rows: list[int] = []

    def write(hidden: Any, info: Any) -> Any:
        rows[:] = [len(hidden)]
        return hidden * 0 + 1

    return subject.edited([("resid.2", write)], "frozen", lambda: [()] * rows[0])


def in_world(bench: Bench, world: Any) -> Bench:
    return Bench(world, planted.ToyTask(world), bench.dictionary)


def trigger(subject: Any) -> int:
    return next(i for i in allowed(subject, fluent=True).tolist() if len(subject.checkpoint.chat.decode([i])) > 3)


async def fit(bench: Bench, options: Any, **change: Any) -> Any:
    return await plugins.get("methods", "gcg")(None, options).fit(bench.context(options, **change))


async def test_the_planted_trigger_is_found_and_flips_the_behaviour(bench: Bench) -> None:
    token = trigger(bench.subject)
    there = in_world(bench, triggered(bench.subject, token))
    fitted = await fit(there, SMALL)
    about = fitted.describe()
    assert bench.subject.checkpoint.chat.decode([token]).strip() in about["prompt"]
    assert about["validation_score"] > about["tried"][0]["score"] + 0.3
    with fitted.open(there.subject) as world:
        moved, bare = await there.play(world, 6), await there.play(there.subject, 6)
    assert all(d["ok"] for d in moved[::2]) and not any(d["ok"] for d in bare[::2])


async def test_nothing_is_gained_where_nothing_can_be_moved(bench: Bench) -> None:
    still = in_world(bench, frozen(bench.subject))
    fitted = await fit(still, {**SMALL, "steps": 3})
    about = fitted.describe()
    assert about["prompt"] == "" and len({round(t["score"], 6) for t in about["tried"]}) == 1
    assert about["gains"] == [0.0] * 3
    with fitted.open(still.subject) as world:
        assert world is still.subject


async def test_where_nothing_is_wrong_nothing_is_done(bench: Bench) -> None:
    calm = [i for i in bench.context({}).train if i.strata["trap"] == "off"]
    fitted = await fit(bench, {**SMALL, "steps": 3, "select": "rollouts"}, train=calm, validation=calm)
    assert fitted.describe()["prompt"] == "" and fitted.describe()["validation_score"] == 1.0


@pytest.mark.parametrize("objective", ["odds", "right"])
@pytest.mark.parametrize("fluent", [False, True])
async def test_every_suffix_comes_back_as_its_own_tokens(bench: Bench, objective: str, fluent: bool) -> None:
    options = {**SMALL, "steps": 4, "check": 1, "objective": objective, "fluent": fluent}
    fitted = await fit(bench, options)
    chat = bench.subject.checkpoint.chat
    point = points(await bench.context({}).rollout(bench.subject, bench.context({}).train))[0]
    texts = [t["prompt"] for t in fitted.describe()["tried"][1:]]
    assert len(texts) == 4
    for text in texts:
        place = Reader(bench.subject, objective).span(text, point)
        assert place is not None and chat.decode(place[1]) == text and len(place[1]) == 4
        assert text.isascii() and text.isprintable()
        if fluent:
            assert set(place[1]) <= set(allowed(bench.subject, fluent=True).tolist())


async def test_the_gradient_points_where_the_objective_grows(bench: Bench) -> None:
    """Of single-token changes, those that the gradient puts first gain more than those it puts last."""
    found = points(await bench.context({}).rollout(bench.subject, bench.context({}).train))[:6]
    there = triggered(bench.subject, trigger(bench.subject))
    reader, pool = Reader(there, "odds"), allowed(bench.subject, fluent=True)
    text = reader.text([int(pool[5]), int(pool[9])]).strip()
    place = reader.span(text, found[0])
    gradient = reader.gradient(text, found)
    assert place is not None and gradient is not None
    order = pool[gradient[-1, pool].argsort(descending=True)].tolist()
    gains = [reader.value(reader.text([*place[1][:-1], t]), found) - reader.value(text, found)
             for t in (*order[:6], *order[-6:])]  # fmt: skip
    assert sum(gains[:6]) > sum(gains[6:])


async def test_the_budget_ends_the_search_and_the_best_is_kept(bench: Bench) -> None:
    short = {**SMALL, "steps": 6, "width": 6}
    bench.cap = 2
    assert len((await fit(bench, short)).describe()["tried"]) == 2
    bench.cap, bench.subject.meter = 20, Meter()
    whole = Allowance(Budget(), bench.subject.meter.snapshot, arm="gcg")
    await fit(bench, short, budget=whole)
    tight = Allowance(Budget(flops=whole.used_flops() / 2), bench.subject.meter.snapshot, arm="gcg")
    half = (await fit(bench, short, budget=tight)).describe()
    assert tight.used_flops() < 0.55 * whole.used_flops() and 1 <= half["steps"] < 6
    assert half["prompt"] in {t["prompt"] for t in half["tried"]}


async def test_a_subject_without_gradients_and_bad_options_are_refused(bench: Bench) -> None:
    with pytest.raises(NotApplicable, match="gradients"):
        await fit(bench, SMALL, subject=FakeSubject())
    for bad in ({"objective": "none"}, {"width": 0}):
        with pytest.raises(PlanError):
            plugins.get("methods", "gcg")(None, bad)


async def test_it_stands_on_other_lines_and_worlds(bench: Bench) -> None:
    """gcg fitted on a prompted subject: its suffix comes after that line."""
    fitted = await fit(in_world(bench, bench.subject.prompted("Be careful.")), {**SMALL, "steps": 2, "check": 1})
    text = fitted.describe()["tried"][1]["prompt"]
    shown = bench.subject.prompted("Be careful.").prompted(text).tokens(bench.task.messages(bench.context({}).train[0]))
    assert f"You shop.\nBe careful.\n{text}" in shown.text


def test_unchanged_words_only(bench: Bench) -> None:
    decode = bench.subject.checkpoint.chat.decode
    words, every = allowed(bench.subject, fluent=True), allowed(bench.subject, fluent=False)
    assert set(words.tolist()) < set(every.tolist())
    assert all(decode([i]).strip(" .,").isalpha() for i in words.tolist())
    assert not torch.isin(every, torch.tensor(bench.subject.tokenizer.all_special_ids)).any()
