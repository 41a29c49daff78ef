"""Triggers on planted firing: a conjunction, a word alone, and nothing."""

import numpy as np
import pytest
from scipy import sparse

from fairlead.features.misread.outcome import outcome
from fairlead.features.misread.peaks import Peaks
from fairlead.features.misread.spans import Words
from fairlead.features.misread.triggers import Condition, Search, Trigger, search

NOBODY = Words(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), ())
WORD, PLACE, OTHER = 3, 11, 40


def planted(n=600, seed=0, noise=60):
    """Items with a word (a third) and a place (a half); those with both go wrong. Latents: word, place, chance."""
    rng = np.random.default_rng(seed)
    word, place = rng.random(n) < 0.33, rng.random(n) < 0.5
    fires = rng.random((n, noise)) < 0.2
    fires[:, WORD], fires[:, PLACE] = word, place
    values = sparse.csr_matrix(fires * (0.5 + rng.random((n, noise))))
    peaks = Peaks(values, values.astype(np.int32), (NOBODY,) * n)
    return peaks, word & place, [f"c{i // 3}" for i in range(n)]


def found_in(peaks, wrong, clusters, **settings):
    return search(peaks, wrong, clusters, outcome(peaks.values, wrong, clusters), Search(**settings))


def test_a_conjunction_is_found_and_is_all_that_is_found():
    peaks, wrong, clusters = planted()
    found = found_in(peaks, wrong, clusters)
    assert [set(f.trigger.latents) for f in found] == [{WORD, PLACE}]
    assert found[0].wrong == wrong.sum() and found[0].right == 0 and found[0].precision == 1.0
    assert np.array_equal(found[0].trigger.fires(peaks), wrong)


def test_a_single_latent_is_preferred_where_it_says_as_much():
    peaks, _, clusters = planted()
    wrong = peaks.column(WORD) > 0
    found = found_in(peaks, wrong, clusters)
    assert found[0].trigger == Trigger(Condition(WORD, 0.0))


def test_without_pairs_the_conjunction_is_out_of_reach():
    peaks, wrong, clusters = planted()
    assert found_in(peaks, wrong, clusters, pairs=False) == []


def test_several_words_take_several_triggers_and_each_item_is_counted_for_one():
    peaks, wrong, clusters = planted()
    wrong = wrong | (peaks.column(OTHER) > 0)
    found = found_in(peaks, wrong, clusters)
    assert {frozenset(f.trigger.latents) for f in found} >= {frozenset({OTHER}), frozenset({WORD, PLACE})}
    caught = np.any([f.trigger.fires(peaks) for f in found], axis=0)
    assert caught[wrong].all() and not caught[~wrong].any()


@pytest.mark.parametrize("seed", range(6))
def test_where_nothing_is_misread_hardly_anything_is_found(seed):
    peaks, wrong, clusters = planted(seed=seed)
    shuffled = np.random.default_rng(seed).permutation(wrong)
    assert len(found_in(peaks, shuffled, clusters)) <= 1


def test_all_wrong_or_all_right_finds_nothing():
    peaks, wrong, clusters = planted()
    assert found_in(peaks, np.zeros(len(wrong), dtype=bool), clusters) == []
    assert found_in(peaks, np.ones(len(wrong), dtype=bool), clusters) == []
