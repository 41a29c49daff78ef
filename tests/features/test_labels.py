"""Labels in a planted world: right ones score 1 on windows nobody saw, shuffled ones are at chance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lm.endpoint import chat, serving

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.types import Message
from fairlead.features import store as stores
from fairlead.features.detection import auroc, best_threshold, detection, interval
from fairlead.features.evidence import Evidence, Example, Gatherer, Part
from fairlead.features.index import Index, build
from fairlead.features.labellers import Asked, LocalAnnotator, Peaks, Phrase, RemoteAnnotator, Terms
from fairlead.features.labellers import Lens as LensLabeller
from fairlead.features.labels import Label, coverage, label, label_all, read
from fairlead.features.store import Codes, Header, Store
from fairlead.lm.embed import tfidf
from fairlead.lm.remote import Remote

CONCEPTS = [[f"c{i}{letter} " for letter in "abc"] for i in range(12)]
FILL = [f"f{i} " for i in range(60)]
WORDS = [*(w for words in CONCEPTS for w in words), *FILL, "bank ", "river ", "money "]
BANK, RIVER, MONEY = (len(WORDS) - 3 + i for i in range(3))
LATENTS = len(CONCEPTS) + 1  # the last one fires on "bank" where "river" stands before it
LENGTH, SEQUENCES = 16, 1500


def world() -> tuple[np.ndarray, np.ndarray]:
    """(token ids [S, 16], concept or -1 [S, 16]): a third of the sequences speaks of one concept, some of banks."""
    rng = np.random.default_rng(0)
    ids = rng.integers(36, 96, (SEQUENCES, LENGTH))
    fires = np.full((SEQUENCES, LENGTH), -1)
    for row in range(SEQUENCES):
        if row % 3 == 0:
            concept, at = int(rng.integers(12)), int(rng.integers(LENGTH))
            ids[row, at], fires[row, at] = 3 * concept + int(rng.integers(3)), concept
        elif row % 3 == 1:
            wet = bool(rng.integers(2))
            ids[row, 4], ids[row, 5] = RIVER if wet else MONEY, BANK
            fires[row, 5] = 12 if wet else -1
    return ids, fires


def store_of(root: Path, fires: np.ndarray) -> Store:
    ids, _ = world()
    rng = np.random.default_rng(1)
    header = Header("m", "f", "d", "f", "resid.0", LATENTS, "c", SEQUENCES, SEQUENCES * LENGTH, window=LENGTH)
    stores.begin(root, header, WORDS)
    flat = fires.reshape(-1)
    on = flat >= 0
    codes = Codes(on.astype(np.int64), flat[on], 1 + rng.random(int(on.sum())))
    stores.write_shard(root, 0, header, list(ids), [codes])
    made = Store(root)
    build(made)
    return made


@pytest.fixture(scope="module")
def perfect(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("labels") / "perfect", world()[1])


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same firing rates, on tokens drawn at random."""
    fires = np.random.default_rng(2).permutation(world()[1].reshape(-1)).reshape(SEQUENCES, LENGTH)
    return store_of(tmp_path_factory.mktemp("labels") / "shuffled", fires)


def labels_of(store: Store, labellers: Sequence[Any], *, hard: bool = True, of: Any = None) -> list[Label]:
    gatherer = Gatherer(store, Index(store), hard=hard)
    latents = range(LATENTS) if of is None else of
    return asyncio.run(label_all(gatherer.evidence, list(latents), labellers))


def test_no_window_no_text_and_no_sequence_is_used_twice(perfect: Store) -> None:
    gatherer = Gatherer(perfect, Index(perfect))
    for latent in range(LATENTS):
        found = gatherer.evidence(latent)
        texts = [e.text for part in (found.shown, found.select, found.held) for e in part.all]
        assert found.enough and len(texts) == len(set(texts)) and len(found.held.positives) >= 8
        assert all(e.value > 0 and "<<" in e.marked for e in found.held.positives)
        assert all(e.value == 0 for e in found.held.negatives)
        for part in (found.shown, found.select, found.held):
            assert len(part.negatives) == len(part.positives)
        assert found == gatherer.evidence(latent)


def test_a_sequence_of_several_windows_stays_together(tmp_path: Path) -> None:
    """Two windows a sequence, in both of which the latent fires: they never part."""
    header = Header("m", "f", "d", "f", "resid.0", 1, "c", 200, 1600, window=4)
    stores.begin(tmp_path / "s", header, [f"w{i} " for i in range(2000)])
    on = np.zeros((200, 8), dtype=np.int64)
    on[:100, [1, 6]] = 1
    sequences = [np.arange(8) + 8 * i for i in range(200)]
    codes = Codes(on.reshape(-1), np.zeros(200, dtype=np.int64), np.random.default_rng(0).random(200) + 0.1)
    stores.write_shard(tmp_path / "s", 0, header, sequences, [codes])
    store = Store(tmp_path / "s")
    build(store)
    found = Gatherer(store, Index(store)).evidence(0)
    where: dict[int, set[str]] = {}
    for name in ("shown", "select", "held"):
        for e in getattr(found, name).all:
            where.setdefault(int(e.text.split()[0][1:]) // 8, set()).add(name)
    assert all(len(parts) == 1 for parts in where.values()) and len(where) > 20


def test_the_true_labels_are_found_and_hold(perfect: Store) -> None:
    found = labels_of(perfect, [Peaks(), Terms()], of=range(12))
    assert all(one.kind == "peaks" for one in found)
    for one in found:
        assert set(one.terms) <= {w.strip() for w in CONCEPTS[one.latent]} and one.held is not None
        assert one.held.auroc > 0.95 and one.held.balanced_accuracy > 0.95 and one.held.low > 0.6
    said = coverage(found)
    assert (said.latents, said.labelled, said.below, said.none) == (12, 12, 0, 0)


def test_shuffled_firing_is_at_chance(shuffled: Store) -> None:
    """Terms that fit the shown windows by accident; what is reported is what they are worth elsewhere."""
    embedder = tfidf(["".join(shuffled.texts(shuffled.window(t))) for t in range(0, 16000, 16)], width=32)
    found = labels_of(shuffled, [Peaks(), Terms(), Phrase(embedder)])
    held = [one.held.auroc for one in found if one.held is not None]
    assert len(held) >= 10 and 0.4 < np.mean(held) < 0.6
    assert sum(one.held.low <= 0.5 <= one.held.high for one in found if one.held) >= len(held) - 2
    shown = []
    for latent in range(LATENTS):
        part = Gatherer(shuffled, Index(shuffled)).evidence(latent).shown
        candidate = asyncio.run(Terms().label(Evidence(latent, part, part, part)))
        scores = asyncio.run(candidate.scores([e.text for e in part.all])) if candidate else [0.0] * len(part.all)
        shown.append(auroc(scores[: len(part.positives)], scores[len(part.positives) :]))
    assert np.mean(shown) > 0.75  # the leak would have looked like this


def test_near_misses_tell_a_word_from_its_sense(perfect: Store) -> None:
    """The last latent fires on "bank" after "river" only: "bank" is a good label against any windows, not against
    near misses; "river" is good against both."""

    class Says:
        kind = "says"

        def __init__(self, word: str) -> None:
            self.word = word

        async def label(self, evidence: Evidence) -> Any:
            made = await Terms().label(evidence)

            async def scores(texts: Sequence[str]) -> list[float]:
                return [float(self.word in t) for t in texts]

            return replace(made, terms=(self.word,), scores=scores)

    def worth(word: str, hard: bool) -> float:
        found = labels_of(perfect, [Says(word)], hard=hard, of=[12])[0].held
        assert found is not None
        return found.auroc

    assert worth("bank", hard=False) > 0.75 and worth("bank", hard=True) < 0.6
    assert worth("river", hard=False) > 0.95 and worth("river", hard=True) > 0.95
    assert "river" in labels_of(perfect, [Terms()], of=[12])[0].terms


def test_lens_and_phrase_find_what_is_planted(perfect: Store) -> None:
    embedder = tfidf(["".join(perfect.texts(perfect.window(t))) for t in range(0, 24000, 16)], width=200)
    lens = LensLabeller(lambda latent: CONCEPTS[latent] if latent < 12 else ["river "])
    for one in labels_of(perfect, [lens]):
        assert one.held is not None and one.held.auroc > 0.95 and one.kind == "lens"
    wrong = LensLabeller(lambda latent: CONCEPTS[(latent + 1) % 12])
    assert all(one.held and one.held.auroc < 0.6 for one in labels_of(perfect, [wrong], of=range(11)))
    bank = tuple("".join(words).strip() for words in CONCEPTS)
    for one in labels_of(perfect, [Phrase(embedder, bank)], of=range(12)):
        assert one.terms == (bank[one.latent],) and one.held and one.held.auroc > 0.9
    best = labels_of(perfect, [wrong, lens], of=[0])[0]
    assert best.kind == "lens" and set(best.tried) == {"lens"} and best.held and best.held.auroc > 0.95


def test_an_endpoint_labels_and_judges(perfect: Store, tmp_path: Path) -> None:
    def answer(_path: str, body: Any) -> Any:
        said = body["messages"][0]["content"]
        if "Answer yes or no" in said:
            return chat("Yes." if "c3" in said.split("Text: ")[1] else "no")
        assert said.count("<<c3") >= 4 and "In these it is not:" in said
        return chat('"words with c3"\nand more')

    with serving(answer) as server:
        asked = Asked(RemoteAnnotator(Remote(server.url, "m", cache=tmp_path / "c.sqlite")))
        one = labels_of(perfect, [asked], of=[3])[0]
        calls = len(server.asked)
        assert labels_of(perfect, [asked], of=[3])[0] == one and len(server.asked) == calls  # kept
    assert one.text == "words with c3" and one.held and one.held.auroc == 1.0 and one.held.balanced_accuracy == 1.0


async def test_a_local_model_judges_by_its_log_probabilities() -> None:
    class Subject:
        async def logprobs(self, prompt: Any, options: Any, *, step: int = 0) -> tuple[float, ...]:
            return (-1.0, -3.0) if "Text: a red" in prompt[0].content else (-3.0, -1.0)

        async def generate(self, prompt: Any, *, max_tokens: int = 0, **_: Any) -> Any:
            return type("Said", (), {"text": " red things \n"})()

    examples = tuple(Example(f"a red {i}", 1.0, f"a <<red>> {i}") for i in range(4))
    others = tuple(Example(f"a blue {i}", 0.0) for i in range(4))
    part = Part(examples, others)
    one = await label(Evidence(0, part, part, part), [Asked(LocalAnnotator(Subject()))])
    assert one.text == "red things" and one.held and one.held.auroc == 1.0


async def test_too_little_is_said_and_not_guessed() -> None:
    few = Part((Example("a", 1.0),), (Example("b", 0.0),))
    one = await label(Evidence(7, few, few, few), [Terms()])
    assert one.held is None and not one.holds() and coverage([one]).none == 1


def test_labels_are_written_as_they_are_made(perfect: Store, tmp_path: Path) -> None:
    file, gatherer = tmp_path / "l" / "labels.jsonl", Gatherer(perfect, Index(perfect))
    wanted = labels_of(perfect, [Terms()], of=range(6))
    asked: list[int] = []

    def gather(latent: int) -> Evidence:
        asked.append(latent)
        if latent == 4 and stop:
            raise KeyboardInterrupt
        return gatherer.evidence(latent)

    stop = True
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(label_all(gather, range(6), [Terms()], about={"seed": 0}, out=file))
    with file.open("a") as torn:
        torn.write('{"latent": 4, "te')
    stop = False
    got = asyncio.run(label_all(gather, range(6), [Terms()], about={"seed": 0}, out=file))
    assert got == wanted and asked == [0, 1, 2, 3, 4, 4, 5]
    assert read(file) == ({"seed": 0}, {one.latent: one for one in wanted})
    with pytest.raises(FairleadError, match="made otherwise"):
        asyncio.run(label_all(gather, range(6), [Terms()], about={"seed": 1}, out=file))
    file.write_text(json.dumps({"seed": 0}) + "\nnot json\n")
    with pytest.raises(LoadError, match="cannot be read"):
        read(file)


def test_auroc_and_threshold_are_as_defined() -> None:
    assert auroc([1, 2, 3], [0, 2]) == pytest.approx((1 + 0.5 + 2 + 2 - 0) / 6) or auroc([1, 2, 3], [0, 2]) == 0.75
    assert auroc([0, 0], [0]) == 0.5 and best_threshold([2, 3], [0, 1]) == 1.5
    found = detection([2, 3], [0, 4], 1.5)
    assert found.balanced_accuracy == 0.75 and found.positives == 2
    low, high = interval(1.0, 14, 14)
    assert 0.75 < low < 0.95 and high == pytest.approx(1.0)
    assert interval(0.5, 14, 14)[0] == pytest.approx(1 - interval(0.5, 14, 14)[1], abs=1e-6)


def test_the_interval_covers(n: int = 400) -> None:
    """Normal scores 1 apart, 14 windows each: the true AUROC 0.76 lies inside in about 95 %."""
    rng, truth, inside = np.random.default_rng(0), 0.7602, 0
    for _ in range(n):
        low, high = interval(auroc(rng.normal(1, 1, 14), rng.normal(0, 1, 14)), 14, 14)
        inside += low <= truth <= high
    assert 0.92 <= inside / n <= 0.99


def test_prompts_are_messages() -> None:
    """What an annotator gets is chat turns, so that a remote and a local model read the same."""
    seen: list[Any] = []

    class Keeps:
        async def say(self, messages: Any) -> str:
            seen.append(messages)
            return ""

        async def yes(self, messages: Any) -> float:
            return 0.0

    part = Part(tuple(Example(f"t{i}", 1.0, f"<<t{i}>>") for i in range(20)), (Example("n", 0.0),))
    assert asyncio.run(Asked(Keeps()).label(Evidence(0, part, part, part))) is None
    assert isinstance(seen[0][0], Message) and seen[0][0].content.count("<<t") == 8
