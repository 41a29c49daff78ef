"""Which columns of a sparse matrix say something about a label: lasso to exactly k, stability selection, knockoffs,
correlation with a family-wise error rate, separation. Covariates and the mean are projected out, so they carry no
penalty; the matrix is never made dense (knockoffs look at `MOST` columns of `ROWS` rows).

A label y [n] is numbers (binary: 0 and 1), or [n, c] with one column a class. Of pairs, rows are differences, first
minus second, y is 1 or 0 for first or second, and there is no intercept: swapping a pair changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix
from scipy.special import stdtr

from fairlead.core.errors import FairleadError
from fairlead.features.texts import knockoffs

Array = Any
How = Literal["lasso", "stability", "knockoffs", "correlation", "separation"]
HOW: tuple[str, ...] = get_args(How)
FREQUENCY, HALVES = 0.9, 50  # stability selection: chosen in 90 % of 50 complementary pairs of halves
PERMUTATIONS = 400
SHARE_FALSE = 0.2  # of knockoffs, where no rate is given
MOST, ROWS, FIRING = 600, 50_000, 8  # columns and rows that knockoffs look at; rows where a column must not be 0
DEEP = 60  # columns, knockoffs among them, for which the lasso's path is followed


@dataclass(frozen=True, eq=False)
class Design:
    """Columns with `basis` [n, q] (mean and covariates, orthonormal) projected out, at unit length. `length` [m] is 0
    for a column in which nothing is left; such columns are never chosen."""

    columns: Any
    basis: Array
    length: Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.columns.shape

    def project(self, y: Array) -> Array:
        """y [n] or [n, c] without what the basis explains."""
        return y - self.basis @ (self.basis.T @ y)

    def correlate(self, v: Array) -> Array:
        """[m] or [m, c]: products of the columns with v, which is projected already."""
        scale = np.where(self.length > 0, self.length, np.inf)
        found = self.columns.T @ v
        return found / (scale if found.ndim == 1 else scale[:, None])

    def dense(self, j: int) -> Array:
        """Column j [n], projected, at unit length."""
        raw = np.asarray(self.columns[:, [j]].todense(), dtype=np.float64).ravel()
        return self.project(raw) / self.length[j]


def design(z: Any, covariates: Array | None = None, *, pairs: bool = False) -> Design:
    """Of z [n, m], sparse or dense, and covariates [n, q]."""
    columns = csc_matrix(z, dtype=np.float64)
    n = columns.shape[0]
    given = [] if covariates is None else [np.asarray(covariates, dtype=np.float64).reshape(n, -1)]
    basis = _orthonormal(np.hstack([*([] if pairs else [np.ones((n, 1))]), *given, np.zeros((n, 0))]))
    squares = np.asarray(columns.multiply(columns).sum(0)).ravel()
    along = columns.T @ basis
    left = squares - (along**2).sum(1)
    length = np.where(left > 1e-9 * np.maximum(squares, 1e-300), np.sqrt(np.maximum(left, 0.0)), 0.0)
    return Design(columns, basis, length)


def _orthonormal(x: Array) -> Array:
    if not x.shape[1]:
        return x
    u, s, _ = np.linalg.svd(x / np.maximum(np.linalg.norm(x, axis=0), 1e-300), full_matrices=False)
    return u[:, s > 1e-9 * max(s[0], 1e-300)]


def target(y: Array, *, pairs: bool = False) -> Array:
    """y as floats [n, c], c = 1 but for classes; of pairs as −1 and 1. FairleadError for one value only, or NaN."""
    found = np.asarray(y, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 else found
    if not np.isfinite(found).all():
        raise FairleadError("labels hold NaN or infinity", expected="finite labels", do="leave those rows out")
    if pairs:
        return 2.0 * found - 1.0
    if len(found) < 2 or bool((found == found[0]).all()):
        raise FairleadError("there is nothing to explain", expected="labels that differ", got=f"{len(found)} alike")
    return found


# ---- lasso


@dataclass(frozen=True)
class Path:
    """Columns in the order in which they came in and stayed, and their coefficients for columns at unit length."""

    chosen: tuple[int, ...]
    weights: tuple[float, ...]


def lasso(x: Design, y: Array, k: int, *, among: Array | None = None) -> Path:
    """The lasso's path (least angle regression with drops, Efron et al. 2004) up to the point where a (k+1)th column
    would come in: exactly k columns, or fewer where y [n] is explained before. `among` [m] bool restricts it."""
    residual = x.project(np.asarray(y, dtype=np.float64))
    free = (x.length > 0) if among is None else (x.length > 0) & among
    k = min(k, int(free.sum()), x.shape[0] - x.basis.shape[1])
    active: list[int] = []
    signs: list[float] = []
    beta = np.zeros(0)
    dense = np.zeros((x.shape[0], 0))
    least = 1e-10 * float(np.linalg.norm(residual))
    barred = ~free
    for _ in range(20 * max(k, 1) + 20):
        c = x.correlate(residual)
        out = barred.copy()
        out[active] = True
        level = float(np.abs(c[active]).mean()) if active else float(np.abs(np.where(out, 0.0, c)).max(initial=0.0))
        if level <= least:
            break
        if not active or level - float(np.abs(np.where(out, 0.0, c)).max(initial=0.0)) <= 1e-9 * level:
            if len(active) == k:
                break
            j = int(np.argmax(np.where(out, -1.0, np.abs(c))))
            column = x.dense(j)
            rest = column - dense @ np.linalg.lstsq(dense, column, rcond=None)[0] if active else column
            if float(np.linalg.norm(rest)) < 1e-5:  # a copy of what is in already
                barred[j] = True
                continue
            active, signs = [*active, j], [*signs, float(np.sign(c[j]))]
            beta, dense = np.append(beta, 0.0), np.column_stack([dense, column])
            out[j] = True
        way = np.linalg.solve(dense.T @ dense, np.array(signs))
        move = dense @ way
        step, dropped = _step(c, x.correlate(move), level, out, beta, way)
        beta = beta + step * way
        residual = residual - step * move
        if dropped is not None:
            keep = [i for i in range(len(active)) if i != dropped]
            active, signs = [active[i] for i in keep], [signs[i] for i in keep]
            beta, dense = beta[keep], dense[:, keep]
    return Path(tuple(active), tuple(float(b) for b in beta))


def _step(c: Array, a: Array, level: float, out: Array, beta: Array, way: Array) -> tuple[float, int | None]:
    """How far to go: until a column outside is as correlated as those inside, or one inside passes 0 (its place)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = np.concatenate([(level - c) / (1.0 - a), (level + c) / (1.0 + a)])
        ways = np.where(np.concatenate([out, out]) | ~(ways > 1e-12 * level), np.inf, ways)
        zero = -beta / way
    step = min(level, float(ways.min(initial=np.inf)))
    zero = np.where(zero > 1e-12 * level, zero, np.inf)
    if len(zero) and float(zero.min()) < step:
        return float(zero.min()), int(zero.argmin())
    return step, None


# ---- error rates


def correlations(x: Design, y: Array) -> Array:
    """Partial correlations [m] of y [n] with the columns given the basis."""
    left = x.project(np.asarray(y, dtype=np.float64))
    return x.correlate(left) / max(float(np.linalg.norm(left)), 1e-300)


def p_values(x: Design, y: Array) -> Array:
    """Two-sided p of each partial correlation, by Student's t; 1 for an empty column. For pairs y is −1 and 1."""
    r = np.clip(correlations(x, y), -1 + 1e-15, 1 - 1e-15)
    degrees = max(1, x.shape[0] - x.basis.shape[1] - 1)
    found = 2 * stdtr(degrees, -np.abs(r) * np.sqrt(degrees / (1 - r**2)))
    return np.where(x.length > 0, found, 1.0)


def adjusted(x: Design, y: Array, *, pairs: bool, groups: Sequence[Any] | None = None, seed: int = 0) -> Array:
    """p of each column's correlation with y [n, c], adjusted for looking at all of them: how often the largest of all,
    over `PERMUTATIONS` shuffled labels, is as large (Westfall and Young's single step). What is shuffled is what the
    covariates leave of y (Freedman and Lane); of pairs, and of groups, whole signs are drawn instead."""
    rng = np.random.default_rng(seed)
    left = x.project(y)
    seen = np.abs(x.correlate(left)).max(1)
    largest = np.zeros(PERMUTATIONS)
    block = 50
    for start in range(0, PERMUTATIONS, block):
        found = []
        for _ in range(min(block, PERMUTATIONS - start)):
            found.append(_shuffled(left, rng, pairs, groups))
        count = len(found)
        null = x.correlate(x.project(np.hstack(found)))
        largest[start : start + count] = np.abs(null).max(0).reshape(count, -1).max(1)
    above = np.searchsorted(np.sort(largest), seen * (1 - 1e-12), side="left")
    return np.where(x.length > 0, (1 + PERMUTATIONS - above) / (1 + PERMUTATIONS), 1.0)


def _shuffled(left: Array, rng: np.random.Generator, pairs: bool, groups: Sequence[Any] | None) -> Array:
    if groups is None and not pairs:
        return left[rng.permutation(len(left))]
    place = np.arange(len(left)) if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    return left * rng.choice((-1.0, 1.0), size=int(place.max()) + 1)[place][:, None]


def stability(x: Design, y: Array, *, rate: float, seed: int = 0, groups: Sequence[Any] | None = None) -> Array:
    """[m] share of halves in which the lasso takes a column among its first q (Shah and Samworth 2013: complementary
    pairs of halves). q is such that at `FREQUENCY` the expected number of false choices is at most `rate`:
    q² ≤ rate · (2 · FREQUENCY − 1) · m, if a null column is no likelier to be taken than another."""
    n, m = x.shape
    q = max(1, int(np.sqrt(rate * (2 * FREQUENCY - 1) * int((x.length > 0).sum()))))
    rng, taken = np.random.default_rng(seed), np.zeros(m)
    place = np.arange(n) if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    rows_of = csr_matrix(x.columns)
    left = x.project(y)
    for _ in range(HALVES):
        order = rng.permutation(int(place.max()) + 1)
        first = np.isin(place, order[: len(order) // 2])
        for part in (first, ~first):
            half = Design(csc_matrix(rows_of[part]), _orthonormal(x.basis[part]), np.zeros(m))
            half = Design(half.columns, half.basis, _lengths(half))
            for c in range(left.shape[1]):
                taken[list(lasso(half, left[part, c], q).chosen)] += 1 / left.shape[1]
    return taken / (2 * HALVES)


def against_knockoffs(x: Design, y: Array, *, seed: int = 0, groups: Sequence[Any] | None = None) -> Array:
    """W [m] of columns for y [n, c], which has the basis projected out: how early the lasso's path takes a column
    (`DEEP` for the first), with a minus where it takes its knockoff earlier. Of a column that says nothing either sign
    is as likely. 0 for columns never taken, and for those not looked at (which they are depends on no label). Rows of a
    group are summed up first."""
    rng, found = np.random.default_rng(seed), np.zeros(x.shape[1])
    fires = np.diff(x.columns.indptr)
    usable = np.flatnonzero((x.length > 0) & (fires >= FIRING))
    looked = np.sort(usable[np.argsort(-fires[usable], kind="stable")[:MOST]])
    if not len(looked):
        return found
    rows = np.sort(rng.permutation(x.shape[0])[:ROWS])
    real, left = np.column_stack([x.dense(int(j))[rows] for j in looked]), y[rows]
    if groups is not None:
        place = np.unique(np.asarray(groups, dtype=str)[rows], return_inverse=True)[1]
        sums = csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))))
        real, left = sums @ real, sums @ left
    both = design(np.hstack([real, knockoffs.drawn(real, rng)]), pairs=True)  # the mean is out already
    m, first = len(looked), np.zeros(2 * len(looked))
    for c in range(left.shape[1]):
        chosen = lasso(both, left[:, c], min(DEEP, len(left) // 3)).chosen
        first[list(chosen)] = np.maximum(first[list(chosen)], DEEP - np.arange(len(chosen)))
    real_first, false_first = first[:m], first[m:]
    found[looked] = np.sign(real_first - false_first) * np.maximum(real_first, false_first)
    return found


def _lengths(x: Design) -> Array:
    squares = np.asarray(x.columns.multiply(x.columns).sum(0)).ravel()
    left = squares - ((x.columns.T @ x.basis) ** 2).sum(1)
    return np.where(left > 1e-9 * np.maximum(squares, 1e-300), np.sqrt(np.maximum(left, 0.0)), 0.0)


# ---- separation


def separation(z: Any, y: Array, *, top: int = 100, pairs: bool = False) -> Array:
    """[m]: the mean of y [n] over the (at most `top`) rows where a column is largest *and above 0*, minus its mean over
    the rows where it is 0; NaN where there are none of either. Of pairs, a row where a difference is negative counts as
    the swapped pair, with 1 − y."""
    columns = csc_matrix(z)
    y = np.asarray(y, dtype=np.float64)
    found = np.full(columns.shape[1], np.nan)
    for j in range(columns.shape[1]):
        span = slice(columns.indptr[j], columns.indptr[j + 1])
        values, rows = columns.data[span], columns.indices[span]
        here = rows[values != 0]
        zeros = len(y) - len(here)
        if not len(here) or not zeros:
            continue
        rest = (y.sum() - y[here].sum()) / zeros
        if pairs:
            rest = 0.5  # a pair and its swapped twin: 1 − y beside y
            score, size = np.where(values < 0, 1 - y[rows], y[rows]), np.abs(values)
        else:
            score, size = y[rows], values
        on = size > 0
        order = np.argsort(-size[on], kind="stable")[:top]
        found[j] = score[on][order].mean() - rest
    return found


# ---- all of them behind one name


@dataclass(frozen=True)
class Selection:
    """Columns chosen, best first, by `how`. `rate` is the stated chance of any false one (stability: their expected
    number; knockoffs: their expected share), None where there is no such statement. `scores` is what they were ranked
    by."""

    how: str
    columns: tuple[int, ...]
    scores: tuple[float, ...]
    rate: float | None


def select(
    z: Any, y: Array, k: int, how: str = "lasso", *, covariates: Array | None = None, pairs: bool = False,
    groups: Sequence[Any] | None = None, rate: float | None = None, seed: int = 0,
) -> Selection:  # fmt: skip
    """At most k columns of z [n, m] for y. With `rate`, only columns that keep it: stability selection and knockoffs by
    their own bound (0.05 and 0.2 where none is given), the others by `adjusted`. Without, lasso gives exactly k where
    there are k to give."""
    if how not in HOW:
        raise FairleadError("unknown way to select", expected=" or ".join(HOW), got=how)
    x, wanted = design(z, covariates, pairs=pairs), target(y, pairs=pairs)
    if how == "stability":
        stated = 0.05 if rate is None else rate
        share = stability(x, wanted, rate=stated, seed=seed, groups=groups)
        order = [int(j) for j in np.argsort(-share, kind="stable") if share[j] >= FREQUENCY][:k]
        return Selection(how, tuple(order), tuple(float(share[j]) for j in order), stated)
    if how == "knockoffs":
        stated = SHARE_FALSE if rate is None else rate
        w = against_knockoffs(x, x.project(wanted), seed=seed, groups=groups)
        order = [int(j) for j in np.argsort(-w, kind="stable") if w[j] >= knockoffs.threshold(w, stated)][:k]
        return Selection(how, tuple(order), tuple(float(w[j]) for j in order), stated)
    among = x.length > 0
    if rate is not None:
        among &= adjusted(x, wanted, pairs=pairs, groups=groups, seed=seed) <= rate
    if how == "lasso":
        order, scores = _in_turn([lasso(x, wanted[:, c], k, among=among) for c in range(wanted.shape[1])], k)
    else:
        score = _separations(z, y, pairs) if how == "separation" else np.abs(
            np.column_stack([correlations(x, wanted[:, c]) for c in range(wanted.shape[1])])
        ).max(1)  # fmt: skip
        score = np.where(among & np.isfinite(score), score, -np.inf)
        order = [int(j) for j in np.argsort(-score, kind="stable")[:k] if np.isfinite(score[j])]
        scores = [float(score[j]) for j in order]
    return Selection(how, tuple(order), tuple(scores), rate)


def _separations(z: Any, y: Array, pairs: bool) -> Array:
    labels = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
    found = np.column_stack([np.abs(separation(z, labels[:, c], pairs=pairs)) for c in range(labels.shape[1])])
    return np.where(np.isnan(found), -np.inf, found).max(1)


def _in_turn(paths: Sequence[Path], k: int) -> tuple[list[int], list[float]]:
    """Columns of several paths (one a class), largest coefficient first, one of each by turns."""
    ranked = [sorted(zip(p.weights, p.chosen, strict=True), key=lambda w: -abs(w[0])) for p in paths]
    order: dict[int, float] = {}
    for turn in range(max((len(r) for r in ranked), default=0)):
        for row in ranked:
            if turn < len(row) and len(order) < k:
                order.setdefault(row[turn][1], row[turn][0])
    return list(order), list(order.values())
