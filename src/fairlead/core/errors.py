"""Every exception Fairlead raises on purpose.

    FairleadError                  shown to the user as one message, exit code 2
    ├── PlanError                  a study plan that cannot be read or run
    ├── UnknownName                no such task, method, dictionary, model ...
    ├── LoadError                  weights, dictionary or saved file missing, truncated, hostile, NaN
    ├── EditError                  an edit that cannot be parsed or applied
    ├── BudgetExceeded             an arm asked for more than its cap
    ├── RecordError                Records that cannot be written, read or trusted
    │   ├── PlanChanged            a plan that no longer matches the Records on disk
    │   └── LockError              a study without its lock, or one that differs from it
    ├── RemoteError                a model's endpoint that did not answer, refused, or answered something else
    ├── WorkerError                workers on other machines: none came, one runs other code, or they died on a job
    ├── BrowserError               no browser, port taken, a page that did not answer
    ├── MissingExtra               a package that comes with an extra is not installed; an ImportError too
    └── NotApplicable              a method that does not apply here, with the reason

A message says what was expected, what came, and what to do next.
"""

from __future__ import annotations


class FairleadError(Exception):
    """Base of all of them. `expected`, `got` and `do` become one readable message."""

    def __init__(self, message: str, *, expected: str = "", got: str = "", do: str = "") -> None:
        self.message, self.expected, self.got, self.do = message, expected, got, do
        parts = [message]
        if expected:
            parts.append(f"  expected: {expected}")
        if got:
            parts.append(f"  got:      {got}")
        if do:
            parts.append(f"  do:       {do}")
        super().__init__("\n".join(parts))


class PlanError(FairleadError):
    """A study plan that cannot be read or run."""


class UnknownName(FairleadError):
    """A name that resolves to nothing."""


class LoadError(FairleadError):
    """A file that is missing, truncated, hostile, of the wrong shape, or holds NaN."""


class EditError(FairleadError):
    """An edit that cannot be parsed or applied."""


class BudgetExceeded(FairleadError):
    """An arm asked for more than its cap."""


class RecordError(FairleadError):
    """Records that cannot be written, read or trusted."""


class PlanChanged(RecordError):
    """The plan differs from the one whose Records are already on disk."""


class RemoteError(FairleadError):
    """A model's endpoint that did not answer, refused, or answered something else."""


class WorkerError(FairleadError):
    """Workers on other machines: none came up, one runs other code, or they died on a job again and again."""


class LockError(RecordError):
    """A study that has no lock, differs from it, or whose lock was altered."""


class BrowserError(FairleadError):
    """No browser, a port that is taken, or a page that did not answer."""


class MissingExtra(FairleadError, ImportError):
    """A package that comes with an extra is not installed; `do` says how to install it."""


class NotApplicable(FairleadError):
    """A method that does not apply here; the message is the reason shown as `n/a`."""
