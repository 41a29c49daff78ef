"""Dictionaries of embeddings: the same by seed, of the right shape, and they find what was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.features.texts.planted import NAMES, embedded, world

from fairlead.core.errors import FairleadError
from fairlead.dictionaries import quality
from fairlead.features.texts import dictionary, topics


def best_f1(said: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """[concepts] the F1 of the best latent."""
    both = said.T.astype(float) @ gold
    return (2 * both / np.maximum(said.sum(0)[:, None] + gold.sum(0)[None], 1e-9)).max(0)


@pytest.mark.parametrize("kind", dictionary.KINDS)
def test_kinds_are_reproducible_and_sparse(kind: str) -> None:
    x = embedded(world(120)[0])
    one, two = (dictionary.fit(kind, x, 3) for _ in range(2))
    z = dictionary.encode(one, x)
    assert [a.fingerprint for a in one.parts] == [b.fingerprint for b in two.parts]
    assert z.shape == (120, one.n_features) and z.min() >= 0 and 0 < z.nnz < 0.5 * z.shape[0] * z.shape[1]
    half = dictionary.encode(one, x[:50])
    assert np.allclose(half.toarray(), z[:50].toarray(), atol=1e-6)
    assert dictionary.encode(one, x[:0]).shape == (0, one.n_features)


@pytest.mark.parametrize("kind", dictionary.KINDS)
def test_latents_are_what_the_dictionaries_say_however_few_rows_are_read_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = embedded(world(120)[0])
    found = dictionary.fit(kind, x)
    dense = torch.cat([part.encode(torch.from_numpy(x)) for part in found.parts], dim=1).numpy()
    whole = dictionary.encode(found, x)
    monkeypatch.setattr(dictionary, "_ROWS", 7)
    for z in (whole, dictionary.encode(found, x)):
        assert z.has_sorted_indices and np.allclose(z.toarray(), dense, atol=1e-6)
        assert z.nnz == np.count_nonzero(z.toarray())


def test_levels_find_what_was_planted_and_random_directions_do_not() -> None:
    texts, gold = world(600)
    x = embedded(texts)
    found = {kind: best_f1(dictionary.encode(dictionary.fit(kind, x), x).toarray() > 0, gold)
             for kind in ("levels", "random")}  # fmt: skip
    assert found["levels"].mean() > max(0.75, 0.15 + found["random"].mean())


@pytest.mark.parametrize("kind", ["levels", "matryoshka"])
def test_the_best_epoch_is_restored(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float, Any]] = []
    inner = quality.evaluate

    def spy(found: Any, held: Any) -> dict[str, float]:
        said = inner(found, held)
        seen.append((found.n_features, said["explained_variance"], held))
        return said

    monkeypatch.setattr(quality, "evaluate", spy)
    after = 0
    for part in dictionary.fit(kind, embedded(world(200)[0])).parts:
        curve = [value for m, value, _ in seen if m == part.n_features]
        after += len(curve) - part.metadata["epoch"]
        assert part.metadata["epoch"] == 1 + int(np.argmax(curve))
        assert inner(part, seen[-1][2])["explained_variance"] == pytest.approx(max(curve), abs=1e-5)
    assert after > 0 or kind == "matryoshka"


def test_topics_find_the_words_that_go_together() -> None:
    texts, gold = world(400)
    model = topics.fit(texts, 32)
    assert best_f1(model.encode(texts).toarray() > 0, gold).mean() > 0.6
    again = topics.topics(model.terms.terms, model.idf, model.parts)
    assert np.array_equal(again.encode(texts[:9]).toarray(), model.encode(texts[:9]).toarray())
    assert model.encode([""]).nnz == 0


def test_sizes_follow_the_number_of_texts() -> None:
    assert [dictionary.sizes(n) for n in (20, 1000, 10_000, 1_000_000)] == [(16, 1), (64, 4), (512, 8), (4096, 8)]
    assert len(NAMES) == 8


def test_too_few_texts_and_texts_all_alike_are_refused() -> None:
    with pytest.raises(FairleadError, match="too few texts"):
        dictionary.fit("levels", embedded(world(10)[0]))
    with pytest.raises(FairleadError, match="alike"):
        dictionary.fit("levels", np.ones((50, 8)))
    with pytest.raises(FairleadError, match="unknown kind"):
        dictionary.fit("lda", np.eye(50))
