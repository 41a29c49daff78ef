"""Word problems with a number as answer: GSM8K, SVAMP, ASDiv, GSM-Hard, MultiArith, MATH-500, from their files.

    [task_options]
    file = "SVAMP.json"

Options and layouts are those of `questions`; the layout is found by the columns. A number is right when it equals the
gold one exactly, as fractions; the difficulty of an item is its steps, operators, grade or level, where the file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.tasks.questions import QuestionsTask

LAYOUTS = ("asdiv", "svamp", "math500", "gsm_hard", "multiarith", "gsm8k")


def plugin(options: Mapping[str, Any] | None = None) -> QuestionsTask:
    """The task; see `questions` for the options."""
    return QuestionsTask(options, name="maths", layouts=LAYOUTS)
