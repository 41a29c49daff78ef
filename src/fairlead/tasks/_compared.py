"""What a free answer is compared with, so that contrasts and attribution are defined for free text too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fairlead.core.keys import sha256

OTHERS = 3  # texts that are right elsewhere and stand in as wrong ones
LONG = 200  # characters; a longer text is no candidate


def compared(
    key: str, mine: str, passed: bool, answers: Iterable[str], wrong: Iterable[str], pool: Sequence[str],
    passes: Callable[[str], bool],
) -> tuple[tuple[str, ...], tuple[str, ...]]:  # fmt: skip
    """(candidates, the right ones) of a free answer: the texts known to be right, against known wrong ones, what was
    said, and OTHERS texts of `pool` that fail here (chosen by the hash of `key`). `mine` "" is no candidate."""
    own = (mine,) if 0 < len(mine) <= LONG else ()
    right = tuple(dict.fromkeys((*answers, *(own if passed else ()))))
    others = [t for t in pool if t not in right and not passes(t)]
    near = sorted(others, key=lambda t: sha256(f"{key}/{t}"))[:OTHERS]
    bad = tuple(dict.fromkeys((*wrong, *(() if passed else own), *near)))
    return (*right, *bad), right
