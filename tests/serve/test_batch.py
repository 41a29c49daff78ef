"""The decode loop without a server: who joins, who leaves, what is read again, and who pays for a failure."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from tests.lm.conftest import PAGES, checkpoint
from tests.steering.conftest import dictionary

from fairlead import steering
from fairlead.core.ledger import Meter
from fairlead.core.types import Message, Messages
from fairlead.lm.load import load
from fairlead.lm.sampling import Sampling
from fairlead.serve.batch import Batch, Job, Overdriven, Said, TookTooLong, nucleus
from fairlead.steering.slots import RowEdits, compile_row

D1 = dictionary("jumprelu", site="resid.1", d=32)
WORDS = ["lamp", "cup", "goal", "shop", "red", "blue", "step", "page"]
EDITS = [f"{i} += {1 + i % 3} when {i + 1} > 0.2" if i % 2 else f"{i} = {2 + i % 3} at generated" for i in range(24)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    return load(checkpoint(tmp_path_factory.mktemp("batch"), layers=3, width=32))


def prompt(i: int) -> Messages:
    return (Message("user", f"{PAGES[i % 4]} {WORDS[i % 8]} {i}"),)


def compiled(line: str) -> RowEdits:
    return compile_row(steering.parse(line), {"resid.1": D1}, None, d_model=32, n_layers=3)


class Asked:
    """One job and what came of it."""

    def __init__(self, subject: Any, messages: Messages, edits: str = "", limit: int = 12, **more: Any) -> None:
        ids = subject.tokens(messages)
        self.pieces: list[str] = []
        self.answer: Any = None
        self.job = Job(
            ids.ids, subject.checkpoint.chat.roles(ids.messages), limit, self._done,
            told=lambda text, _tokens: self.pieces.append(text), edits=compiled(edits) if edits else None, **more,
        )  # fmt: skip

    def _done(self, answer: Said | Exception) -> None:
        assert self.answer is None, "answered twice"
        self.answer = answer


def run(batch: Batch, asked: list[Asked], *, most: int = 2000) -> None:
    batch.waiting.extend(a.job for a in asked)
    for _ in range(most):
        if batch.idle:
            return
        batch.step()
    raise AssertionError("the batch never became idle")


def greedy(subject: Any, messages: Messages, edits: str, limit: int = 12) -> Any:
    steered = steering.apply(subject, edits, D1) if edits else subject
    return steered._run([steered._request(messages, 0, None, limit)])[0]


def same(got: Said, want: Any) -> None:
    assert (got.text, got.prompt, got.new) == (want.text, want.prompt_tokens, want.new_tokens)
    assert [(e.edit, e.fired, e.seen) for e in got.edits] == [(e.edit, e.fired, e.seen) for e in want.edits]


@pytest.mark.parametrize(("rows", "chunk"), [(1, 512), (3, 7), (8, 64), (32, 512)])
def test_any_batch_says_what_each_request_gets_alone(loaded: Any, rows: int, chunk: int) -> None:
    """24 requests, each with edits of its own or none, in few rows and small chunks, some short and some long."""
    lines = [EDITS[i] if i % 3 else "" for i in range(24)]
    asked = [Asked(loaded, prompt(i), lines[i], limit=3 + i % 9) for i in range(24)]
    batch = Batch(loaded, rows=rows, chunk=chunk, prefixes=0)
    run(batch, asked)
    for i, one in enumerate(asked):
        same(one.answer, greedy(loaded, prompt(i), lines[i], 3 + i % 9))
        assert "".join(one.pieces) == one.answer.text
    assert batch.stats.finished == 24 and batch.busy == 0
    assert not any(batch.engine.edited(row) for row in range(rows + 1))


def test_a_second_turn_reads_only_what_is_new_and_reports_all(loaded: Any) -> None:
    batch = Batch(loaded)
    for line, whole in (("", True), ("4 += 1", True), ("4 = 2 at generated", False), ("4 += 1 at last", False)):
        first = Asked(loaded, prompt(1), line, limit=4)
        run(batch, [first])
        turns = (*prompt(1), Message("assistant", first.answer.text), Message("user", "go on"))
        second = Asked(loaded, turns, line)
        run(batch, [second])
        same(second.answer, greedy(loaded, turns, line))
        # edits that tell prompt from generated, or the decision token, make the same tokens different ones
        assert second.answer.reused >= first.answer.prompt - (0 if whole else 1), line
        if not whole:
            assert second.answer.reused <= first.answer.prompt


def test_a_past_under_other_edits_or_another_step_is_not_used(loaded: Any) -> None:
    batch = Batch(loaded)
    run(batch, [Asked(loaded, prompt(0), "4 += 1")])
    for line, step in (("4 += 2", 0), ("", 0)):
        other = Asked(loaded, prompt(0), line, step=step)
        run(batch, [other])
        assert other.answer.reused == 0
    gated = [Asked(loaded, prompt(0), "4 += 1 on step 1", step=step) for step in (0, 1, 2)]
    for one in gated:
        run(batch, [one])
    assert [one.answer.reused > 0 for one in gated] == [False, False, True]
    assert [one.answer.edits[0].fired > 0 for one in gated] == [False, True, False]


def test_what_is_kept_is_bounded(loaded: Any) -> None:
    batch = Batch(loaded, prefixes=200_000)
    run(batch, [Asked(loaded, prompt(i)) for i in range(30)])
    assert 0 < batch.prefixes.bytes <= 200_000 and len(batch.prefixes) < 30
    batch.prefixes.clear()
    assert batch.prefixes.bytes == 0


def test_choices_of_one_prompt_read_it_once(loaded: Any) -> None:
    batch = Batch(loaded)
    first = Asked(loaded, prompt(0), sampling=Sampling(1.0, 1))
    others = [Asked(loaded, prompt(0), sampling=Sampling(1.0, 1 + i), after=first.job) for i in range(1, 4)]
    run(batch, [first, *others])
    assert all(o.answer.reused == o.answer.prompt - 1 for o in others)
    assert len({o.answer.text for o in (first, *others)}) > 1


def test_a_seed_says_the_same_in_any_company(loaded: Any) -> None:
    def said(company: int) -> str:
        asked = [Asked(loaded, prompt(i), EDITS[i], sampling=Sampling(1.2, 7), top_p=0.9) for i in range(1 + company)]
        run(Batch(loaded, prefixes=0), asked)
        text: str = asked[0].answer.text
        return text

    assert said(0) == said(5)


def test_top_p_keeps_the_most_probable() -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert torch.isfinite(nucleus(scores, 1.0, 0.65)).tolist() == [False, False, True, True]
    assert torch.isfinite(nucleus(scores, 1.0, 0.0)).tolist() == [False, False, False, True]
    assert nucleus(scores, 1.0, 1.0) is scores


def test_logprobs_are_those_of_the_steered_model(loaded: Any) -> None:
    one = Asked(loaded, prompt(2), "4 += 2", limit=1, tops=3)
    run(Batch(loaded), [one])
    (token,) = one.answer.tokens
    steered = steering.apply(loaded, "4 += 2", D1)
    legal = [text for text, _ in token.top]
    assert token.top[0] == (token.text, token.logprob) and len(legal) == 3
    ids = loaded.tokenizer.encode(token.text, add_special_tokens=False)
    if len(ids) == 1:  # a token that is spelled as itself can be scored by the other way
        (want,) = steered.action_logprobs([prompt(2)], [(token.text,)], end_turn=False)
        assert token.logprob == pytest.approx(float(want[0]), abs=1e-4)


def test_a_forward_that_fails_fails_its_own_request_only(loaded: Any, monkeypatch: Any) -> None:
    batch = Batch(loaded, prefixes=0)
    asked = [Asked(loaded, prompt(i), EDITS[i]) for i in range(6)]
    poison = asked[3].job.edits
    real = batch.engine.hooks

    def hooks(span: Any, room: int) -> Any:
        held = batch.engine._held[span.first : span.first + span.count]
        if any(h is not None and h[0] is poison for h in held) and not bool(span.info.is_prompt.any()):
            raise RuntimeError("a worker died")
        return real(span, room)

    monkeypatch.setattr(batch.engine, "hooks", hooks)
    run(batch, asked)
    assert isinstance(asked[3].answer, RuntimeError) and batch.stats.failed == 1
    for i in (0, 1, 2, 4, 5):
        same(asked[i].answer, greedy(loaded, prompt(i), EDITS[i]))
    monkeypatch.undo()
    again = Asked(loaded, prompt(3), EDITS[3])
    run(batch, [again])
    same(again.answer, greedy(loaded, prompt(3), EDITS[3]))


def test_edits_that_leave_no_numbers_are_refused_and_spoil_no_other_row(loaded: Any) -> None:
    batch = Batch(loaded, rows=2)
    wild = Asked(loaded, prompt(0), "4 *= 1e38")
    asked = [Asked(loaded, prompt(1), "4 += 1"), wild, Asked(loaded, prompt(2)), Asked(loaded, prompt(3), "4 += 1")]
    run(batch, asked)
    assert isinstance(wild.answer, Overdriven)
    for i, line in ((0, "4 += 1"), (2, ""), (3, "4 += 1")):
        same(asked[i].answer, greedy(loaded, prompt((1, 0, 2, 3)[i]), line))


def test_who_leaves_frees_a_row_and_is_told_nothing(loaded: Any) -> None:
    batch = Batch(loaded, rows=1)
    gone, waits = Asked(loaded, prompt(0), limit=200), Asked(loaded, prompt(1))
    batch.waiting.extend([gone.job, waits.job])
    for _ in range(3):
        batch.step()
    gone.job.cancelled = True
    run(batch, [])
    assert gone.answer is None and isinstance(waits.answer, Said) and batch.stats.cancelled == 1


def test_deadlines_hold_at_work_and_in_the_queue(loaded: Any) -> None:
    batch = Batch(loaded, rows=1)
    late = [Asked(loaded, prompt(i), limit=200, deadline=time.monotonic() - 1) for i in range(2)]
    run(batch, late)
    assert all(isinstance(one.answer, TookTooLong) for one in late)


def test_what_is_at_work_is_returned_as_far_as_it_got(loaded: Any) -> None:
    batch = Batch(loaded, rows=2)
    asked = [Asked(loaded, prompt(i), limit=200) for i in range(4)]
    batch.waiting.extend(a.job for a in asked)
    for _ in range(5):
        batch.step()
    batch.return_all(RuntimeError("stopping"))
    assert [isinstance(a.answer, Said) for a in asked] == [True, True, False, False] and batch.idle
    assert asked[0].answer.cut and asked[0].answer.reason == "length" and 0 < asked[0].answer.new < 200


def test_memory_is_flat(loaded: Any) -> None:
    batch = Batch(loaded, rows=4, prefixes=50_000)
    run(batch, [Asked(loaded, prompt(i), EDITS[i % 24]) for i in range(24)])
    shapes = [tuple(t.shape) for site in batch.engine._sites.values() for t in site.tensors()]
    kept = batch.prefixes.bytes
    run(batch, [Asked(loaded, prompt(i), EDITS[i % 24]) for i in range(48)])
    assert shapes == [tuple(t.shape) for site in batch.engine._sites.values() for t in site.tensors()]
    assert batch.prefixes.bytes <= max(kept, 50_000) and len(batch.engine._views) <= 256


def test_the_meter_is_charged_with_what_was_read(loaded: Any) -> None:
    meter = Meter()
    one = Asked(loaded, prompt(0), "4 += 1", limit=5)
    run(Batch(loaded, meter=meter), [one])
    cost = meter.snapshot()
    assert cost.prompt_tokens == one.answer.prompt and cost.new_tokens == one.answer.new and cost.flops > 0


def test_positions_are_those_of_the_tokens(loaded: Any) -> None:
    """An edit `at tokens A..B` fires on exactly those, wherever chunks end."""
    for chunk in (3, 5, 512):
        one = Asked(loaded, prompt(1), "4 += 1 at tokens 4..9")
        run(Batch(loaded, chunk=chunk), [one])
        assert (one.answer.edits[0].fired, one.answer.edits[0].seen) == (6, 6)
