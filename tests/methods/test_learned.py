"""lora and reft: they learn what is planted for them, gain nothing where nothing is, and leave no trace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.features import planted
from tests.lm.conftest import LEGAL, PAGES
from tests.lm.test_training import eager
from tests.lm.tiny import write
from tests.methods.conftest import Bench
from torch.utils.flop_counter import FlopCounterMode

from fairlead.core import plugins
from fairlead.core.errors import LoadError, NotApplicable
from fairlead.core.fake import FakeSubject
from fairlead.core.ledger import Allowance, Budget, Meter
from fairlead.core.types import Message
from fairlead.lm.load import load
from fairlead.lm.training import target_losses
from fairlead.methods.lora import Finetuning, Layers, linear_layers
from fairlead.methods.reft import Intervention, as_edits, spread
from fairlead.steering import apply

LORA = {"ranks": [4], "lrs": [1e-2], "epochs": 4, "batch": 4}
REFT = {"sites": ["resid.1"], "ranks": [2], "lrs": [3e-2], "epochs": 8, "batch": 4}
ARMS = [("lora", None, LORA), ("reft", None, REFT), ("reft", "relu", REFT)]


async def fit(bench: Bench, name: str, variant: str | None, options: Any, **change: Any) -> Any:
    return await plugins.get("methods", name)(variant, options).fit(bench.context(options, **change))


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def untouched(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(before) and all(torch.equal(now[n], before[n]) for n in before)


@pytest.mark.parametrize(("name", "variant", "options"), ARMS)
async def test_the_planted_behaviour_is_learned_and_the_model_stays_as_it_was(
    bench: Bench, name: str, variant: str | None, options: Any
) -> None:
    before, kinds = bits(bench.subject.model), [type(m) for m in bench.subject.model.modules()]
    bare = await bench.play(bench.subject, 8)
    fitted = await fit(bench, name, variant, options, train=planted.items("train", 20))
    about = fitted.describe()
    assert about["validation_score"] > about["tried"][0]["score"] + 0.15
    with fitted.open(bench.subject) as world:
        learned = await bench.play(world, 8)
        assert await bench.play(bench.subject, 8) == bare
    assert all(d["ok"] for d in learned[::2]) and sum(d["ok"] for d in bare[::2]) <= 4  # the lures, one in two
    assert sum(d["ok"] for d in learned) > sum(d["ok"] for d in bare)
    assert await bench.play(bench.subject, 8) == bare
    assert untouched(bench.subject.model, before) and [type(m) for m in bench.subject.model.modules()] == kinds
    assert not hasattr(bench.subject.model, "peft_config")
    assert not any(p.requires_grad for p in bench.subject.model.parameters())


@pytest.mark.parametrize(("name", "variant", "options"), ARMS)
async def test_where_nothing_is_wrong_nothing_is_done(
    bench: Bench, name: str, variant: str | None, options: Any
) -> None:
    """Items whose right action the model always takes, and surely: training can only match doing nothing."""
    calm = [i for i in bench.context({}).train if i.strata["trap"] == "off"]
    quiet = [i for i in bench.context({}).validation if i.strata["trap"] == "off"]
    fitted = await fit(bench, name, variant, {**options, "select": "rollouts"}, train=calm, validation=quiet)
    assert fitted.describe()["tried"][0]["score"] == 1.0 == fitted.describe()["validation_score"]
    with fitted.open(bench.subject) as world:
        assert world is bench.subject


@pytest.mark.parametrize(("name", "variant", "options"), ARMS)
async def test_the_budget_ends_the_training_and_the_best_so_far_is_kept(
    bench: Bench, name: str, variant: str | None, options: Any
) -> None:
    bench.cap = 1
    assert (await fit(bench, name, variant, options)).describe()["settings_left_out"] == 1
    bench.cap, bench.subject.meter = 20, Meter()
    whole = Allowance(Budget(), bench.subject.meter.snapshot, arm="a")
    full = await fit(bench, name, variant, options, budget=whole)
    spent = whole.used_flops()
    tight = Allowance(Budget(flops=spent / 2), bench.subject.meter.snapshot, arm="a")
    half = await fit(bench, name, variant, options, budget=tight)
    assert tight.used_flops() < 0.6 * spent
    assert 1 <= len(half.describe()["tried"][1]["scores"]) < len(full.describe()["tried"][1]["scores"])


@pytest.mark.parametrize(("name", "variant", "options"), ARMS)
async def test_what_cannot_be_trained_is_not_applicable(
    bench: Bench, name: str, variant: str | None, options: Any
) -> None:
    with pytest.raises(NotApplicable, match="not at hand"):
        await fit(bench, name, variant, options, subject=FakeSubject())


async def test_without_peft_the_extra_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(NotApplicable, match=r"fairlead\[lora\]"):
        await fit(bench, "lora", None, LORA)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # in peft itself
async def test_peft_reads_what_was_saved_and_says_the_same(bench: Bench, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    fitted = await fit(bench, "lora", None, {**LORA, "epochs": 1})
    assert fitted.adapter is not None
    fitted.save(tmp_path)
    bench.subject.model.save_pretrained(tmp_path / "base")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = torch.arange(3, 40)[None]
    layers = Layers(bench.subject, fitted.adapter.config)
    with torch.no_grad():
        layers.put(fitted.adapter.tensors)
        plain = bench.subject.model(ids).logits
        with layers.enabled():
            ours = bench.subject.model(ids).logits
        assert torch.allclose(theirs(ids).logits, ours, atol=1e-5)
    assert not torch.allclose(plain, ours, atol=1e-2)


async def test_two_adapters_add_up_in_one_world(bench: Bench) -> None:
    one = await fit(bench, "lora", None, {**LORA, "epochs": 1})
    two = await fit(bench, "lora", None, {**LORA, "epochs": 1, "targets": ["up_proj"]}, seed=8)
    d = bench.context({}).train[0]
    ask = ([bench.task.messages(d)], [("done()", "noop()")])
    with one.open(bench.subject) as a, two.open(a) as both, two.open(bench.subject) as alone:
        first, second, third = (w.action_logprobs(*ask)[0] for w in (a, both, alone))
    assert not torch.allclose(first, second, atol=1e-3) and not torch.allclose(second, third, atol=1e-3)
    assert len({w.fingerprint for w in (a, both, alone)}) == 3


async def test_an_adapter_of_another_model_is_refused(bench: Bench, tmp_path: Path) -> None:
    fitted = await fit(bench, "lora", None, {**LORA, "epochs": 1})
    wrong = {name: tensor[:, :-1] for name, tensor in fitted.adapter.tensors.items()}
    with pytest.raises(LoadError, match="does not fit"), torch.no_grad():
        Layers(bench.subject, fitted.adapter.config).put(wrong)
    fitted.save(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(LoadError, match="cannot be read"):
        plugins.get("methods", "lora")(None, {}).load(tmp_path)


def test_linear_layers_are_found_by_structure(bench: Bench) -> None:
    found = linear_layers(bench.subject.checkpoint)
    assert found == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert linear_layers(bench.subject.checkpoint, ["o_proj", "down_proj"]) == ["down_proj", "o_proj"]
    with pytest.raises(NotApplicable, match="q_proj"):
        linear_layers(bench.subject.checkpoint, ["c_attn"])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "phi3", "qwen3_moe"])
def test_other_architectures_are_adapted_and_left_as_they_were(tmp_path: Path, architecture: str) -> None:
    """Fused and transposed matrices, norms behind the parts, experts beside dense blocks."""
    subject = load(write(tmp_path, architecture))
    before, prompt = bits(subject.model), [(Message("user", PAGES[0]),)]
    plain = subject.action_logprobs(prompt, [LEGAL[0]])[0]
    subject.model.set_attn_implementation("eager")
    for endings in ([], linear_layers(subject.checkpoint)[-1:]):
        names = linear_layers(subject.checkpoint, [n.rpartition(".")[2] for n in endings])
        subject.meter = Meter()
        learner = Finetuning(subject, {"rank": 2}, names, 0)
        with FlopCounterMode(display=False) as counter:
            target_losses(learner.world, prompt, ["done()"]).sum().backward()
        assert all(p.grad is not None for p in learner.parameters)
        if architecture != "qwen3_moe" and not endings:  # the counter does not see its experts
            assert subject.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
        with torch.no_grad():
            for parameter in learner.parameters:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        assert not torch.allclose(learner.world.action_logprobs(prompt, [LEGAL[0]])[0], plain, atol=1e-3)
        assert untouched(subject.model, before)
        assert torch.allclose(subject.action_logprobs(prompt, [LEGAL[0]])[0], plain, atol=1e-5)


def test_a_lora_step_is_charged_what_it_costs(bench: Bench) -> None:
    subject = bench.subject.metered(Meter())
    prompt = [bench.task.messages(bench.context({}).train[0])]
    for targets in ([], ["q_proj", "v_proj"], ["o_proj"], ["gate_proj"], ["down_proj"]):
        subject.meter = Meter()
        learner = Finetuning(subject, {"rank": 4}, linear_layers(subject.checkpoint, targets), 0)
        with eager(subject.model), FlopCounterMode(display=False) as counter:
            target_losses(learner.world, prompt, ['click("2")']).sum().backward()
        assert subject.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02), targets


@pytest.mark.parametrize("kind", ["", "relu"])
@pytest.mark.parametrize("scope", ["all", "prompt", "last"])
def test_learned_rows_are_the_same_as_edits(bench: Bench, kind: str, scope: str) -> None:
    """What was trained is what is opened: the training hook and the engine's edits give the same log-probabilities."""
    task, items = bench.task, bench.context({}).train[:4]
    learner = Intervention(bench.subject, {"rank": 3, "site": "resid.1"}, kind, scope, 1)
    ask = ([task.messages(i) for i in items], [('click("1")', "noop()", "done()")] * 4)
    plain = bench.subject.action_logprobs(*ask)
    if kind == "":
        assert all(
            torch.allclose(a, b, atol=1e-4) for a, b in zip(learner.world.action_logprobs(*ask), plain, strict=True)
        )
        assert torch.allclose(learner.state().read, torch.zeros(3, 32), atol=1e-6)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    rows = learner.state()
    gram = rows.write @ rows.write.T
    assert torch.allclose(
        gram if kind == "" else gram.diagonal(), torch.eye(3) if kind == "" else torch.ones(3), atol=1e-5
    )
    edits, learned = as_edits(rows, kind, "resid.1", scope)
    steered = apply(bench.subject, edits, learned).action_logprobs(*ask)
    for a, b, c in zip(learner.world.action_logprobs(*ask), steered, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-4) and not torch.allclose(a, c, atol=1e-2)


def test_sites_are_tried_across_the_depth() -> None:
    assert list(spread(1)) == [0] and list(spread(4)) == [2, 0, 1, 3]
    assert (
        sorted(spread(32)) == list(range(32)) and max(min(abs(i - j) for j in spread(32)[:8]) for i in range(32)) <= 4
    )


async def test_describe_is_json(bench: Bench) -> None:
    about = (await fit(bench, "lora", None, {**LORA, "epochs": 1})).describe()
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    assert about["adapter"]["rank"] == 4 and about["chosen_lr"] == 1e-2 and isinstance(about["validation_score"], float)
