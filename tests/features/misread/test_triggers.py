"""Triggers on planted firing: a conjunction, a word alone, words one by one, and nothing."""

import numpy as np
import pytest
from scipy import sparse

from fairlead.features.misread.outcome import outcome
from fairlead.features.misread.peaks import Peaks
from fairlead.features.misread.spans import Word, Words
from fairlead.features.misread.triggers import Condition, Search, Trigger, search

NOBODY = Words(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), ())
WORD, PLACE, OTHER = 3, 11, 40
THINGS = ("bats", "pipes", "bulbs", "rolls", "bows", "pods")


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


def worded(n=480, seed=0, words=THINGS, chance=40):
    """Items of two words, a place and a thing. A thing's own latent is its number; KIND fires at half of the places,
    and those items go wrong; LOCAL fires at one of these places only; the rest by chance, at the place."""
    rng = np.random.default_rng(seed)
    kind, local, width = len(words), len(words) + 1, len(words) + 2 + chance
    values, places, told, wrong, clusters = np.zeros((n, width)), np.zeros((n, width), dtype=np.int32), [], [], []
    for i in range(n):
        thing, place = int(rng.integers(len(words))), int(rng.integers(8))
        fires = rng.random(width) < 0.2
        fires[: len(words)], fires[kind], fires[local] = False, place < 4, place == 0
        fires[thing] = True
        values[i] = fires * (0.8 + 0.2 * rng.random(width))
        places[i] = fires * np.where(np.arange(width) == thing, 3, 2)
        spelled = (Word(f"place{place}", 0), Word(words[thing].title(), 7))
        told.append(Words(np.array([1, 2]), np.array([0, 1]), spelled))
        wrong.append(place < 4)
        clusters.append(f"{thing}/{place}")
    peaks = Peaks(sparse.csr_matrix(values), sparse.csr_matrix(places), tuple(told))
    return peaks, np.array(wrong), clusters, kind


def test_each_word_has_a_trigger_of_its_own_with_what_is_beside_it_when_it_is_misread():
    peaks, wrong, clusters, kind = worded()
    found = found_in(peaks, wrong, clusters)
    assert {f.trigger.word for f in found[: len(THINGS)]} == set(THINGS)
    for one in found[: len(THINGS)]:  # behind them there may be other signs of the same
        assert one.trigger.latents == (THINGS.index(one.trigger.word), kind)
        at_the_word = np.array([w.words[1].text.lower() == one.trigger.word for w in peaks.words])
        assert np.array_equal(one.trigger.fires(peaks), wrong & at_the_word)
        assert one.wrong == (wrong & at_the_word).sum() and one.right == 0


def test_what_was_never_seen_beside_a_word_is_told_by_what_other_words_share():
    peaks, wrong, clusters, kind = worded()
    seen = np.array([c not in ("0/2", "0/3", "1/0", "1/1") for c in clusters])  # bats at two of the four places only
    part = np.flatnonzero(seen)
    found = found_in(peaks.rows(part), wrong[part], [clusters[i] for i in part])
    caught = np.any([f.trigger.fires(peaks) for f in found], axis=0)
    assert caught[wrong].all() and not caught[~wrong].any()


@pytest.mark.parametrize("seed", range(4))
def test_words_of_items_that_went_wrong_by_chance_have_hardly_a_trigger(seed):
    peaks, wrong, clusters, _ = worded(seed=seed)
    shuffled = np.random.default_rng(seed).permutation(wrong)
    assert sum(bool(f.trigger.word) for f in found_in(peaks, shuffled, clusters)) <= 1


def test_a_word_in_most_items_is_no_word_to_note():
    peaks, wrong, clusters, _ = worded(words=("bats",))
    assert all(not f.trigger.word for f in found_in(peaks, wrong, clusters))
