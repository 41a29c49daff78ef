"""Statistics, the fairness rubric, the verdict, importers of foreign results. Reads Records, never a model."""

from fairlead.judge.tables import Question
from fairlead.judge.verdict import Verdict, judge

__all__ = ["Question", "Verdict", "judge"]
