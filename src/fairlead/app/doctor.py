"""What this machine has and what it lacks, each with the command that mends it."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import fairlead
from fairlead.app.catalogue import pocket_models
from fairlead.app.models import loading
from fairlead.core.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.lm.estimate import Estimate


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report. `ok` is False where a verb would fail for it."""

    name: str
    ok: bool
    found: str
    do: str = ""


def checks() -> list[Check]:
    """All checks, cheap ones first. Nothing is downloaded and nothing is changed."""
    return [_python(), *_packages(), _threads(), _browser(), *_models()]


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}; fairlead {fairlead.__version__}"
    return Check("python", ok, found, "" if ok else "install Python 3.11 or newer")


def _packages() -> list[Check]:
    out = []
    for name in ("torch", "transformers", "safetensors", "numpy", "scipy", "playwright", "starlette", "uvicorn"):
        try:
            out.append(Check(name, True, version(name)))
        except PackageNotFoundError:
            out.append(Check(name, False, "not installed", f"pip install -c constraints.txt {name}"))
    return out


def _threads() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("threads", False, str(error), "install torch again; the README says which build to choose")
    where = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU only"
    return Check("threads", True, f"{torch.get_num_threads()} torch threads on {os.cpu_count()} cores; {where}")


def _browser() -> Check:
    from fairlead.tasks.shop.browser import find_browser

    try:
        return Check("browser", True, str(find_browser()))
    except FairleadError as error:
        return Check("browser", False, error.message, error.do)


def _models() -> list[Check]:
    from fairlead.lm.load import find, fingerprint

    found = pocket_models()
    if not found:
        return [Check("pocket models", False, "none", "install the package again: they ship inside it")]
    out = []
    for path in found:
        name = f"pocket/{path.name}"
        try:
            find(name)
            if not list(path.glob("*.safetensors")):
                raise FairleadError("no weights", do="install the package again")
            out.append(Check(name, True, f"sha256 {fingerprint(path)[:16]}"))
        except FairleadError as error:
            out.append(Check(name, False, error.message, error.do))
    return out


@dataclass(frozen=True)
class Size:
    """What one model takes and whether that is free here: `fits` is None where the machine does not say what is."""

    model: str
    fits: bool | None
    total: int  # bytes
    about: Estimate


def size(model: str, *, rows: int, tokens: int) -> Size:
    """The memory of a model before it is loaded, on the device and in the precision that were chosen. Of a name on
    the hub only the configuration and the headers of its files are fetched."""
    from fairlead.lm.estimate import estimate_ref

    how = loading()
    about = estimate_ref(
        model, device=how.device or "cpu", dtype=how.dtype, quantize=how.quantize, rows=rows, tokens=tokens
    )
    return Size(model, about.fits, about.total, about)
