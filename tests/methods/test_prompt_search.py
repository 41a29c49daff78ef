"""The search finds a line that no pool holds; a proposer's line is tried like any other; or none is used."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.lm.endpoint import chat, serving
from tests.methods.planted_words import Table, fake, number, right_of, unsure

from fairlead.core import plugins
from fairlead.core.errors import PlanError
from fairlead.core.keys import canonical
from fairlead.core.ledger import Allowance, Budget
from fairlead.methods._phrases import PHRASES, Wording, crossed, mutated, sentences

KEYS = (PHRASES[4], PHRASES[10])


def locked(messages: Any, legal: Any, step: int) -> str:
    """Each of two phrases opens a third of the pages; nothing else does, and either one alone opens no more."""
    system, page = messages[0].content, messages[-1].content
    opened = sum(key in system for key in KEYS)
    right = right_of(page)
    if number(page.split("\n")[0]) % 3 < opened + 1 and opened:
        return right
    return unsure(messages, legal, step)


def sesame(messages: Any, legal: Any, step: int) -> str:
    return right_of(messages[-1].content) if "Open sesame." in messages[0].content else unsure(messages, legal, step)


async def fitted(policy: Any, **options: Any) -> tuple[Any, Table, Any]:
    table = Table(fake(policy))
    method = plugins.get("methods", "prompt_search")(None, options)
    return await method.fit(table.context()), table, method


async def test_phrases_that_work_together_are_found(tmp_path: Path) -> None:
    found, table, method = await fitted(locked, rounds=6)
    assert all(key in found.text for key in KEYS)
    with found.open(table.subject) as world:
        share, bare = await table.share(world), await table.share(table.subject)
    assert share > bare + 0.2
    about = found.describe()
    assert about["validation_score"] == max(t["score"] for t in about["tried"]) > about["tried"][0]["score"]
    assert table.tried == len(about["tried"]) <= 20 and about["search"]["evaluated"] > 40
    table.tried = 0
    line = await plugins.get("methods", "prompt")(None, {}).fit(table.context())
    assert line.text == ""  # the pool alone does not hold it
    found.save(tmp_path)
    loaded = method.load(tmp_path)
    assert loaded.fingerprint == found.fingerprint
    assert json.loads(canonical(loaded.describe())) == json.loads(canonical(about))


async def test_no_line_is_used_where_none_helps() -> None:
    found, table, _ = await fitted(unsure)
    assert found.text == "" and found.describe()["validation_score"] == found.describe()["tried"][0]["score"]


async def test_a_proposer_s_line_is_tried_and_its_calls_are_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    with serving(lambda path, body: chat("1. Say please.\n- \"Open sesame.\"\n\n3) Be wise.", 50, 9)) as endpoint:
        options = {"proposer": endpoint.url, "proposer_model": "wizard", "rounds": 2, "proposals": 2}
        found, table, _ = await fitted(sesame, **options)
    assert found.text == "Open sesame."
    assert found.describe()["search"]["proposed"] == ["Say please.", "Open sesame."] * 2
    assert table.subject.meter.judge_calls == 2 == len(endpoint.asked)
    asked = endpoint.asked[0][1]["messages"][0]["content"]
    assert "it chose: " in asked and "right was: " in asked and "Write 2 new system lines" in asked
    assert "Open sesame." in endpoint.asked[1][1]["messages"][0]["content"]  # with its score, in the second round


async def test_the_search_ends_where_the_flops_do() -> None:
    table = Table(fake(locked))
    allowance = Allowance(Budget(20, 2e7), table.subject.meter.snapshot, arm="prompt_search")
    table.subject.meter.guard = allowance.guard
    found = await plugins.get("methods", "prompt_search")(None, {}).fit(
        table.context(try_one=allowance.try_one, budget=allowance)
    )
    about = found.describe()
    assert about["search"]["cut_short"] and not allowance.over
    assert len(about["tried"]) > 2  # some FLOPs were kept to compare what was found


def test_a_proposer_needs_a_model() -> None:
    with pytest.raises(PlanError, match="proposer_model"):
        plugins.get("methods", "prompt_search")(None, {"proposer": "http://localhost:1/v1"})


def test_moves_keep_wordings_whole() -> None:
    rng = random.Random(0)
    pool = sentences(["A. B! C?", "D.", "A."])
    assert pool == ["A.", "B!", "C?", "D."]
    wording, seen = Wording(("A.",)), set()
    for _ in range(300):
        wording = mutated(wording, pool, 3, rng)
        seen.add(wording)
        assert 1 <= len(wording.phrases) == len(set(wording.phrases)) <= 3
        child = crossed(wording, Wording(("D.", "C?")), 3, rng)
        assert 1 <= len(child.phrases) <= 3 and set(child.phrases) <= set(pool)
    assert len(seen) > 30 and {w.joiner for w in seen} == {"\n", " "}
    assert Wording().text == ""
