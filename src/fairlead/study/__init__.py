"""The trial loop, resume, budget caps, executors. Tasks, methods, models and dictionaries arrive by name."""

from fairlead.study.journal import Progress
from fairlead.study.loop import run_study, study_facts

__all__ = ["Progress", "run_study", "study_facts"]
