"""inspect_ai runs a pocket model end to end, edited and not, and its cache never answers the one for the other."""

from __future__ import annotations

import gc
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.adapters.conftest import DICTIONARY, EDITS, MODEL, PROMPT

pytest.importorskip("inspect_ai", reason="pip install 'fairlead[inspect]'")

from inspect_ai import Task, eval_async, eval_retry_async, task  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import EvalLog, read_eval_log_async  # noqa: E402
from inspect_ai.model import ChatMessageTool, ChatMessageUser, ContentImage, GenerateConfig, get_model  # noqa: E402
from inspect_ai.scorer import includes  # noqa: E402
from inspect_ai.solver import generate  # noqa: E402

from fairlead.adapters.inspect_ai import Fairlead  # noqa: E402
from fairlead.core.errors import FairleadError, LoadError  # noqa: E402

pytestmark = [  # both are theirs
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    yield
    gc.collect()  # what they leave open is met here and not in another test


@task
def lamp() -> Task:
    sample = Sample(PROMPT, target="done")
    return Task([sample], solver=generate(cache=True), scorer=includes(), config=GenerateConfig(max_tokens=8))


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Runs one sample through inspect's own loop and gives the whole log. (What `eval_async` returns reads the rest of
    itself when asked, in a running loop by way of nest_asyncio, which patches asyncio for every test behind it.)"""

    async def run(model: str = f"fairlead/{MODEL}", **args: Any) -> EvalLog:
        log = (await eval_async(lamp(), model=model, model_args=args, log_dir=str(tmp_path / "logs")))[0]
        return await read_eval_log_async(log.location)

    return run


def told(log: EvalLog) -> tuple[str, str | None, dict[str, Any]]:
    """(the answer, what the cache did, what the provider says about it)."""
    assert log.status == "success" and log.samples, log.error
    sample = log.samples[0]
    called = [event for event in sample.events if event.event == "model"]
    assert len(called) == 1 and sample.output.metadata
    return sample.output.completion, called[0].cache, sample.output.metadata["fairlead"]


async def test_the_cache_holds_no_unsteered_answer_for_a_steered_model(ask, run):
    bare, wrote, about = told(await ask())
    assert wrote == "write" and about["edits"] == []
    steered, wrote, about = told(await ask(edits=EDITS, dictionary=DICTIONARY))
    assert wrote == "write" and steered != bare
    assert about["edits"][0]["edit"] == EDITS and about["edits"][0]["fired"] > 0
    fitted, wrote, other = told(await ask(fitted=str(run / "feature")))
    assert wrote == "write" and fitted == steered and other["model"] != about["model"]
    weaker, wrote, _ = told(await ask(edits="12 += 7x", dictionary=DICTIONARY))
    assert wrote == "write"
    assert told(await ask(edits=EDITS, dictionary=DICTIONARY)) == (steered, "read", about)
    assert told(await ask())[:2] == (bare, "read")


async def test_the_log_names_what_answered_and_can_be_run_again(ask, tmp_path):
    log = await ask(edits=EDITS)
    assert log.eval.model.startswith(f"fairlead/{MODEL}@") and "+edits@" in log.eval.model
    assert log.eval.model_args == {"edits": EDITS}
    assert told(await ask(model=log.eval.model, edits=EDITS))[1] == "read"
    log.status = "cancelled"
    again = (await eval_retry_async(log, log_dir=str(tmp_path / "logs")))[0]
    assert again.eval.model == log.eval.model and again.status == "success"
    with pytest.raises(LoadError, match="not the model of that name"):
        get_model(log.eval.model, memoize=False)


async def test_settings_do_what_they_say():
    model = get_model(f"fairlead/{MODEL}")
    user = [ChatMessageUser(content=PROMPT)]
    legal = {"fairlead": {"choices": ['click("1")', 'click("2")'], "step": 1}}
    chosen = await model.generate(user, config=GenerateConfig(extra_body=legal))
    assert chosen.completion in legal["fairlead"]["choices"]
    assert set(chosen.metadata["fairlead"]["choices"]) == set(legal["fairlead"]["choices"])
    greedy = await model.generate(user, config=GenerateConfig(max_tokens=3))
    assert greedy.usage.output_tokens <= 3 and greedy.usage.input_tokens > 10
    cut = await model.generate(user, config=GenerateConfig(max_tokens=8, stop_seqs=[greedy.completion[1]]))
    assert cut.completion == greedy.completion[:1] and cut.stop_reason == "stop"
    hot = GenerateConfig(max_tokens=8, temperature=2.0)
    drawn = await model.generate(user, config=hot)
    seed = drawn.metadata["fairlead"]["seed"]
    again = await model.generate(user, config=GenerateConfig(max_tokens=8, temperature=2.0, seed=seed))
    assert again.completion == drawn.completion
    assert (await model.generate(user, config=GenerateConfig(max_tokens=1))).stop_reason == "max_tokens"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GenerateConfig(top_k=5), "not supported here: top_k"),
        (GenerateConfig(logprobs=True), "logprobs"),
        (GenerateConfig(extra_body={"stepp": 1}), "extra_body"),
        (GenerateConfig(extra_body={"fairlead": {"choices": ["a", "a"]}}), "different texts"),
        (GenerateConfig(stop_seqs=["x"], extra_body={"fairlead": {"choices": ["a"]}}), "no meaning"),
        (GenerateConfig(max_tokens=100_000), "context"),
    ],
)
async def test_what_cannot_be_done_is_an_error(config, message):
    with pytest.raises(FairleadError, match=message):
        await get_model(f"fairlead/{MODEL}").generate([ChatMessageUser(content="hello")], config=config)


@pytest.mark.parametrize(
    "said", [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")]), ChatMessageTool(content="x")]
)
async def test_only_texts_are_read(said):
    with pytest.raises(FairleadError, match="a message"):
        await Fairlead(MODEL).generate([said], [], "none", GenerateConfig(max_tokens=1))


async def test_no_tools():
    with pytest.raises(FairleadError, match="no tools"):
        await Fairlead(MODEL).generate([ChatMessageUser(content="x")], [object()], "none", GenerateConfig())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"edit": EDITS}, "unknown model option"),
        ({"edits": 12}, "is a text"),
        ({"dictionary": DICTIONARY}, "nothing to apply"),
        ({"edits": EDITS, "fitted": "runs/x"}, "brings its own"),
        ({"edits": "12 ="}, "12 ="),
        ({"fitted": "no/such/run"}, "no fitted arm"),
    ],
)
def test_a_wrong_option_never_leaves_the_model_unsteered(args, message):
    with pytest.raises(FairleadError, match=message):
        get_model(f"fairlead/{MODEL}", memoize=False, **args)


def test_the_entry_point_is_this_file():
    said = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    assert hasattr(import_module(said["fairlead"]), "fairlead")
