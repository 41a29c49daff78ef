"""Hypothesis strategies for edits."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fairlead.steering import AllOf, AnyOf, Compare, Edit, Gate, Latent, Level, Op, Reading, Scope, Steps, StoredVector
from fairlead.steering.edit import COMPARISONS, ROLES, SITE_KINDS

quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
numbers = st.floats(allow_nan=False, allow_infinity=False)
sites = st.builds(lambda kind, layer: f"{kind}.{layer}", st.sampled_from(SITE_KINDS), st.integers(0, 99))
directions = st.builds(Latent, st.integers(0, 10**6)) | st.builds(
    StoredVector, st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
)
scopes = (
    st.sampled_from([Scope(k) for k in ("all", "prompt", "generated", "last")])  # type: ignore[arg-type]
    | st.builds(lambda a, n: Scope("tokens", a, a + n), st.integers(0, 500), st.integers(0, 500))
    | st.builds(lambda role: Scope("role", role=role), st.sampled_from(ROLES))
)
steps = st.builds(
    lambda a, n: Steps(a, None if n is None else a + n), st.integers(0, 30), st.none() | st.integers(0, 9)
)
sites_or_none = st.none() | sites


@st.composite
def compares(draw: Any, directions: Any = directions, sites: Any = sites_or_none, numbers: Any = numbers) -> Compare:
    readings = st.builds(Reading, directions, sites)
    left = draw(readings)
    unit = "raw" if isinstance(left.direction, StoredVector) else draw(st.sampled_from(["raw", "max"]))
    right = draw(readings | st.builds(Level, numbers, st.just(unit)))
    return Compare(left, draw(st.sampled_from(COMPARISONS)), right)


def conditions(leaves: Any) -> Any:
    def deeper(inner: Any) -> Any:
        parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.builds(AllOf, parts) | st.builds(AnyOf, parts)

    return st.recursive(leaves, deeper, max_leaves=4)


conditions_or_none = st.none() | conditions(compares())
steps_or_none = st.none() | steps
all_ops = st.sampled_from(Op)


@st.composite
def edits(
    draw: Any,
    directions: Any = directions,
    sites: Any = sites_or_none,
    numbers: Any = numbers,
    scopes: Any = scopes,
    steps: Any = steps_or_none,
    when: Any = conditions_or_none,
    ops: Any = all_ops,
) -> Edit:
    direction, op = draw(directions), draw(ops)
    value = 0.0 if op in (Op.ABLATE, Op.PROJECT_OUT) else draw(numbers)
    raw = op in (Op.ABLATE, Op.PROJECT_OUT, Op.SCALE) or isinstance(direction, StoredVector)
    unit = "raw" if raw else draw(st.sampled_from(["raw", "max"]))
    return Edit(direction, op, value, unit, draw(sites), draw(scopes), Gate(draw(steps), draw(when)))
