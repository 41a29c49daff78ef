"""Plans: what they refuse, what they hash, what they expand to."""

import textwrap

import pytest

from fairlead.core.errors import PlanError, UnknownName
from fairlead.core.plan import Facts, check_plan, components, parse_plan, plan_from_json, read_plan

PLAN = textwrap.dedent("""
    question = "Does editing beat prompting?"
    task = "shop"
    model = ["pocket/a", "pocket/b"]
    dictionary = ["pocket/a@resid.2", "pocket/b@resid.2"]
    reference = "pocket/l"
    arms = ["none", "prompt", "feature", "prompt+feature", "control.wrong_sign"]
    primary = "strict"
    smallest_effect = 0.10
    n = 20
    where = {trap = "on"}
    decoding = ["constrained", "free"]
    seeds = [0, 1]
    budget = {tuning_trials = 20, flops = 1e13}
    [task_options]
    front = "text"
    [options.prompt]
    pool = ["a", "b"]
    [options."control.wrong_sign"]
    strength = 2
""")


def edited(old, new):
    assert old in PLAN
    return parse_plan(PLAN.replace(old, new))


def keys(plan, facts=None):
    return {(t.arm, t.model, t.decoding, t.seed): t.key for t in plan.trials(facts)}


def test_a_plan_is_read():
    plan = parse_plan(PLAN)
    assert plan.models == ("pocket/a", "pocket/b") and plan.budget.flops == 1e13 and plan.claim == "feature"
    assert plan.dictionary_of("pocket/b") == "pocket/b@resid.2" and plan.dictionary_of("pocket/l") is None
    assert parse_plan(PLAN.replace('["pocket/a", "pocket/b"]', '"m"').replace(
        'dictionary = ["pocket/a@resid.2", "pocket/b@resid.2"]', 'dictionary = "d"')).models == ("m",)  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("smallest_effect", "smalest_effect", "did you mean 'smallest_effect'"),
        ("tuning_trials", "tuning_trails", "did you mean 'tuning_trials'"),
        ("[options.prompt]", "[options.promt]", "did you mean 'prompt'"),
        ('question = "Does editing beat prompting?"', "", "no question"),
        ("n = 20", 'n = "twenty"', "whole number"),
        ("n = 20", "n = true", "whole number"),
        ("n = 20", "n = 0", "at least 1"),
        ("n = 20", "n = ", "not TOML"),
        ('"free"', '"greedy"', "unknown decoding"),
        ('"none", "prompt"', '"none", "Prompt!"', "cannot be read"),
        ('"none", "prompt"', '"none", "none"', "twice"),
        ('"none", "prompt"', '"reference", "prompt"', "name the model instead"),
        ('"pocket/b@resid.2"]', "]", "one dictionary per model"),
        ("n = 20", 'n = 20\nclaim = "vector"', "judged but not run"),
        ("n = 20", 'n = 20\nbeat = ["vector"]', "judged but not run"),
        ('[options."control.wrong_sign"]', "[options.control.wrong_sign]", "quote it"),
        ("smallest_effect = 0.10", "smallest_effect = -0.1", "zero or more"),
    ],
)
def test_what_it_refuses(old, new, said):
    with pytest.raises(PlanError, match=said):
        edited(old, new)


def test_a_missing_file_and_unknown_names(tmp_path):
    with pytest.raises(PlanError, match="cannot read"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(UnknownName, match="no task named 'shopp'"):
        check_plan(edited('task = "shop"', 'task = "shopp"'))
    with pytest.raises(UnknownName, match="no method named 'steer_it'"):
        check_plan(parse_plan(PLAN.replace('"none", "prompt"', '"steer_it", "prompt"')))


def test_components():
    assert [str(c) for c in components("prompt+control.wrong_sign")] == ["prompt", "control.wrong_sign"]
    assert components("reference")[0].name == "none"


def test_expansion_is_complete_pure_and_unique():
    plan = parse_plan(PLAN)
    assert len(plan.trials()) == 2 * 5 * 2 * 2 + 4 and plan.trials() == parse_plan(PLAN).trials()
    assert len({t.key for t in plan.trials()}) == len(plan.trials())
    assert plan.options_of(components("control.wrong_sign")[0]) == {"strength": 2}


def test_the_hash_sees_everything_and_survives_json():
    import json

    plan = parse_plan(PLAN)
    assert plan_from_json(json.loads(plan.to_json())).hash == plan.hash
    assert edited("beat prompting?", "beat prompting ").hash != plan.hash
    assert plan.limited(5).n == 5 and plan.limited(5).hash != plan.hash and plan.limited(None) is plan
    assert plan.run_id("shop") == f"shop-{plan.hash[:8]}"
    # the order of keys and the layout do not count
    assert parse_plan("smallest_effect = 0.1\n" + PLAN.replace("smallest_effect = 0.10\n", "")).hash == plan.hash


def test_unrelated_changes_keep_keys():
    old = keys(parse_plan(PLAN))
    for new in (
        keys(edited("beat prompting?", "win?")),
        keys(edited('"none", "prompt"', '"none", "vector", "prompt"')),
        keys(edited("smallest_effect = 0.10", "smallest_effect = 0.20")),
        keys(edited('["pocket/a", "pocket/b"]', '["pocket/a", "pocket/c"]')),
    ):
        assert all(new[where] == key for where, key in old.items() if where[1] != "pocket/b")


@pytest.mark.parametrize(
    ("old", "new"),
    [("n = 20", "n = 21"), ('"text"', '"chromium"'), ("flops = 1e13", "flops = 2e13"), ('"a", "b"', '"a", "c"')],
)
def test_related_changes_make_new_keys(old, new):
    before, after = keys(parse_plan(PLAN)), keys(edited(old, new))
    changed = {where[0] for where in before if before[where] != after[where]}
    assert changed == ({"prompt", "prompt+feature"} if "a" in old and "b" in old and "1" not in old else
                       {w[0] for w in before})  # fmt: skip


def test_facts_are_in_the_key():
    plan = parse_plan(PLAN)
    facts = Facts(
        manifests={"test": "1"},
        weights={"pocket/a": "w"},
        dictionaries={"pocket/a@resid.2": "d"},
        sources={"feature": "s"},
        siblings={"control.wrong_sign": ("feature",)},
        without_dictionary=frozenset({"none", "prompt", "reference"}),
    )
    base = keys(plan, facts)

    def changed(**new):
        other = keys(plan, Facts(**{**facts.__dict__, **new}))
        return {(w[0], w[1]) for w in base if base[w] != other[w]}

    assert changed(manifests={"test": "2"}) == {(w[0], w[1]) for w in base}
    assert {m for _, m in changed(weights={"pocket/a": "x"})} == {"pocket/a"}
    a = "pocket/a"
    assert changed(dictionaries={"pocket/a@resid.2": "e"}) == {
        ("feature", a), ("prompt+feature", a), ("control.wrong_sign", a)}  # fmt: skip
    assert {arm for arm, _ in changed(sources={"feature": "t"})} == {"feature", "control.wrong_sign"}


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "n = " + "9" * 5000])
def test_endless_brackets_and_numbers_are_no_plan(text):
    with pytest.raises(PlanError, match="not TOML"):
        parse_plan(text)


FAIR = """
    baselines = ["prompt"]
    n_arms = {control = 5}
    amortise = 0.2
    prices = {usd_per_gpu_second = 0.001}
    stop = {rule = "anytime", alpha = 0.05}
    power = 0.9
    protocol = {origin = "made up", started = 2026-11-21}
    not_applicable = {lora = "no weights to train", "gcg.fluent" = "no gradients"}
"""


def fair(old="", new=""):
    assert old in FAIR
    return parse_plan(textwrap.dedent(FAIR.replace(old, new)) + PLAN)


def test_the_keys_of_a_fair_fight():
    import json

    plan, plain = fair(), parse_plan(PLAN)
    assert plan.baseline_arms == ("prompt",) and plan.amortise == 0.2 and plan.power == 0.9
    assert (plan.n_of("control.wrong_sign"), plan.n_of("feature"), plan.n_of("prompt+feature")) == (5, 20, 20)
    assert plan_from_json(json.loads(plan.to_json())).hash == plan.hash != plain.hash
    absent = {t.arm for t in plan.trials()} - {t.arm for t in plain.trials()}
    assert absent == {"lora", "gcg.fluent"} and plan.run_arms == plain.run_arms == plain.arms
    # caps and shares are in the keys of the arms that they touch
    old, new = keys(plain), keys(fair("amortise = 0.2", "amortise = 0.10"))
    assert {w[0] for w in old if old[w] != new[w]} == {"control.wrong_sign"}
    assert all(old[w] != keys(plan)[w] for w in old)


def test_the_baselines_that_are_meant_when_none_are_named():
    arms = ("none", "prompt", "vector", "feature", "prompt+feature", "prompt+vector", "control.noise", "stress.dose_2")
    from dataclasses import replace

    plan = replace(parse_plan(PLAN), arms=arms)
    assert plan.baseline_arms == ("prompt", "vector", "prompt+vector")
    assert replace(plan, not_applicable={"vector": "why"}).baseline_arms == ("prompt", "prompt+vector")


def test_keys_that_are_not_given_leave_the_hash_of_older_plans_alone():
    assert not {"baselines", "power", "protocol", "amortise"} & set(parse_plan(PLAN).to_json().split('"'))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('lora = "no weights to train"', 'lora = ""', "no reason"),
        ('lora = "no weights to train"', 'feature = "why"', "does not apply"),
        ('lora = "no weights to train"', '"Lora!" = "why"', "cannot be read"),
        ('baselines = ["prompt"]', 'baselines = ["lora"]', "does not apply"),
        ('baselines = ["prompt"]', 'baselines = ["vector"]', "not run"),
        ('baselines = ["prompt"]', 'baselines = ["feature"]', "among its baselines"),
        ("{control = 5}", "{contrl = 5}", "did you mean 'control'"),
        ("{control = 5}", "{control = 0}", "n_arms.control"),
        ("0.001", "-1", "prices.usd_per_gpu_second"),
        ('"anytime"', '"peek"', "stopping rule"),
        ("alpha = 0.05", "alpha = 5", "stop.alpha"),
        ("alpha =", "alfa =", "did you mean 'alpha'"),
        ("power = 0.9", "power = 1.0", "power"),
        ("amortise = 0.2", "amortise = 2", "amortise"),
    ],
)
def test_what_a_fair_fight_refuses(old, new, said):
    with pytest.raises(PlanError, match=said):
        fair(old, new)
