"""lm-eval runs a pocket model end to end on a task of its own, and its cache never answers for another edit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.adapters.conftest import DICTIONARY, EDITS, MODEL, PROMPT

pytest.importorskip("lm_eval", reason="pip install 'fairlead[lm-eval]'")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from fairlead.adapters.lm_eval import Fairlead  # noqa: E402
from fairlead.core.errors import FairleadError  # noqa: E402
from fairlead.core.types import Message  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # theirs

TASK = """
task: buttons
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ['click("1")', 'click("2")', 'done()']
doc_to_target: right
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def instance(kind: str, *args: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=args, idx=0)


@pytest.fixture(scope="module")
def bare() -> Fairlead:
    return Fairlead(MODEL)


@pytest.fixture(scope="module")
def steered() -> Fairlead:
    return Fairlead(MODEL, edits=EDITS, dictionary=DICTIONARY)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    rows = [{"text": PROMPT.replace("lamp", what), "right": i % 3} for i, what in enumerate(("lamp", "mug", "rug"))]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "buttons.yaml").write_text(TASK.format(data=data))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_a_task_runs_and_the_cache_holds_a_table_for_each_fingerprint(tasks, tmp_path, monkeypatch, run):
    cache, asked = str(tmp_path / "kept"), []
    follow = Fairlead._loglikelihood_tokens

    def counted(self: Any, requests: Any, **more: Any) -> Any:
        asked.append(len(requests))
        return follow(self, requests, **more)

    monkeypatch.setattr(Fairlead, "_loglikelihood_tokens", counted)

    def said(**options: str) -> tuple[list[float], dict[str, Any], int]:
        asked.clear()
        got = simple_evaluate(
            "fairlead", model_args={"pretrained": MODEL, **options}, tasks=["buttons"], task_manager=tasks,
            use_cache=cache, bootstrap_iters=0,
        )  # fmt: skip
        samples = got["samples"]["buttons"]
        return [p for s in samples for (p, _), in s["resps"]], got["config"], sum(asked)

    first, config, work = said()
    assert work == 9 and config["fairlead_model"].startswith(f"{MODEL}@")
    other, about, work = said(edits=EDITS, dictionary=DICTIONARY)
    assert work == 9 and not any(math.isclose(p, q, rel_tol=1e-4) for p, q in zip(first, other, strict=True))
    assert about["fairlead_model"] == f"{config['fairlead_model']}+edits@{about['fairlead_fingerprint'][:12]}"
    assert said(edits=EDITS, dictionary=DICTIONARY) == (other, about, 0)
    assert said() == (first, config, 0)
    fitted, _, work = said(fitted=str(run / "feature"))
    assert work == 9 and fitted == pytest.approx(other)


def test_likelihoods_are_those_of_the_model(bare):
    text, rest = "goal: buy a lamp", " [1] button"
    ((got, greedy),) = bare.loglikelihood([instance("loglikelihood", text, rest)])
    before, whole = bare.tok_encode(text), bare.tok_encode(text + rest)
    logits = bare.subject.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    steps = [(i - 1, whole[i]) for i in range(len(before), len(whole))]
    assert got == pytest.approx(sum(float(logits[i, t]) for i, t in steps), rel=1e-4)
    assert greedy == all(int(logits[i].argmax()) == t for i, t in steps)
    (rolled,) = bare.loglikelihood_rolling([instance("loglikelihood_rolling", text + rest)])
    ids = [bare.prefix_token_id, *bare.tok_encode(text + rest, add_special_tokens=False)]
    logits = bare.subject.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert rolled == pytest.approx(sum(float(logits[i, t]) for i, t in enumerate(ids[1:])), rel=1e-4)


def test_what_greedy_decoding_says_is_called_greedy(bare, steered):
    for model in (bare, steered):
        asked = (PROMPT, {"until": [], "max_gen_toks": 3})
        (said,) = model.generate_until([instance("generate_until", *asked)])
        pairs = [instance("loglikelihood", PROMPT, said), instance("loglikelihood", PROMPT, "\n\nzzz")]
        (_, yes), (_, no) = model.loglikelihood(pairs)
        assert yes and not no


def test_answers_stop_where_they_should_and_repeats_are_drawn_anew(bare):
    def say(**settings: Any) -> list[str]:
        return bare.generate_until([instance("generate_until", PROMPT, settings)] * 3)

    (whole, *_) = say(max_gen_toks=8)
    assert say(max_gen_toks=8, until=[whole[2]])[0] == whole[: whole.find(whole[2])]
    drawn = say(max_gen_toks=8, do_sample=True, temperature=1.5)
    assert len(set(drawn)) > 1 and say(max_gen_toks=8, do_sample=True, temperature=1.5) == drawn


def test_a_long_text_is_cut_on_its_left_and_rolled_in_windows(bare, caplog):
    long = "buy a lamp and a mug. " * 400
    assert bare.loglikelihood([instance("loglikelihood", long, " x")])[0][0] < 0
    assert "do not fit" in caplog.text
    (total,) = bare.loglikelihood_rolling([instance("loglikelihood_rolling", long)])
    assert math.isfinite(total) and total < 0


def test_a_chat_is_asked_as_the_chat_it_was(bare):
    text = bare.apply_chat_template([{"role": "user", "content": PROMPT}])
    legal = ('click("1")', 'click("2")')
    got = [p for p, _ in bare.loglikelihood([instance("loglikelihood", text, c) for c in legal])]
    asked = bare.subject.action_logprobs([(Message("user", PROMPT),)], [legal], end_turn=False)[0]
    assert got == pytest.approx(asked.tolist(), rel=1e-4)
    raw = [p for p, _ in bare.loglikelihood([instance("loglikelihood", PROMPT, c) for c in legal])]
    assert raw != pytest.approx(got, rel=1e-3)


def test_an_arm_that_adds_words_is_not_asked_without_them(monkeypatch):
    model = Fairlead(MODEL)
    told = model.subject.prompted("Never take the deal of the day.")
    monkeypatch.setattr(model, "_served", type(model._served)(model.name, model.fingerprint, told))
    with pytest.raises(FairleadError, match="apply_chat_template|chat template"):
        model.loglikelihood([instance("loglikelihood", PROMPT, "x")])
    text = model.apply_chat_template([{"role": "user", "content": PROMPT}])
    assert model.loglikelihood([instance("loglikelihood", text, "done()")])[0][0] < 0


def test_wrong_options_are_errors():
    with pytest.raises(FairleadError, match="which model"):
        Fairlead()
    with pytest.raises(FairleadError, match="unknown model option"):
        Fairlead(MODEL, edit=EDITS)
    with pytest.raises(FairleadError, match="not supported here: top_p"):
        Fairlead(MODEL).generate_until([instance("generate_until", PROMPT, {"top_p": 0.5})])
