"""The trial loop, resume, budget caps. Tasks, methods, models and dictionaries arrive by name."""

from fairlead.study.loop import Progress, run_study, study_facts

__all__ = ["Progress", "run_study", "study_facts"]
