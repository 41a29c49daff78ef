"""Edits through a real forward: a tiny random Llama, prefill, decode steps and scored continuations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.lm.conftest import LEGAL, PAGES
from tests.steering.conftest import dictionary

from fairlead import steering
from fairlead.core.errors import EditError
from fairlead.core.types import Message, Messages
from fairlead.lm.hooks import ForwardInfo
from fairlead.lm.subject import LocalSubject

PROMPTS: list[Messages] = [(Message("system", "You shop."), Message("user", page)) for page in PAGES]
D1 = dictionary(site="resid.1", d=32)
STRONG = "3 += 4, 5 -= 4"


async def test_nothing_below_the_edit_moves_and_everything_above_may(subject: LocalSubject) -> None:
    sites = ["resid_pre.0", "resid.0", "attn.1", "mlp.1", "resid.1", "resid.2"]
    plain = subject.activations(PROMPTS, sites)
    moved = steering.apply(subject, STRONG, D1).activations(PROMPTS, sites)
    for site in sites[:4]:
        assert torch.equal(plain[site], moved[site]), site
    for site in sites[4:]:
        assert not torch.allclose(plain[site], moved[site], atol=1e-2), site
    delta = (moved["resid.1"] - plain["resid.1"])[0]
    torch.testing.assert_close(delta, 4 * D1.W_dec[3] - 4 * D1.W_dec[5], atol=1e-4, rtol=1e-4)


async def test_every_decoded_token_is_steered(subject: LocalSubject) -> None:
    """The classic bug: steering the prefill and no generated token."""
    n = 6
    for scope, fired in (("all", None), ("generated", n - 1), ("prompt", None), ("last", 1)):
        steered = steering.apply(subject, f"3 += 0.001 at {scope}", D1)
        said = await steered.generate(PROMPTS[0], max_tokens=n)
        (report,) = said.edits
        assert said.new_tokens == n  # the last one is said but never read
        want = {"all": said.prompt_tokens + n - 1, "prompt": said.prompt_tokens}.get(scope, fired)
        assert (report.fired, report.seen) == (want, want)


async def test_decode_steps_equal_one_forward_over_the_same_tokens(subject: LocalSubject) -> None:
    """Steered greedy decoding says what steered scoring of its own words calls most probable."""
    steered = steering.apply(subject, f"{STRONG}; $v += 1 at generated", D1, {"v": torch.ones(32)})
    said = await steered.generate(PROMPTS[1], max_tokens=5)
    plain = await subject.generate(PROMPTS[1], max_tokens=5)
    assert said.text != plain.text
    scores = await steered.logprobs(PROMPTS[1], [said.text, plain.text])
    assert scores[0] > scores[1]
    prompt_only = steering.apply(subject, STRONG, D1)
    assert not math.isclose((await prompt_only.logprobs(PROMPTS[1], [said.text]))[0], scores[0], abs_tol=1e-3)


async def test_unedited_rows_are_bit_identical_in_a_mixed_batch(subject: LocalSubject) -> None:
    engine = steering.compile_edits(steering.parse(STRONG), D1, d_model=32, n_layers=3)
    mixed = subject.edited(engine.hooks, engine.fingerprint, engine.reports)
    plain = subject.action_logprobs(PROMPTS, LEGAL)
    both = mixed.action_logprobs(PROMPTS, LEGAL, slots=[0, 1, 0, 1])
    for row in (0, 2):
        assert torch.equal(plain[row], both[row])
    for row in (1, 3):
        assert not torch.allclose(plain[row], both[row], atol=1e-3)


async def test_a_gate_on_the_agents_step(subject: LocalSubject) -> None:
    steered = steering.apply(subject, "3 += 4 on step 0", D1)
    first = await steered.generate(PROMPTS[0], step=0, legal=LEGAL[0])
    later = await steered.generate(PROMPTS[0], step=1, legal=LEGAL[0])
    plain = await subject.generate(PROMPTS[0], step=0, legal=LEGAL[0])
    assert later.legal_logprobs == plain.legal_logprobs != first.legal_logprobs
    assert first.edits[0].fired == first.edits[0].seen == later.edits[0].seen and later.edits[0].fired == 0
    assert first.edits[0].before == pytest.approx(later.edits[0].before)


async def test_roles_reach_the_edit(subject: LocalSubject) -> None:
    counts = {}
    for role in ("system", "user", "assistant"):
        said = await steering.apply(subject, f"3 += 1 at role {role}", D1).generate(PROMPTS[0], max_tokens=3)
        counts[role] = said.edits[0].fired
    assert counts["assistant"] == 2 and 0 < counts["system"] < counts["user"]


async def test_before_and_after_are_what_the_dictionary_reads_there(subject: LocalSubject) -> None:
    steered = steering.apply(subject, "3 = 2 at last", D1)
    said = await steered.generate(PROMPTS[0], legal=LEGAL[0])
    plain = subject.activations(PROMPTS[:1], ["resid.1"])["resid.1"]
    moved = steered.activations(PROMPTS[:1], ["resid.1"])["resid.1"]
    assert said.edits[0].before == pytest.approx(float(D1.encode(plain)[0, 3]), abs=1e-4)
    assert said.edits[0].after == pytest.approx(float(D1.encode(moved)[0, 3]), abs=1e-3)


async def test_several_layers_and_an_earlier_condition(subject: LocalSubject) -> None:
    held = [dictionary(site="resid.0", d=32, seed=3), D1, dictionary(site="mlp.2", d=32, seed=4)]
    line = "@resid.0: 1 += 2; @resid.1: 3 = 1 when 2@resid.0 > 0; @mlp.2: 7 *= 3"
    steered = steering.apply(subject, line, held)
    said = await steered.generate(PROMPTS[0], max_tokens=3)
    assert [r.edit for r in said.edits] == line.split("; ")
    one, two, three = said.edits
    assert one.fired == one.seen == two.seen == three.seen and 0 < two.fired < two.seen


async def test_the_empty_edit_is_the_plain_subject(subject: LocalSubject) -> None:
    empty = steering.apply(subject, "nothing", D1)
    a, b = [await s.generate(PROMPTS[0], legal=LEGAL[0]) for s in (subject, empty)]
    assert a.legal_logprobs == b.legal_logprobs and b.edits == ()
    assert empty.fingerprint != subject.fingerprint


async def test_subjects_are_values_and_edits_stack(subject: LocalSubject) -> None:
    before = await subject.logprobs(PROMPTS[0], LEGAL[0])
    once = steering.apply(subject, "3 += 4", D1)
    undone = steering.apply(once, "3 -= 4", D1)
    assert await subject.logprobs(PROMPTS[0], LEGAL[0]) == before
    assert await undone.logprobs(PROMPTS[0], LEGAL[0]) == pytest.approx(before, abs=1e-3)
    assert await once.logprobs(PROMPTS[0], LEGAL[0]) != pytest.approx(before, abs=1e-3)
    assert len((await undone.generate(PROMPTS[0], max_tokens=2)).edits) == 2
    assert len({subject.fingerprint, once.fingerprint, undone.fingerprint}) == 3


@pytest.mark.parametrize(
    ("line", "held"),
    [("3 =", D1), ("999 = 0", D1), ("@resid.7: 3 = 0", D1), ("3 = 0", dictionary()), ("3 = 0", None), ("$v += 1", D1)],
)
def test_what_cannot_be_applied_is_refused_before_anything_runs(line: str, held: Any, subject: LocalSubject) -> None:
    with pytest.raises(EditError):
        steering.apply(subject, line, held)


def test_attribution_differentiates_through_an_edit(subject: LocalSubject) -> None:
    steered = steering.apply(subject, "3 = 2", D1)
    found = steered.attribution(PROMPTS[:1], LEGAL[:1], [[1.0, -1.0, 0.0]], "resid.0")
    plain = subject.attribution(PROMPTS[:1], LEGAL[:1], [[1.0, -1.0, 0.0]], "resid.0")
    assert found.gradients[0].abs().sum() > 0 and not torch.allclose(found.gradients[0], plain.gradients[0])


def test_the_hook_sees_what_the_subject_knows(subject: LocalSubject) -> None:
    """ForwardInfo, not tensor shapes: left padding and positions come from the Subject."""
    seen: list[ForwardInfo] = []

    def spy(hidden: torch.Tensor, info: ForwardInfo) -> torch.Tensor:
        seen.append(info)
        return hidden

    engine = steering.compile_edits(steering.parse("3 += 1 at tokens 0..1"), D1)
    hooks = [("resid.1", spy), *engine.hooks.items()]
    both = subject.edited(hooks, "spied", engine.reports)
    both.action_logprobs(PROMPTS, LEGAL)
    assert bool((seen[0].positions == -1).any())
    engine.hooks["resid.1"](torch.zeros(*seen[0].positions.shape, 32), seen[0])
    assert [(r.fired, r.seen) for (r,) in engine.reports()] == [(2, 2)] * len(PROMPTS)
