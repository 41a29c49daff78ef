"""What a figure of speech means, or whether a verb is one: Fig-QA, MOH-X, TroFi and VUA, from their files.

    [task_options]
    file = "dev.csv"

Options and layouts are those of `questions`; the layout is found by the columns. In Fig-QA the choices are the two
endings; `paraphrase` is the one that is meant, `pair` the other text of the pair, which means the other. Elsewhere the
choices are literal and metaphorical, without a paraphrase. The stratum `label` is the gold class; F1 of a class is
computed from Records by judge.classification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.tasks.questions import QuestionsTask

LAYOUTS = ("figqa", "vua", "moh_x", "trofi")


def plugin(options: Mapping[str, Any] | None = None) -> QuestionsTask:
    """The task; see `questions` for the options."""
    return QuestionsTask(options, name="metaphor", layouts=LAYOUTS)
