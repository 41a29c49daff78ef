"""The label-aware dictionary: it finds what the plain one overlooks, and its claims hold on unseen labels only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.features.texts.planted import embedded, world

from fairlead.core.errors import FairleadError
from fairlead.features.texts import dictionary, residual, select
from fairlead.features.texts.residual import _stretch, _through, directions

N = 240


def faint(seed: int = 0) -> tuple[Any, Any]:
    """(x [N, 33], y): subjects fill the space; the label lies in one more coordinate, with 3 % of the variance."""
    rng = np.random.default_rng(seed)
    x = embedded(world(N, seed)[0])
    y = rng.random(N) < 0.5
    x = np.hstack([x, (0.18 * np.where(y, 1.0, -1.0) + 0.05 * rng.standard_normal(N))[:, None]])
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), y.astype(float)


def best_correlation(levels: Any, x: Any, y: Any) -> float:
    return float(np.abs(select.correlations(select.design(dictionary.encode(levels, x)), y)).max())


def test_it_finds_a_label_that_hardly_varies_on_rows_it_has_not_seen() -> None:
    x, y = faint()
    seen, fresh = np.arange(0, N, 2), np.arange(1, N, 2)
    aware = residual.fit(x, seen, y[seen], n_features=8)
    plain = dictionary.fit("levels", x, n_features=8)
    assert best_correlation(aware, x[fresh], y[fresh]) > max(0.6, 0.2 + best_correlation(plain, x[fresh], y[fresh]))
    assert aware.kind == "residual" and aware.n_features == 2 * plain.n_features
    hidden = np.where(np.isin(np.arange(N), seen), y, 1 - y)  # the other rows' labels change nothing
    again = residual.fit(x, seen, hidden[seen], n_features=8)
    assert [a.fingerprint for a in aware.parts] == [b.fingerprint for b in again.parts]


def test_a_stated_rate_holds_on_unseen_labels_and_fails_on_seen_ones() -> None:
    """Labels that mean nothing, and space enough to fit them."""
    x = np.random.default_rng(0).standard_normal((N, 120)).astype(np.float32) / 120**0.5
    seen, fresh = np.arange(0, N, 2), np.arange(1, N, 2)
    wrong = {"seen": 0, "fresh": 0}
    for seed in range(8):
        y = (np.random.default_rng(100 + seed).random(N) < 0.5).astype(float)
        z = dictionary.encode(residual.fit(x, seen, y[seen], seed, n_features=4), x)
        for name, rows in (("seen", seen), ("fresh", fresh)):
            wrong[name] += bool(select.select(z[rows], y[rows], 5, "correlation", rate=0.05, seed=seed).columns)
    assert wrong["fresh"] <= 2 < 6 <= wrong["seen"]


def test_a_stretched_part_reads_plain_rows() -> None:
    x, y = faint()
    a = _stretch(x, directions(x, y[:, None]))
    assert a is not None and np.linalg.eigvalsh(a).min() >= 1 - 1e-5
    part = dictionary.fit("levels", x @ a, n_features=8).parts[-1]
    mine, rows = _through(part, a), torch.from_numpy(x)
    assert torch.allclose(mine.preactivations(rows), part.preactivations(rows @ torch.from_numpy(a)), atol=1e-4)
    back = part.decode(part.encode(rows @ torch.from_numpy(a))) @ torch.linalg.inv(torch.from_numpy(a))
    assert torch.allclose(mine.decode(mine.encode(rows)) - mine.b_dec, back - part.b_dec @ torch.linalg.inv(
        torch.from_numpy(a)), atol=1e-3)  # fmt: skip


def test_directions_of_ridge_point_where_the_label_lies() -> None:
    x, y = faint()
    found = directions(x, y[:, None])[:, 0]
    assert abs(found[-1]) > 0.8 and np.linalg.norm(found) == pytest.approx(1)
    assert not directions(x, np.ones((N, 1))).any()
    confounded = directions(x, y[:, None], covariates=y[:, None])
    assert not confounded.any() or abs(confounded[-1, 0]) < 0.5


def test_pairs_and_classes_have_directions_too() -> None:
    x, y = faint()
    first = (y[: N // 2] > y[N // 2 :]).astype(float)
    uneven = np.flatnonzero(y[: N // 2] != y[N // 2 :])
    aware = residual.fit(x, uneven, first[uneven], pairs=True, n_features=8)
    z = dictionary.encode(aware, x)
    found = select.correlations(select.design(z[: N // 2] - z[N // 2 :], pairs=True), 2 * first - 1)
    assert np.abs(found).max() > 0.4
    classes = np.column_stack([y, 1 - y])
    assert residual.fit(x, np.arange(N), classes, n_features=8).n_features > 12


def test_too_few_labels_are_refused() -> None:
    x, y = faint()
    with pytest.raises(FairleadError, match="too few labels"):
        residual.fit(x, np.arange(5), y[:5])
