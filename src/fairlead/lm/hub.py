"""Models by their name on the Hugging Face hub: `org/name`, with a revision as `org/name#revision`.

Files are fetched into the hub's own cache by huggingface_hub, safetensors and tokenizer files only. Where no
hub can be reached, what the cache holds is used; else the error says how to bring the files by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
            huggingface_hub.snapshot_download(name, revision=revision or None, token=token, allow_patterns=patterns)
        )
    except Exception as error:  # huggingface_hub raises OSError, ValueError, httpx errors and a dozen of its own
        raise explained(ref, error) from error


def remote_facts(ref: str, token: str | None = None) -> tuple[dict[str, Any], dict[str, int]]:
    """(config.json, parameters by dtype) of a hub model, without fetching its weights."""
    import json

    import huggingface_hub

    name, _, revision = ref.partition("#")
    try:
        file = huggingface_hub.hf_hub_download(name, "config.json", revision=revision or None, token=token)
        found = huggingface_hub.get_safetensors_metadata(name, revision=revision or None, token=token)
        return json.loads(Path(file).read_text(encoding="utf-8")), {str(kind): n for kind, n in found.parameter_count.items()}
    except Exception as error:  # as above
        raise explained(ref, error) from error


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
