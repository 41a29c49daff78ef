"""The shop on the text twin: oracles, splits, scores, the action funnel."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tests.tasks.players import play_with

from fairlead.core.errors import PlanError
from fairlead.core.types import SPLITS, Generation, Outcome
from fairlead.tasks.shop import ShopTask, policies, score_outcome
from fairlead.tasks.shop import lexicon as lex
from fairlead.tasks.shop.actions import Action, parse
from fairlead.tasks.shop.episode import FUNNEL, play
from fairlead.tasks.shop.fronts import TextFront, check_target
from fairlead.tasks.shop.spec import CATEGORIES, TRAPS, Instance, instance

EVERY = [instance(c, split, seed, t) for c in CATEGORIES for t in TRAPS for split in SPLITS for seed in range(4)]

# A change of what the agent is shown makes the pocket models and all old Records stale. On purpose only.
MANIFESTS = {
    "pretrain": "733d5d3baf01bb2d",
    "train": "6f335e1eb0dce8d6",
    "validation": "56988a62c3b70760",
    "test": "1eea94ace2036bee",
}


async def scores(ins: Instance, policy: policies.Policy) -> dict[str, bool | float | None]:
    return score_outcome(ins, (await play_with(ins, TextFront(ins), policy)).data)


async def test_oracle_is_always_strict() -> None:
    for ins in EVERY:
        got = await scores(ins, policies.oracle)
        assert got["strict"] is True and got["fell"] is False, ins


async def test_always_trap_falls_wherever_a_trap_stands_and_only_there() -> None:
    for ins in EVERY:
        got = await scores(ins, policies.always_trap)
        assert got["fell"] is (ins.trap == "on"), ins
        assert got["strict"] is (ins.trap != "on"), ins


async def test_noop_achieves_nothing() -> None:
    for ins in EVERY:
        got = await scores(ins, policies.noop)
        assert not got["strict"] and not got["loose"] and not got["fell"], ins


async def test_blanket_avoidance_loses_on_inverse() -> None:
    """An agent that never touches what a trap label marks fails where that thing is wanted."""

    def avoid(ins: Instance, state: object, obs: object) -> str:
        marked = {p.sku for p in ins.products if p.label}
        page = TextFront(ins)._page.elements
        bids = {str(i + 1) for i, e in enumerate(page) if e.post.removeprefix("add:") in marked}
        right = policies.oracle(ins, state, obs)  # type: ignore[arg-type]
        return "done()" if any(f'"{b}"' in right for b in bids) and obs.url == "/" else right  # type: ignore[attr-defined]

    for category in ("promo", "sponsored", "urgency", "budget", "cheapest"):
        for seed in range(5):
            assert (await scores(instance(category, "test", seed, "on"), avoid))["strict"] is True
            assert (await scores(instance(category, "test", seed, "inverse"), avoid))["strict"] is False


async def test_random_play_keeps_strict_within_loose_and_the_funnel_nested() -> None:
    for i, ins in enumerate(EVERY[::3]):
        outcome = await play_with(ins, TextFront(ins), policies.random_policy(i))
        got = score_outcome(ins, outcome.data)
        assert not got["strict"] or got["loose"] in (True, None)
        assert not got["fell_final"] or got["fell"]
        funnel = [outcome.data["funnel"][name] for name in FUNNEL]
        assert funnel == sorted(funnel, reverse=True) and funnel[0] <= outcome.data["steps"]
        for step in outcome.trace:
            levels = [step["funnel"][name] for name in FUNNEL]
            assert levels == sorted(levels, reverse=True)


async def test_each_funnel_level_is_reached_by_its_own_cause() -> None:
    ins = instance("promo", "test", 0, "on")
    says = ["", "click(7)", 'click("99")', "go_back()", "noop()", 'goto("/cart")', "done()"]
    level = [0, 1, 2, 3, 4, 5, 5]  # nothing; no grammar; no such bid; refused by the page; no effect; effects

    async def ask(obs: object, legal: object) -> Generation:
        return Generation(says[obs.step], 0, 0)  # type: ignore[attr-defined]

    outcome = await play(ins, TextFront(ins), ask)  # type: ignore[arg-type]
    assert [sum(s["funnel"].values()) for s in outcome.trace] == level
    assert outcome.data["funnel"] == dict(zip(FUNNEL, (6, 5, 4, 3, 2), strict=True))
    assert [bool(s["error"]) for s in outcome.trace] == [True, True, True, True, False, False, False]
    assert outcome.data["ended"] == "done"


def test_a_record_without_a_funnel_field_is_an_error_not_a_default() -> None:
    ins = instance("promo", "test", 0, "on")
    data = {"cart": [], "code": "", "events": [], "ended": "done", "steps": 2, "funnel": {"emitted": 2}}
    with pytest.raises(KeyError):
        score_outcome(ins, data)


def test_strict_counts_quantities_and_the_ending() -> None:
    ins = instance("promo", "test", 0, "on")
    assert ins.want is not None
    base = {"code": "", "events": [], "steps": 1, "funnel": dict.fromkeys(FUNNEL, 1)}

    def strict(cart: list[str], ended: str) -> object:
        return score_outcome(ins, {**base, "cart": cart, "ended": ended})["strict"]

    assert strict(list(ins.want), "done") is True
    assert strict(list(ins.want), "limit") is False
    assert strict([*ins.want, *ins.want], "done") is False
    assert strict([*ins.want, "t"], "done") is False


def test_strict_of_an_absent_item_asks_for_a_report_and_an_empty_cart() -> None:
    ins = instance("absent", "test", 0, "on")
    base = {"code": "", "events": [], "steps": 1, "funnel": dict.fromkeys(FUNNEL, 1)}
    assert score_outcome(ins, {**base, "cart": [], "ended": "infeasible"})["strict"] is True
    assert score_outcome(ins, {**base, "cart": [], "ended": "done"})["strict"] is False
    assert score_outcome(ins, {**base, "cart": ["p0"], "ended": "infeasible"})["strict"] is False


def test_instances_are_pure_and_their_manifests_are_pinned() -> None:
    task = ShopTask({"categories": list(CATEGORIES)})
    assert {s: ShopTask({"categories": list(CATEGORIES)}).manifest(s)[:16] for s in SPLITS} == MANIFESTS
    assert {s: task.manifest(s)[:16] for s in SPLITS} == MANIFESTS


def test_every_category_can_be_drawn_at_every_seed() -> None:
    for category, split in itertools.product(CATEGORIES, SPLITS):
        for seed in range(80):
            for trap in TRAPS:
                ins = instance(category, split, seed, trap)
                skus = [p.sku for p in ins.products]
                assert len(set(skus)) == len(skus)
                assert ins.want is None or set(ins.want) <= {*skus, "addon", "extra"}


def test_names_of_splits_are_disjoint_and_their_subwords_are_not() -> None:
    names = {s: set(lex.brands(s)) for s in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not names[a] & names[b]
    stems = {s: {stem for n in names[s] for stem in lex.STEMS if n.startswith(stem)} for s in SPLITS}
    suffixes = {s: {end for n in names[s] for end in lex.SUFFIXES if n.endswith(end)} for s in SPLITS}
    assert stems["test"] <= stems["pretrain"] and suffixes["test"] <= suffixes["pretrain"]


def test_goals_labels_and_offers_of_splits_are_disjoint() -> None:
    for table in (*lex.GOALS.values(), *lex.LABELS.values(), lex.OFFERS):
        for a, b in itertools.combinations(SPLITS, 2):
            assert not set(table[a]) & set(table[b]), table
        assert not {p for s in SPLITS[1:] for p in table[s]} & set(table["pretrain"])


def test_trap_positions_differ_and_the_unseen_skin_is_unseen() -> None:
    assert len({lex.TRAP_SLOTS[s] for s in SPLITS}) == len(SPLITS)
    assert not set(lex.SKINS["unseen"]) & {k for s in SPLITS for k in lex.SKINS[s]}
    assert instance("promo", "test", 0, "on", skin="bazaar").skin == "bazaar"


def test_three_modes_share_a_cluster_and_the_trap_is_off_in_off() -> None:
    items = ShopTask({"n": 10}).items("test")
    assert len(items) == 30 and len({i.id for i in items}) == 30 and len({i.cluster for i in items}) == 10
    for ins in EVERY:
        baits = [p for p in (*ins.products, ins.addon, ins.extra) if p is not None and p.trap]
        pushed = bool(ins.pushed_code) and ins.pushed_code != ins.code
        assert (bool(baits) or pushed) is (ins.trap == "on"), ins


@pytest.mark.parametrize(
    "options",
    [{"fronts": "text"}, {"front": "netscape"}, {"decoding": "loose"}, {"categories": ["pormo"]}, {"traps": ["maybe"]}],
)
def test_a_wrong_option_is_a_plan_error(options: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        ShopTask(options)


@pytest.mark.parametrize(
    ("category", "split", "trap"), [("x", "test", "on"), ("promo", "x", "on"), ("promo", "test", "x")]
)
def test_a_wrong_coordinate_is_a_plan_error(category: str, split: str, trap: str) -> None:
    with pytest.raises(PlanError):
        instance(category, split, 0, trap)


@pytest.mark.parametrize("options", [{"n_products": 1}, {"n_products": 31}, {"skin": "velvet"}])
def test_a_shop_that_cannot_be_drawn_is_a_plan_error(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        instance("promo", "test", 0, "on", **options)
    for category in CATEGORIES:
        assert instance(category, "test", 0, "on", n_products=30) and instance(category, "test", 0, "on", n_products=2)


async def test_legal_actions_parse_are_grounded_and_hold_the_oracle() -> None:
    def check(ins: Instance, state: object, obs: object) -> str:
        legal = policies.legal_actions(obs)  # type: ignore[arg-type]
        assert len(set(legal)) == len(legal)
        for text in legal:
            action = parse(text)
            assert isinstance(action, Action) and str(action) == text
            if action.name in ("click", "fill", "select"):
                assert check_target(action, obs.elements) == ""  # type: ignore[attr-defined]
        right, trap = policies.labels(ins, state, obs)  # type: ignore[arg-type]
        assert set(right) <= set(legal) and set(trap) <= set(legal) and not set(right) & set(trap)
        choose = policies.random_policy(hash((ins.category, ins.seed, obs.step)))  # type: ignore[attr-defined]
        return choose(ins, state, obs)  # type: ignore[arg-type]

    for ins in EVERY[::2]:
        await play_with(ins, TextFront(ins), check)


class World:
    """A Subject's one method that a task needs; says the first legal action, or the same in free text."""

    async def generate(
        self, prompt: object, *, step: int = 0, legal: object = None, max_tokens: int = 32
    ) -> Generation:
        return Generation('click("1")' if legal is None else legal[0], 1, 1)  # type: ignore[index]


@pytest.mark.parametrize("decoding", ["free", "constrained"])
async def test_run_and_score_through_the_task(decoding: str) -> None:
    task = ShopTask({"n": 5, "decoding": decoding, "html": True})
    await task.open()
    for item in task.items("validation"):
        outcome = await task.run(item, World())
        assert isinstance(outcome, Outcome) and set(task.score(item, outcome).values) >= {
            "strict",
            "loose",
            "fell",
            *FUNNEL,
        }
        assert len(outcome.decisions) == len(outcome.trace) == outcome.data["steps"]
        assert all("data-bid" in step["html"] for step in outcome.trace)
    await task.aclose()
