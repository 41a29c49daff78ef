"""Packages that come with an extra: one message where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from fairlead.core.errors import MissingExtra


def need(package: str, extra: str) -> None:
    """Raises MissingExtra unless `package`, which comes with `extra`, can be imported."""
    if find_spec(package) is None:
        raise MissingExtra(f"{package} is not installed", do=f"pip install 'fairlead[{extra}]'")
