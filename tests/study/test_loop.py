"""The trial loop on a toy task: what is fitted, recorded, charged and refused."""

import json
from dataclasses import replace

import pytest

from fairlead.core.errors import BrowserError, LoadError, PlanChanged, PlanError, RecordError
from fairlead.core.fake import FakeSubject
from fairlead.core.keys import derive_seed
from fairlead.core.plan import parse_plan
from fairlead.core.records import Run, Store
from fairlead.study import run_study
from fairlead.study.items import choose


@pytest.fixture
def world(toys):
    import world

    return world


@pytest.fixture
def plan(world):
    return replace(parse_plan(world.PLAN), models=("toy/a",), dictionaries=(None,), seeds=(0,))


def go(plan, path, world, **more):
    return run_study(plan, path, load_model=world.load_model, **more)


def by(run, arm, decoding="constrained"):
    return [r for r in run.records if (r.arm, r.decoding) == (arm, decoding)]


def state(run, arm, decoding="constrained"):
    return next(s for s in run.trials if (s.trial.arm, s.trial.decoding) == (arm, decoding))


def test_a_study(plan, world, tmp_path):
    steps = []
    run = go(plan, tmp_path / "r", world, progress=steps.append, text=world.PLAN)
    bare, tuned = by(run, "toy_line"), by(run, "toy_line.tuned")
    assert len(bare) == len(tuned) == 22 and (tmp_path / "r" / "plan.toml").read_text() == world.PLAN
    on = {r.item: r.score["strict"] for r in tuned if r.strata["trap"] == "on" and r.score}
    assert all(on.values()) and len(on) == 10
    assert not any(r.score["strict"] for r in bare if r.strata["trap"] == "on" and r.score)
    broken = [r for r in run.records if r.error]
    assert {r.item for r in broken} == {"test/3/on"} and broken[0].score is None
    assert broken[0].error == "run: RuntimeError: this instance is broken"
    assert all(r.score["unmeasured"] is None for r in run.records if r.score)
    assert [s.phase for s in steps][-1] in ("done", "not_applicable") and steps[0].trials == len(run.trials)
    assert json.loads((tmp_path / "r" / "fitted" / tuned[0].trial / "describe.json").read_text())["line"] == "careful"
    trace = run.read_trace(tuned[0].trace)
    assert trace["steps"][0]["observation"] == "a page" and trace["steps"][0]["legal"] == ["look", "buy", "bait"]
    assert len(trace["steps"][0]["logprobs"]) == 3 and trace["arm"] == "toy_line.tuned"


def test_not_applicable_failed_and_dependent_arms(plan, world, tmp_path):
    arms = ("toy_line", "toy_line.same", "toy_line.tuned", "toy_line.absent", "toy_line.broken")
    run = go(replace(plan, arms=arms), tmp_path / "r", world)
    assert (state(run, "toy_line.absent").status, state(run, "toy_line.absent").reason) == (
        "not_applicable",
        "needs a cloud",
    )
    for mode in plan.decoding:
        assert state(run, "toy_line.broken", mode).status == "failed"
        assert "no fit today" in state(run, "toy_line.broken", mode).reason
    assert run.fitted[state(run, "toy_line.same").trial.key] == {"line": "careful!"}  # sibling was fitted first
    with pytest.raises(PlanError, match="add 'toy_line.tuned'|needs arm"):
        alone = replace(plan, arms=("toy_line", "toy_line.same"), claim="toy_line.same")
        failed = state(go(alone, tmp_path / "alone", world), "toy_line.same")
        assert failed.status == "failed"
        raise PlanError(failed.reason)


def test_arms_that_the_plan_says_do_not_apply_and_arms_on_fewer_instances(plan, world, tmp_path):
    arms = ("toy_line", "toy_line.tuned", "toy_line.same", "toy_wide")
    absent = {"toy_wide": "no dictionary", "unheard_of": "not written"}
    plan = replace(plan, arms=arms, not_applicable=absent, n_arms={"toy_line": 5})
    run = go(plan, tmp_path / "r", world)
    assert {(s.trial.arm, s.status, s.reason) for s in run.trials if s.status != "complete"} == {
        ("toy_wide", "not_applicable", "no dictionary"), ("unheard_of", "not_applicable", "not written")}  # fmt: skip
    assert len({r.cluster for r in by(run, "toy_line")}) == 5 and state(run, "toy_line").planned == 10
    assert not by(run, "toy_wide") and len(run.trials) == 5 * len(plan.decoding)


def test_a_chain_is_fitted_on_what_stands_before_it(plan, world, tmp_path):
    plan = replace(plan, arms=("toy_line", "toy_line.tuned", "toy_line.tuned+toy_line.tuned"))
    run = go(plan, tmp_path / "r", world)
    key = state(run, "toy_line.tuned+toy_line.tuned").trial.key
    parts = run.fitted[key]["parts"]
    assert parts[0]["line"] == "hurry" and run.ledgers[key]["fit"]["tuning_trials"] == 2  # one budget for both
    assert parts[1]["line"] == "hurry"  # each had one attempt, its half


def test_one_fit_serves_both_decodings(plan, world, tmp_path):
    run = go(plan, tmp_path / "r", world)
    one, two = (state(run, "toy_line.tuned", mode).trial.key for mode in plan.decoding)
    assert run.ledgers[two]["fit_shared_from"] == one and run.fitted[one] == run.fitted[two]
    assert run.ledgers[one]["fit"] == run.ledgers[two]["fit"]


def test_what_is_charged(plan, world, tmp_path):
    meters = []

    def load(ref):
        meters.append(world.load_model(ref))
        return meters[-1]

    run = run_study(plan, tmp_path / "r", load_model=load)
    total = meters[0].meter.snapshot()
    fits = [d["fit"] for d in run.ledgers.values() if d["fit_shared_from"] is None]
    assert sum(d["run"]["forwards"] for d in run.ledgers.values()) + sum(f["forwards"] for f in fits) == total.forwards
    flops = sum(d["run"]["flops"] for d in run.ledgers.values()) + sum(f["flops"] for f in fits)
    assert flops == pytest.approx(total.flops)
    tokens = sum(r.cost.prompt_tokens for r in run.records) + sum(f["prompt_tokens"] for f in fits)
    assert tokens == total.prompt_tokens
    tuned = run.ledgers[state(run, "toy_line.tuned").trial.key]
    assert tuned["fit"]["tuning_trials"] == 2 and tuned["over_budget"] is False and tuned["errors"] == 1


def test_a_flop_cap_stops_the_fit(plan, world, tmp_path):
    run = go(replace(plan, budget=replace(plan.budget, flops=10.0)), tmp_path / "r", world)
    tuned = state(run, "toy_line.tuned")
    assert run.fitted[tuned.trial.key] == {"line": ""}  # the first attempt was cut short; the best so far is kept
    assert run.ledgers[tuned.trial.key]["over_budget"] is True


def test_a_dictionary_of_unknown_cost_is_reckoned_at_the_high_end(plan, world, tmp_path):
    class Silent:
        name, site, d_in, n_features, fingerprint, training_flops = "d", "resid.0", 8, 8, "f", None

    def load(ref):
        subject = world.load_model(ref)
        subject.d_model = 8
        return subject

    def over(high):
        prices = {} if high is None else {"dictionary_flops_high": high}
        wide = replace(plan, arms=("toy_line", "toy_wide"), claim="toy_wide", dictionaries=("d",), prices=prices)
        run = run_study(wide, tmp_path / str(high), load_model=load, load_dictionary=lambda _: Silent())
        ledger = run.ledgers[state(run, "toy_wide").trial.key]
        assert ledger["dictionary"]["share_flops"] is None  # unknown stays unknown
        return ledger["over_budget"]

    assert [over(None), over(1e9), over(1e12)] == [False, False, True]  # the cap is 1e9, the share a tenth


@pytest.mark.parametrize("variant", ["greedy", "stubborn"])
def test_an_arm_that_ignores_the_cap_is_stopped_and_marked(plan, world, tmp_path, variant):
    arm = f"toy_line.{variant}"
    plan = replace(plan, arms=("toy_line", "toy_line.tuned", arm), decoding=("constrained",))
    run = go(replace(plan, budget=replace(plan.budget, flops=2e4)), tmp_path / "r", world)
    stopped = state(run, arm)
    assert stopped.status == "over_budget" and "spent its FLOPs" in stopped.reason and not by(run, arm)
    ledger = run.ledgers[stopped.trial.key]
    assert ledger["over_budget"] is True and ledger["fit"]["flops"] > 2e4 and ledger["fit"]["seconds"] > 0
    assert state(run, "toy_line").status == "complete"  # the others go on, and are not refused what they run on
    before = (tmp_path / "r" / "ledger" / f"{stopped.trial.key}.json").read_bytes()
    go(replace(plan, budget=replace(plan.budget, flops=2e4)), tmp_path / "r", world)
    assert (tmp_path / "r" / "ledger" / f"{stopped.trial.key}.json").read_bytes() == before  # it is not tried again


def test_chunks_are_what_the_plan_says(plan, world, tmp_path):
    subjects = []

    def load(ref):
        subjects.append(world.load_model(ref))
        return subjects[-1]

    run_study(replace(plan, arms=("toy_line",), claim="toy_line", chunk=5), tmp_path / "r", load_model=load)
    assert max(map(len, subjects[0].batches)) == 5 and subjects[0].batches[0] == (0, 1, 2, 3, 4)


def test_running_again_does_nothing(plan, world, tmp_path):
    go(plan, tmp_path / "r", world)
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    calls = []

    def policy(*args):
        calls.append(args)
        return ""

    run_study(plan, tmp_path / "r", load_model=lambda ref: FakeSubject(policy, name=ref))
    after = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    stale = {p for p in before if p.name in ("trials.json", "facts.json", "sessions.jsonl")}
    assert {p: after[p] for p in before if p not in stale} == {p: before[p] for p in before if p not in stale}


def test_complete_trials_are_kept_under_another_question(plan, world, tmp_path):
    old = go(plan, tmp_path / "old", world)
    new = go(replace(plan, question="Worded better?"), tmp_path / "new", world, adopt=[tmp_path / "old"])
    assert new.records == old.records and new.plan.hash != old.plan.hash  # even the seconds: nothing ran again


def test_a_changed_plan_is_a_new_study(plan, world, tmp_path):
    go(plan, tmp_path / "r", world)
    with pytest.raises(PlanChanged):
        go(replace(plan, smallest_effect=0.2), tmp_path / "r", world)
    with pytest.raises(PlanChanged):
        go(plan, tmp_path / "r", world, limit=3)
    assert len(go(plan, tmp_path / "few", world, limit=3).records) < len(Run.open(tmp_path / "r").records)


@pytest.mark.parametrize("fault", ["model", "method", "items", "width"])
def test_nothing_is_written_when_the_start_is_wrong(plan, world, tmp_path, fault):
    def load(ref):
        if fault == "model":
            raise LoadError("weights are cut short")
        subject = world.load_model(ref)
        subject.d_model = 8
        return subject

    class Narrow:
        name, site, d_in, n_features, fingerprint = "d", "resid.0", 4, 8, "f"

    wrong = {
        "model": plan,
        "method": replace(plan, arms=("toy_line", "toy_claims")),
        "items": replace(plan, n=50, task_options={"n": 10}),
        "width": replace(plan, arms=("toy_line", "toy_wide"), dictionaries=("d",)),
    }[fault]
    with pytest.raises((LoadError, PlanError)) as caught:
        run_study(wrong, tmp_path / "r", load_model=load, load_dictionary=lambda _: Narrow())
    said = {"model": "cut short", "method": "makes a claims", "items": "too few items", "width": "does not fit"}
    assert said[fault] in str(caught.value) and not (tmp_path / "r").exists()


def test_a_full_disk_stops_the_study_and_it_resumes(plan, world, tmp_path, monkeypatch):
    append, count = Store.append, []

    def full(self, records):
        count.append(1)
        if len(count) > 3:
            raise RecordError("the disk is full while recording")
        append(self, records)

    monkeypatch.setattr(Store, "append", full)
    with pytest.raises(RecordError, match="disk is full"):
        go(plan, tmp_path / "r", world)
    monkeypatch.undo()
    again = {(r.trial, r.item): replace(r, cost=None) for r in go(plan, tmp_path / "r", world).records}
    whole = {(r.trial, r.item): replace(r, cost=None) for r in go(plan, tmp_path / "w", world).records}
    assert again == whole


def test_a_lost_browser_stops_the_study_and_records_nothing_of_it(plan, world, tmp_path, monkeypatch):
    from fairlead.tasks.toy import ToyTask

    run, gone = ToyTask.run, []

    async def lost(self, item, subject):
        if item.split == "test" and int(item.data["i"]) >= 5:
            gone.append(item.id)
            raise BrowserError("the browser is gone")
        return await run(self, item, subject)

    monkeypatch.setattr(ToyTask, "run", lost)
    with pytest.raises(BrowserError, match="gone"):
        go(plan, tmp_path / "r", world)
    found = Run.open(tmp_path / "r").records
    assert gone and len(found) == 10 and all("gone" not in (r.error or "") for r in found)
    monkeypatch.undo()


def test_traces_are_kept_for_the_first_clusters(plan, world, tmp_path):
    run = go(replace(plan, traces=2), tmp_path / "r", world)
    assert {r.cluster for r in run.records if r.trace} == {"test/0", "test/1"}


def test_fit_seeds_come_from_content(plan, world, tmp_path, monkeypatch):
    seeds = {}
    from fairlead.methods import toy_line

    plain = toy_line.ToyLine.fit

    async def spy(self, ctx):
        seeds[self.variant] = ctx.seed
        assert not hasattr(ctx, "test") and {i.split for i in (*ctx.train, *ctx.validation)} == {"train", "validation"}
        return await plain(self, ctx)

    monkeypatch.setattr(toy_line.ToyLine, "fit", spy)
    go(replace(plan, arms=("toy_line", "toy_line.tuned")), tmp_path / "r", world)
    assert seeds["tuned"] == derive_seed("fit", "toy", "toy/a", "toy_line.tuned", 0)


def test_items_are_the_first_clusters(toys):
    from fairlead.tasks.toy import ToyTask

    items = ToyTask({"n": 10, "decoding": "free"}).items("test")
    chosen = choose(items, 4, {"trap": {"off": 1}}, "toy")
    assert [i.id for i in chosen] == ["test/0/on", "test/0/off", "test/1/on", "test/2/on", "test/3/on"]
    with pytest.raises(PlanError, match="too few items"):
        choose(items, 11, {}, "toy")
