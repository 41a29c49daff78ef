"""The long tail: any dictionary that sae-lens knows, by `saelens:RELEASE/ID[@SITE]`, where sae-lens is installed.

sae-lens fetches and converts; what comes out is checked and folded as a file in its layout would be. Its own
conversions of sparsify and Llama Scope differ from those projects (docs/dictionaries.md): use a path for these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.dictionaries import hookpoints, saelens
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder


def load(ref: str) -> SparseDictionary | Transcoder:
    """The dictionary `saelens:RELEASE/ID[@SITE]`. LoadError without sae-lens, and when it finds nothing."""
    base, _, site = ref.removeprefix("saelens:").partition("@")
    release, _, name = base.partition("/")
    try:
        from sae_lens import SAE  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise LoadError(
            f"{ref} needs sae-lens",
            expected="the extra fairlead[saelens]",
            got=str(error),
            do="pip install 'fairlead[saelens]', or fetch the files and give their path",
        ) from error
    try:
        loaded: Any = SAE.from_pretrained(release, name)
    except Exception as error:
        raise LoadError(f"sae-lens cannot load {ref}", expected="saelens:RELEASE/ID", got=str(error)[:300]) from error
    sae = loaded[0] if isinstance(loaded, tuple) else loaded
    cfg, where = dict(sae.cfg.to_dict()), Path(base)
    said = saelens._site(cfg, saelens._table(cfg, "metadata", where))
    weights = {key: value.detach().cpu() for key, value in sae.state_dict().items()}
    return saelens.from_parts(cfg, weights, {}, where, site=hookpoints.chosen(where, said, site))
