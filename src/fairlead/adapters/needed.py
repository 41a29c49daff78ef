"""The one message for an extra that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from fairlead.core.errors import FairleadError


class MissingExtra(FairleadError, ImportError):
    """A package that an adapter needs is not installed. It is an ImportError too: whoever looks for one finds it."""


def need(package: str, extra: str) -> None:
    """Raises MissingExtra unless `package`, which comes with `extra`, can be imported."""
    if find_spec(package) is None:
        raise MissingExtra(f"{package} is not installed", do=f"pip install 'fairlead[{extra}]'")
