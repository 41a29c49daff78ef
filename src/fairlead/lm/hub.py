"""Models by their name on the Hugging Face hub: `org/name`, with a revision as `org/name#revision`.

Files are fetched into the hub's own cache by huggingface_hub, safetensors and tokenizer files only. Where no
hub can be reached, what the cache holds is used; else the error says how to bring the files by hand.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from fairlead.core.errors import LoadError
from fairlead.lm.weights import READ

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_name(ref: str) -> bool:
    """Whether `ref` can be a name on the hub, with or without #revision."""
    return NAME.fullmatch(ref.partition("#")[0]) is not None


def fetch(ref: str, token: str | None = None) -> Path:
    """The folder of a hub model, fetched now if it is not in the cache. `token` for gated models; without it the
    hub's own settings count (HF_TOKEN, or what `hf auth login` stored)."""
    import huggingface_hub

    name, _, revision = ref.partition("#")
    try:
        patterns = [*READ, "tokenizer.model"]
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, token=token, allow_patterns=patterns, local_files_only=not reachable()
            )
        )
    except Exception as error:  # huggingface_hub raises OSError, ValueError, httpx errors and a dozen of its own
        raise explained(ref, error) from error


def described(ref: str, token: str | None = None) -> tuple[Path, dict[str, int]]:
    """(the folder its config.json was fetched to, parameters by dtype as in a safetensors header) of a hub model,
    without fetching its weights."""
    import huggingface_hub

    name, _, revision = ref.partition("#")
    try:
        if not reachable():
            raise ConnectionError(f"{_endpoint()} cannot be reached from here")
        file = huggingface_hub.hf_hub_download(name, "config.json", revision=revision or None, token=token)
        found = huggingface_hub.get_safetensors_metadata(name, revision=revision or None, token=token)
    except Exception as error:  # as above
        raise explained(ref, error) from error
    return Path(file).parent, {str(kind): count for kind, count in found.parameter_count.items()}


def reachable() -> bool:
    """Whether the hub answers at all, found out in seconds: its own client retries for half a minute."""
    if any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return True  # whoever set a proxy knows
    found = urlsplit(_endpoint())
    try:
        socket.create_connection((found.hostname or "", found.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def explained(ref: str, error: Exception) -> LoadError:
    """What went wrong with the hub, and what to do about it."""
    name, _, revision = ref.partition("#")
    kind = type(error).__name__
    if kind == "GatedRepoError":
        do = f"accept its licence at https://huggingface.co/{name}, then set HF_TOKEN"
    elif kind == "RevisionNotFoundError":
        do = f"look at https://huggingface.co/{name}/commits for the revisions there are"
    elif kind == "RepositoryNotFoundError":
        do = "check the name; for a private model set HF_TOKEN"
    else:
        do = (
            f"where the hub can be reached, run `hf download {name}{' --revision ' + revision if revision else ''} "
            "--local-dir DIR`, bring DIR here, and name DIR instead"
        )
    return LoadError(
        f"the hub gave no model {ref!r}",
        expected="a directory, pocket/NAME, or a name on a hub that can be reached",
        got=f"{kind}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no reason'}",
        do=do,
    )
