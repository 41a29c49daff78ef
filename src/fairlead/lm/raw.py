"""Token ids followed and continued as they stand, under a Subject's edits: for harnesses that bring their own text.

A raw text has no turns. A Subject that adds a system line or worked examples adds them to a chat; asked for a raw text
it would leave them out, so it is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fairlead.core.errors import FairleadError
from fairlead.core.types import Messages
from fairlead.lm.forwards import Row
from fairlead.lm.subject import LocalSubject
from fairlead.lm.tree import grow


def text_row(subject: LocalSubject, ids: Sequence[int]) -> Row:
    """A raw text's tokens [P], at least one."""
    if subject._system or subject._shown:
        raise FairleadError(
            "this model has words of its own to put into a chat, and a raw text is none",
            expected="chat messages",
            do="ask through the chat template",
        )
    if not ids:
        raise FairleadError("a text of no tokens", expected="some text, or the token that begins one")
    return Row(np.array(ids, dtype=np.int64), None, 0, 1)


def chat_row(subject: LocalSubject, messages: Messages) -> Row:
    """Chat messages, rendered with the Subject's own system lines and examples."""
    return subject._rows([messages], None, None)[0]


def follow(
    subject: LocalSubject, rows: Sequence[Row], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """For each row log p(continuation | row), in nats, and whether greedy decoding would say just that continuation.
    One of no tokens has log-probability 0."""
    trees = [grow([ids]) for ids in continuations]
    for row, ids in zip(rows, continuations, strict=True):
        subject.checkpoint.fits(len(row.ids), len(ids))
    found: list[tuple[float, bool]] = []
    with subject._alone(), torch.inference_mode():
        for start in range(0, len(rows), subject.max_batch):
            part = slice(start, start + subject.max_batch)
            found += subject._forwards().follow(rows[part], trees[part])
            subject._collect(len(rows[part]))
    return found


def continued(subject: LocalSubject, rows: Sequence[Row], limits: Sequence[int]) -> list[str]:
    """Greedy continuations (or drawn ones, of a sampled Subject), each up to its limit or the end of a turn."""
    for row, limit in zip(rows, limits, strict=True):
        subject.checkpoint.fits(len(row.ids), limit)
    chat, said = subject.checkpoint.chat, []
    with subject._alone(), torch.inference_mode():
        for start in range(0, len(rows), subject.max_batch):
            part = slice(start, start + subject.max_batch)
            ends = frozenset(chat.end_ids)
            said += subject._forwards().decode(rows[part], limits[part], ends, subject._sampling)
            subject._collect(len(rows[part]))
    return [chat.decode(ids) for ids in said]
