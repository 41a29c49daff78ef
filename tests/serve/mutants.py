"""Malformed requests in numbers: bodies that schemathesis draws from a schema, and what a seeded hand makes of them.

Drawing a body takes 20 ms, changing one takes none. A change is of the JSON's tree (another kind of value, a part of
another body, a key twice, a depth, a number that no float holds) or of its bytes (cut, doubled, flipped, no UTF-8).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

Drawn = list[tuple[str, bytes]]  # (path, body)

LINES = (
    "3 += 4", "3 += 1e309", "3 = nan", "99999999 += 1", "-1 += 1", "3 += 4 at prompt; " * 30, "0 *= 0", "((((",
    "3 when 3", "3 += 4 at nowhere", "5 = 1 when 3 > 0.4", "3 *= -1e38; 3 *= -1e38", "$v += 1", "resid.9/3 += 1",
    "3 += 4 on step 1..0",
)  # fmt: skip
ATOMS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.0, 0.5, 1e308, -1e-320, 2**31, 2**63, -(2**63) - 1, 10**300, "", " ", "\x00", "\ud800",
    "a" * 3000, "\U0001d54f\u202e", "NaN", "../../etc/passwd", "<s></s><|user|>", [], {}, [[]], {"": {}}, ["a", "a"],
    [None] * 40, *LINES,
)  # fmt: skip
TOKENS = (
    b"NaN", b"Infinity", b"-0", b"1e999", b'"\\ud800"', b'"\\u0000"', b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b"{}",
    b",,", b"\x00", b'"', b"1" * 5000, b"'x'", b"// x\n", b"\\",
)  # fmt: skip


def drawn(told: dict[str, Any], each: int) -> Drawn:
    """`each` bodies that break the schema of each operation that takes one, and as many that fit it."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    found: Drawn = []
    often = settings(
        max_examples=each, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    schema = schemathesis.openapi.from_dict(told)
    for operation in (one.ok() for one in schema.get_all_operations()):
        if operation.method.upper() != "POST":
            continue
        for mode in (GenerationMode.NEGATIVE, GenerationMode.POSITIVE):

            @often
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case: Any, path: str) -> None:
                sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
                text = sent.get("data") if sent.get("json") is None else json.dumps(sent["json"])
                found.append((path, text.encode() if isinstance(text, str) else text or b""))

            one(path=operation.path)
    return found


def mutants(pool: Drawn, seed: int) -> Iterator[tuple[str, bytes]]:
    """Changed bodies of `pool`, without end; the same for the same seed. Bodies over 4,000 bytes are left as drawn."""
    rng = random.Random(seed)
    small = [(path, body) for path, body in pool if len(body) <= 4000]
    trees = [tree for _, body in small if isinstance(tree := _tree(body), dict)]
    paths = sorted({path for path, _ in small})
    while True:
        path, body = rng.choice(small)
        tree = _tree(body)
        if isinstance(tree, dict) and rng.random() < 0.7:
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                _graft(rng, tree, trees)
            body = _written(rng, tree)
        if rng.random() < 0.35:
            body = _bitten(rng, body)
        yield (rng.choice(paths) if rng.random() < 0.05 else path), body


def _tree(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _graft(rng: random.Random, tree: Any, trees: Sequence[Any]) -> None:
    """One change somewhere in `tree`, in place."""
    node = tree
    while (inner := [v for v in _values(node) if v and isinstance(v, dict | list)]) and rng.random() < 0.6:
        node = rng.choice(inner)
    if isinstance(node, list):
        at: Any = rng.randrange(len(node) + 1)
        node[at : at + rng.randrange(2)] = [_atom(rng, trees)] * rng.choice((1, 1, 2, 70))
        return
    key = rng.choice([*node, "edits", "zzz"])
    match rng.randrange(5):
        case 0:
            node.pop(key, None)
        case 1:
            node[rng.choice(("", "MODEL", key + " ", "__proto__"))] = node.get(key)
        case 2 if isinstance(node.get(key), str):
            node[key] = node[key] * 20 + rng.choice(("", "\x00", "\ud800", "\n"))
        case _:
            node[key] = rng.choice(LINES) if key == "edits" and rng.random() < 0.7 else _atom(rng, trees)


def _atom(rng: random.Random, trees: Sequence[Any]) -> Any:
    """A value from nowhere, or a part of another body; now and then in a box."""
    found = rng.choice(ATOMS)
    if rng.random() < 0.3 and (parts := list(_values(rng.choice(trees)))):
        found = rng.choice(parts)
    found = json.loads(json.dumps(found))  # a copy: it may be changed again
    return rng.choice((found, found, found, [found], {"type": "text", "text": found}))


def _values(node: Any) -> Sequence[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else ()


def _written(rng: random.Random, tree: dict[str, Any]) -> bytes:
    """Its JSON; one time in ten with a key twice."""
    text = json.dumps(tree)
    if tree and rng.random() < 0.1:
        twice = json.dumps({rng.choice(list(tree)): rng.choice(ATOMS)})
        text = text[:-1] + ", " + twice[1:]
    return text.encode()


def _bitten(rng: random.Random, body: bytes) -> bytes:
    """Its bytes, changed in one place."""
    a, b = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    match rng.randrange(5):
        case 0:
            return body[:a]
        case 1:
            return body[:a] + body[b:]
        case 2:
            return body[:b] + body[a:]
        case 3:
            return body[:a] + rng.choice(TOKENS) + body[a:]
        case _:
            return body[:a] + bytes([rng.randrange(256)]) + body[a + 1 :]
