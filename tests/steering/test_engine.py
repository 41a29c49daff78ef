"""The engine against its definition and its laws, on hand-made forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.steering import oracle
from tests.steering.conftest import D, M, activations, dictionary, forward_info
from tests.steering.strategies import compares, conditions, edits, quick
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.steering import Edit, Latent, Op, StoredVector, compile_edits, compile_sets, parse

SITE, EARLIER = "resid.1", "mlp.1"
VECTORS = {name: torch.randn(D, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("uvw", 7)}
FAMILIES = ["relu", "jumprelu", "topk", "onehot"]


def run(line: str, h: Tensor | None = None, family: str = "relu", **options: Any) -> tuple[Tensor, list[Any]]:
    """h after the line's edits, one slot for all rows, and the reports."""
    engine = compile_edits(parse(line), dictionary(family), VECTORS)
    h = activations() if h is None else h
    out = engine.hooks[SITE](h, forward_info(h.shape[1], [1] * h.shape[0], **options))
    return out, engine.reports()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# the definition

small = st.integers(-400, 400).map(lambda n: n / 100)
latents = st.builds(Latent, st.integers(0, M - 1))
anything = latents | st.sampled_from([StoredVector(v) for v in VECTORS])
tests = compares(anything, st.sampled_from([None, SITE, EARLIER]), small)
ops = st.sampled_from([op for op in Op if op is not Op.PROJECT_OUT])
some = st.lists(edits(anything, st.none(), small, when=st.none() | conditions(tests), ops=ops), min_size=1, max_size=4)


@settings(quick, max_examples=25, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking is slow here
@given(st.lists(some, min_size=1, max_size=3), st.sampled_from(FAMILIES), st.data())
def test_any_sets_equal_the_slow_definition(sets: list[list[Edit]], family: str, data: Any) -> None:
    held = {SITE: dictionary(family), EARLIER: dictionary("relu", EARLIER, seed=5)}
    sets = [[Edit(e.direction, e.op, e.value, e.unit, SITE, e.scope, e.gate) for e in s] for s in sets]
    slots = data.draw(st.lists(st.integers(0, len(sets)), min_size=1, max_size=3))
    info = forward_info(5, slots, prompt=3, steps=[2] * len(slots), pads=list(range(len(slots))))
    arrived = {EARLIER: activations(len(slots), 5, seed=3), SITE: activations(len(slots), 5)}
    engine = compile_sets(sets, held, VECTORS)
    for site in engine.hooks:
        out = engine.hooks[site](arrived[site], info)
    want, counts = oracle.run(arrived, sets, SITE, info, held, VECTORS)
    close(out[info.real], want[info.real])
    reports = engine.reports()
    for row, slot in enumerate(slots):
        if slot == 0:
            assert reports[row] == ()
            assert torch.equal(out[row], arrived[SITE][row])
            continue
        assert [r.seen for r in reports[row]] == [
            sum(oracle.in_scope(e.scope, info, row, t) for t in range(5)) for e in sets[slot - 1]
        ]
        for report, count, edit in zip(reports[row], counts[row], sets[slot - 1], strict=True):
            if isinstance(edit.direction, Latent):  # a vector's reading is never exactly at its target
                assert report.fired == count, report


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clamp_is_encode_change_decode_with_the_error_kept(family: str) -> None:
    d, h = dictionary(family), activations(2, 50)
    f = d.encode(h)
    error = h - d.decode(f)
    f[..., 3], f[..., 17], f[..., 20] = 2.5, 0.0, f[..., 20] * 3
    assert error.abs().max() > 1  # there is an error to keep
    close(run("3 = 2.5; 17 -> off; 20 *= 3", h, family)[0], d.decode(f) + error)


def test_input_centring_is_folded_in() -> None:
    for centred in (True, False):
        d = dictionary("jumprelu").replace(apply_b_dec_to_input=centred)
        h = activations()
        f = d.encode(h)
        error = h - d.decode(f)
        f[..., 3] = 1.0
        out = compile_edits(parse("3 = 1"), d).hooks[SITE](h, forward_info())
        close(out, d.decode(f) + error)


def test_only_watched_rows_are_read() -> None:
    d = dictionary("relu")
    poisoned = torch.full_like(d.W_enc, float("nan"))
    poisoned[:, 3] = d.W_enc[:, 3]
    engine = compile_edits(parse("3 *= 2"), d.replace(W_enc=poisoned))
    assert torch.equal(engine.hooks[SITE](activations(), forward_info()), run("3 *= 2")[0])
    wide = compile_edits(parse("3 *= 2"), dictionary(m=4 * M))
    assert wide.flops_per_token == engine.flops_per_token == 4 * D


def test_a_topk_reads_all_but_an_add_need_not() -> None:
    d = dictionary("topk")
    assert compile_edits(parse("3 *= 2"), d).flops_per_token > 2 * D * M
    assert compile_edits(parse("3 += 2"), d).flops_per_token == 4 * D
    out, ((report,),) = run("3 += 2", family="topk")
    close(out, activations() + 2 * d.W_dec[3])
    assert report.before == pytest.approx(float(d.encode(activations())[0, 3, 3]), abs=1e-5)


def test_threshold_mode_reads_rows_and_says_approximate() -> None:
    d, h = dictionary("topk"), activations()
    engine = compile_edits(parse("3 = 2"), d, topk="threshold")
    close(engine.hooks[SITE](h, forward_info()), h + (2 - d.threshold_rows(h, [3])) * d.W_dec[3])
    ((report,),) = engine.reports()
    assert "approximate" in report.edit and engine.approximate
    exact = compile_edits(parse("3 = 2"), d)
    assert exact.fingerprint != engine.fingerprint and not exact.approximate
    exact.hooks[SITE](h, forward_info())
    assert "approximate" not in exact.reports()[0][0].edit
    assert not compile_edits(parse("3 = 2"), dictionary("relu"), topk="threshold").approximate
    with pytest.raises(EditError, match="no calibrated threshold"):
        compile_edits(parse("3 = 2"), d.replace(threshold=None), topk="threshold")


# laws


@pytest.mark.parametrize("line", ["3 += 0", "3 *= 1", "$v += 0", "3 <= 1e30", "3 >= -1e30", "3 = 0 when 3 == 0",
                                  "3 += 1.5; 3 -= 1.5", "3 += 1 on step 7", "3 = 9 at tokens 90..99"])  # fmt: skip
def test_identities_change_nothing(line: str) -> None:
    out, ((report, *_),) = run(line)
    assert torch.equal(out, activations())
    assert report.before == report.after and report.before is not None
    if "-=" not in line:
        assert report.fired == 0


@pytest.mark.parametrize("family", ["relu", "jumprelu"])
@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("3 = 2", "3 = 2; 3 = 2"), ("3 = 0", "3 -> off"), ("3 = 2", "3 = 7; 3 = 2"), ("3 += 3", "3 += 1; 3 += 2"),
        ("3 *= 6", "3 *= 2; 3 *= 3"), ("3 <= 1", "3 <= 4; 3 <= 1"), ("$v -> out", "$v -> out; $v -> out"),
        ("$v = 0", "$v -> out"), ("3 = 5", "3 += 4; 3 >= 5; 3 <= 5"),
        ("3 = 1; 4 = 2; $v += 1", "$v += 1; 4 = 2; 3 = 1"),
    ],
)  # fmt: skip
def test_two_ways_to_say_the_same(family: str, one: str, same: str) -> None:
    close(run(one, family=family)[0], run(same, family=family)[0])


def test_duplicates_act_in_order() -> None:
    h, d = activations(), dictionary()
    z = d.encode(h)[..., 3:4]
    close(run("3 += 3; 3 <= 1")[0], h + ((z + 3).clamp(max=1) - z) * d.W_dec[3])
    close(run("3 <= 1; 3 += 3")[0], h + (z.clamp(max=1) + 3 - z) * d.W_dec[3])


def test_add_then_its_negative_through_two_engines_is_identity() -> None:
    once, _ = run("3 += 2; $v -= 1")
    assert not torch.allclose(once, activations(), atol=0.1)
    close(run("3 -= 2; $v += 1", once)[0], activations())


def test_a_stored_vectors_reading_is_its_coordinate() -> None:
    v = VECTORS["v"]
    close(run("$v += 2")[0], activations() + 2 * v)
    out, ((report,),) = run("$v = 3")
    close(out @ v / (v @ v), torch.full((1, 6), 3.0))
    assert report.after == pytest.approx(3.0, abs=1e-5)


@pytest.mark.parametrize("line", ["$v -> out", "3 -> out", "$u -> out, $v -> out, 3 -> out at prompt"])
def test_project_out_leaves_nothing_and_is_idempotent(line: str) -> None:
    once, _ = run(line)
    close(run(line, once)[0], once)
    gone = [
        VECTORS[e.direction.name] if isinstance(e.direction, StoredVector) else dictionary().W_dec[3]
        for e in parse(line)
    ]
    for direction in gone:
        assert (once[:, :4] @ direction).abs().max() < 1e-4
    if "prompt" in line:
        assert torch.equal(once[:, 4:], activations()[:, 4:])


def test_units_are_the_largest_activation() -> None:
    scale = float(dictionary().max_activation[3])  # type: ignore[index]
    close(run("3 += 2x")[0], run(f"3 += {2 * scale}")[0])
    close(run("3 = 0 when 4 > 0.5x")[0], run(f"3 = 0 when 4 > {0.5 * float(dictionary().max_activation[4])}")[0])  # type: ignore[index]


def test_half_precision_rows_keep_their_type_and_unedited_ones_their_bits() -> None:
    h = activations(2).to(torch.bfloat16)
    engine = compile_edits(parse("3 = 2"), dictionary())
    out = engine.hooks[SITE](h, forward_info(6, [0, 1]))
    assert out.dtype == torch.bfloat16 and torch.equal(out[0], h[0]) and not torch.equal(out[1], h[1])


def test_gradients_pass_through_the_edit_even_after_inference_mode() -> None:
    engine = compile_edits(parse("3 *= 2; 4 = 1"), dictionary())
    with torch.inference_mode():
        engine.hooks[SITE](activations(), forward_info())
    h = activations().requires_grad_(True)
    engine.hooks[SITE](h, forward_info()).square().sum().backward()
    assert h.grad is not None and h.grad.abs().sum() > 0
    assert len(engine.reports()) == 1


# rows, scopes, gates


def test_rows_of_slot_zero_are_bit_identical_beside_edited_ones() -> None:
    h = activations(4)
    h[0, 0, 0] = -0.0
    engine = compile_sets([parse("3 = 2"), parse("4 += 1; $v -> out")], dictionary(), VECTORS)
    out = engine.hooks[SITE](h, forward_info(6, [0, 1, 0, 2]))
    for row in (0, 2):
        assert torch.equal(out[row].view(torch.int32), h[row].view(torch.int32))
    close(out[1:2], run("3 = 2", h[1:2])[0])
    close(out[3:4], run("4 += 1; $v -> out", h[3:4])[0])
    assert [len(r) for r in engine.reports()] == [0, 1, 0, 2]
    assert engine.hooks[SITE](h, forward_info(6, [0] * 4)) is h
    with pytest.raises(EditError, match="not compiled"):
        engine.hooks[SITE](h, forward_info(6, [0, 1, 2, 3]))


def moved(out: Tensor, h: Tensor) -> list[int]:
    return [t for t in range(h.shape[1]) if not torch.equal(out[0, t], h[0, t])]


@pytest.mark.parametrize(
    ("scope", "tokens"),
    [
        ("all", [0, 1, 2, 3, 4, 5]), ("prompt", [0, 1, 2, 3]), ("generated", [4, 5]), ("last", [3]),
        ("tokens 1..4", [1, 2, 3, 4]), ("token 5", [5]), ("role system", [0, 1]), ("role user", [2, 3]),
        ("role assistant", [4, 5]),
    ],
)  # fmt: skip
def test_scopes_hold_over_prefill_and_decode_steps(scope: str, tokens: list[int]) -> None:
    """Six tokens in one forward, and as a prefill of four and two decode steps: the same tokens move."""
    h, line = activations(), f"3 += 2 at {scope}"
    whole, ((once,),) = run(line)
    assert moved(whole, h) == tokens
    engine = compile_edits(parse(line), dictionary())
    pieces = []
    for first, n in ((0, 4), (4, 1), (5, 1)):
        pieces.append(engine.hooks[SITE](h[:, first : first + n], forward_info(n, prompt=4, first=first)))
    close(torch.cat(pieces, dim=1), whole)
    ((report,),) = engine.reports()
    assert (report.fired, report.seen) == (once.fired, once.seen) == (len(tokens), len(tokens))
    assert report.before == pytest.approx(once.before) and report.after == pytest.approx(once.after)


def test_padding_shifts_nothing_and_is_not_counted() -> None:
    h = activations(2)
    out, reports = run("3 += 2 at tokens 0..1", h, pads=[0, 2])
    assert moved(out[:1], h[:1]) == [0, 1] and moved(out[1:], h[1:]) == [2, 3]
    assert [(r.fired, r.seen) for (r,) in reports] == [(2, 2), (2, 2)]


@pytest.mark.parametrize(("gate", "open_"), [("on step 0", [0]), ("on steps 1..2", [1, 2]), ("on steps 2..", [2, 3])])
def test_agent_steps_open_and_close_row_by_row(gate: str, open_: list[int]) -> None:
    h = activations(4)
    out, reports = run(f"3 += 2 {gate}", h, steps=[0, 1, 2, 3])
    for row in range(4):
        assert torch.equal(out[row], h[row]) == (row not in open_)
        (report,) = reports[row]
        assert (report.fired, report.seen) == (6 if row in open_ else 0, 6)


def test_an_edit_that_never_fired_is_reported() -> None:
    _, ((report,),) = run("3 = 2 when 4 > 1000000")
    assert (report.edit, report.fired, report.seen) == ("3 = 2 when 4 > 1000000", 0, 6)
    assert report.before == report.after


def test_conditions_read_an_earlier_site_of_the_same_pass() -> None:
    held = [dictionary(), dictionary("relu", "resid.0", seed=4)]
    line = "@resid.1: 3 += 2 when 5@resid.0 > 0.5 or 6 > 2 and 7@resid.0 <= #8"
    engine = compile_edits(parse(line), held)
    assert list(engine.hooks) == ["resid.0", "resid.1"]
    for seed in (1, 2):  # the same info for two passes: nothing stale is read
        info, early, late = forward_info(), activations(seed=10 + seed), activations(seed=seed)
        assert engine.hooks["resid.0"](early, info) is early
        out = engine.hooks["resid.1"](late, info)
        a, b = held[1].encode(early)[0], held[0].encode(late)[0]
        want = (a[:, 5] > 0.5) | ((b[:, 6] > 2) & (a[:, 7] <= b[:, 8]))
        assert moved(out, late) == want.nonzero()[:, 0].tolist()
    with pytest.raises(EditError, match="did not run before it"):
        engine.hooks["resid.1"](activations(), forward_info())


def test_conditions_see_the_activation_as_it_arrives() -> None:
    close(run("4 = 0; 3 += 2 when 4 > 0")[0] - run("4 = 0")[0], run("3 += 2 when 4 > 0")[0] - activations())


def test_no_edit_at_all_watches_and_reports_every_request() -> None:
    engine = compile_edits((), dictionary())
    ((_, hook),) = engine.hooks.items()
    h = activations(2)
    assert hook(h, forward_info(6, [1, 1])) is h
    assert engine.reports() == [(), ()] and engine.reports() == []
    assert engine.fingerprint != compile_edits(parse("3 += 0"), dictionary()).fingerprint


def test_unread_reports_do_not_grow_without_end() -> None:
    engine = compile_edits(parse("3 += 2"), dictionary())
    h, info = activations(8, 200), forward_info(200, [1] * 8)
    for _ in range(400):
        engine.hooks[SITE](h, info)
    assert len(engine._passes._passes) < 400 or engine._passes._kept < 1 << 24
    assert engine.reports()[0][0].fired == 400 * 200


# refusals


def bare(**fields: Any) -> Any:
    return dictionary().replace(**fields)


@pytest.mark.parametrize(
    ("line", "held", "options", "says"),
    [
        ("40 = 0", dictionary(), {}, "latent 40 is not in"),
        ("3 = 0 when 40 > 1", dictionary(), {}, "latent 40 is not in"),
        ("3 = 0", None, {}, "names no site"),
        ("3 = 0", [dictionary(), dictionary(site="resid.0")], {}, "names no site"),
        ("3 = 0", [dictionary(), dictionary()], {}, "two dictionaries at resid.1"),
        ("@resid.2: 3 = 0", dictionary(), {}, "no dictionary at resid.2"),
        ("@resid.9: 3 = 0", dictionary(), {"n_layers": 4}, "no site 'resid.9'"),
        ("3 = 0 when 4@resid.9 > 1", dictionary(), {"n_layers": 4}, "no site 'resid.9'"),
        ("3 = 0", dictionary(), {"d_model": 64}, "does not fit this model"),
        ("$x += 1", dictionary(), {}, r"no stored vector \$x"),
        ("$long += 1", dictionary(), {}, r"\$long does not fit"),
        ("$nan += 1", dictionary(), {}, r"\$nan is no direction"),
        ("$zero += 1", dictionary(), {}, r"\$zero is no direction"),
        ("3 += 2x", bare(max_activation=None), {}, "largest activation is not known"),
        ("3 += 2x", bare(max_activation=torch.zeros(M)), {}, "largest activation is not known"),
        ("3 += 2", bare(W_dec=torch.zeros(M, D)), {}, "writes nothing"),
        ("3 = 0 when 4@resid.2 > 1", dictionary(), {}, "comes after resid.1"),
        ("@attn.1: $v += 1 when 3@resid.1 > 1", dictionary(), {}, "comes after attn.1"),
        ("$v += 1; $v -> out", dictionary(), {}, "removes the direction"),
        ("$u -> out; $v -> out at last", dictionary(), {}, "not orthogonal"),
        ("3 = 0", dictionary(), {"topk": "roughly"}, "no such topk mode"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_is_refused(line: str, held: Any, options: dict[str, Any], says: str) -> None:
    vectors = {**VECTORS, "long": torch.ones(D + 1), "zero": torch.zeros(D), "nan": torch.full((D,), float("nan"))}
    with pytest.raises(EditError, match=says):
        compile_edits(parse(line), held, vectors, **options)


def test_edits_that_never_meet_may_treat_a_direction_differently() -> None:
    run("$v += 1 at generated; $v -> out at prompt")
    run("$v += 1 on step 0; $v -> out on steps 1..")


def test_a_role_scope_without_roles_is_refused_and_so_is_another_width() -> None:
    with pytest.raises(EditError, match="no role spans"):
        run("3 = 0 at role user", roles_known=False)
    with pytest.raises(EditError, match="width 7"):
        run("3 = 0", activations(d=7))


def test_the_fingerprint_covers_edits_dictionary_and_vectors() -> None:
    def of(line: str = "$v += 1; 3 = 0", held: Any = None, vectors: Any = VECTORS) -> str:
        return compile_edits(parse(line), held or dictionary(), vectors).fingerprint

    others: Sequence[str] = [of("$v += 1; 3 = 1"), of(held=dictionary(seed=9)), of(vectors={"v": VECTORS["u"]})]
    assert len({of(), *others}) == 4
    assert of() == of(vectors={**VECTORS, "unused": torch.ones(D)})
