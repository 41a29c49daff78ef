"""Examples win where the subject learns from them, and are left out where it does not."""

from __future__ import annotations

import json
from pathlib import Path

from tests.methods.planted_words import WORDS, Table, fake, right_of, unsure

from fairlead.core import plugins
from fairlead.core.keys import canonical
from fairlead.core.types import Message
from fairlead.methods.few_shot import Example, pick, pools_of, world


def copycat(messages, legal, step):
    """Knows a code's word once an example shows it: the last user turn that is a page, and those before it."""
    pages = [i for i, m in enumerate(messages) if m.role == "user" and m.content.startswith("code")]
    code = messages[pages[-1]].content.split()[1]
    for i in pages[:-1]:
        if messages[i].content.split()[1] == code:
            return next(m.content for m in messages[i:] if m.content in WORDS)
    return unsure((*messages[:1], messages[pages[-1]]), legal, step)


def thinker(messages, legal, step):
    """Right once it has thought, and it thinks only where it has seen how."""
    if any(m.content == "Now act." for m in messages[:-1]):
        if legal is None:
            return "the goal decides"
        if messages[-1].content == "Now act." and messages[-2].content == "the goal decides":
            return right_of(messages[-3].content)
    return unsure(messages, legal, step)


async def fitted(policy, variant=None, **options):
    table = Table(fake(policy))
    method = plugins.get("methods", "few_shot")(variant, options)
    found = await method.fit(table.context())
    with found.open(table.subject) as opened:
        share = await table.share(opened)
    return found, share, await table.share(table.subject), table, method


async def test_examples_that_teach_are_found_and_win(tmp_path: Path) -> None:
    found, share, bare, table, method = await fitted(copycat)
    about = found.describe()
    assert share > 0.8 > bare
    assert about["validation_score"] == max(t["score"] for t in about["tried"]) and table.tried == len(about["tried"])
    best = next(t for t in about["tried"] if t["score"] == about["validation_score"])
    assert best["k"] == 8 and len(about["examples"]) == 8
    assert about["tried"][0]["k"] == 0
    found.save(tmp_path)
    loaded = method.load(tmp_path)
    assert loaded.fingerprint == found.fingerprint
    assert json.loads(canonical(loaded.describe())) == json.loads(canonical(about))
    with loaded.open(table.subject) as opened:
        assert await table.share(opened) == share


async def test_a_thought_before_the_action_wins_where_thinking_helps() -> None:
    plain, plain_share, bare, _, _ = await fitted(thinker)
    found, share, _, table, _ = await fitted(thinker, "reason")
    assert plain.examples == () and plain_share == bare < 0.8
    assert share == 1.0 and found.describe()["reasons_first"]
    with found.open(table.subject) as opened:
        before = table.subject.meter.snapshot()
        said = await opened.generate((Message("user", "code k1\nend"),), legal=WORDS)
        spent = table.subject.meter.snapshot() - before
    assert spent.forwards == 2
    assert (said.prompt_tokens, said.new_tokens) == (spent.prompt_tokens, spent.new_tokens)


async def test_nothing_is_shown_where_examples_do_nothing() -> None:
    for variant in (None, "reason"):
        found, share, bare, table, _ = await fitted(unsure, variant)
        assert found.examples == () and share == bare
        assert found.describe()["validation_score"] == found.describe()["tried"][0]["score"]
        assert 1 < table.tried <= 20


async def test_the_budget_cuts_the_attempts() -> None:
    table = Table(fake(copycat), cap=3)
    found = await plugins.get("methods", "few_shot")(None, {}).fit(table.context())
    assert len(found.describe()["tried"]) == 3


async def test_examples_come_from_where_they_are_said_to() -> None:
    table = Table(fake(unsure))
    episodes = await table.context().rollout(table.subject, table.context().train)
    pools = pools_of(episodes, "strict", "trap")
    solved = {e.item.data["page"] for e in episodes if e.score.values["strict"]}
    assert {e.page for e in pools["solved"]} == solved
    traps = {e.item.data["page"] for e in episodes if e.item.strata["trap"] == "on"}
    assert {e.page for e in pools["labelled"]} == traps
    assert all(e.action == right_of(e.page) for pool in pools.values() for e in pool)
    four = pick(pools["solved"], 4, 0)
    assert sorted(e.stratum for e in four) == ["off", "off", "on", "on"] and len({e.cluster for e in four}) == 4
    assert four == pick(pools["solved"], 4, 0) != pick(pools["solved"], 4, 1)
    assert all(e.trap for e in pick(pools["resisted"], 4, 0, traps_first=True))


def test_a_page_is_shortened_to_what_its_actions_name() -> None:
    page = "goal: add the vase\n[1] link 'Cart'\n[2] button 'Hot deal'\n[12] button 'Vase'\nstep 1/8\npast: none"
    short = Example(page, 'click("12")', ('click("2")',), "on", "c").short()
    assert short.page == "goal: add the vase\n[2] button 'Hot deal'\n[12] button 'Vase'\npast: none"
    assert Example("one line", "done()", (), "on", "c").short().page == "one line"


async def test_seats_answer_as_alone() -> None:
    table = Table(fake(thinker))
    found = await plugins.get("methods", "few_shot")("reason", {}).fit(table.context())
    opened = world(table.subject, found)
    together = await table.share(opened)
    alone = [
        (await opened.generate((Message("user", i.data["page"]),), legal=WORDS)).text == right_of(i.data["page"])
        for i in table.task.items("test", 24)
    ]
    assert together == sum(alone) / 24
