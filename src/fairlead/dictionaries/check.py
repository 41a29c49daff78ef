"""Does a dictionary fit a model? L0 and explained variance on the user's own tokens, against published figures.

A reader that misses a gate, a centring or a scale, or a dictionary of another layer or model, still loads and
still encodes; what it says is worthless. These two numbers show it. Where they are off, the likely causes are
tried one by one, and the warning names the one that would explain it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.dictionaries import hookpoints
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.fold import decoder_norms
from fairlead.dictionaries.quality import evaluate
from fairlead.dictionaries.transcoder import Transcoder

L0_FACTOR = 1.5  # L0 may differ this much from one text to another
VARIANCE_DROP = 0.1
LOW_VARIANCE = 0.5  # without a published figure: less than half explained
MENDS = 0.5  # an explanation is named when it takes away at least this share of what is off
_BATCH = 16
_TRIED = 512  # rows for each explanation that is tried
_SCALES = tuple(2.0**p for p in (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5))
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Measured:
    """Latents on per token, and the share of the variance that the reconstruction explains."""

    l0: float
    explained_variance: float


@dataclass(frozen=True)
class Check:
    """What was measured on `rows` tokens at `site`, what was published (None: unknown), and what to look at.
    `tried` holds the explanations that were tried, and what would be measured under each."""

    name: str
    site: str
    rows: int
    l0: float
    explained_variance: float
    dead: float
    published: Mapping[str, Any]
    warnings: tuple[str, ...]
    tried: Mapping[str, Measured]

    @property
    def ok(self) -> bool:
        """Nothing was found that looks wrong."""
        return not self.warnings


def self_check(
    dictionary: SparseDictionary | Transcoder,
    subject: Any,
    texts: Iterable[Any],
    *,
    tokens: int = 2048,
    max_tokens: int = 256,
    published: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Check:
    """Read `subject` (a LocalSubject) on `texts` (raw strings, or prompts as messages) until `tokens` tokens are
    seen, and compare. The first token of every text is left out: it carries huge activations in most models,
    and dictionaries are trained without it. `published` replaces what the dictionary's own files say.

    UnknownName when the model has no such site, LoadError when the widths differ."""
    dictionary.check_width(subject.d_model)
    read_at = dictionary.site_in if isinstance(dictionary, Transcoder) else dictionary.site
    around = _around(read_at, subject.sites)
    found = _read(subject, texts, sorted({read_at, dictionary.site, *around}), tokens, max_tokens, progress)
    others = {} if isinstance(dictionary, Transcoder) else {site: found[site] for site in around}
    return check_activations(dictionary, found[read_at], found[dictionary.site], others, published)


@torch.no_grad()
def check_activations(
    dictionary: SparseDictionary | Transcoder,
    x: Tensor,
    y: Tensor | None = None,
    others: Mapping[str, Tensor] | None = None,
    published: Mapping[str, Any] | None = None,
) -> Check:
    """As `self_check`, on activations x [n, d] where the dictionary reads, y [n, d] what it explains (default: x)
    and the activations at `others` sites."""
    told = dict(published if published is not None else figures(dictionary))
    if isinstance(dictionary, Transcoder):
        measured = _transcoded(dictionary, x, x if y is None else y)
    else:
        measured = evaluate(dictionary, x)
    l0, variance = measured["l0"], measured["explained_variance"]
    complaints = _complaints(dictionary, l0, variance, told)
    tried: dict[str, Measured] = {}
    if complaints:
        if isinstance(dictionary, SparseDictionary):
            tried = _explanations(dictionary, x[:_TRIED], {site: o[:_TRIED] for site, o in (others or {}).items()})
        complaints.append(_likely(Measured(l0, variance), tried, told))
    return Check(
        dictionary.name, dictionary.site, len(x), l0, variance, measured["dead"], told, tuple(complaints), tried
    )


def figures(dictionary: Any) -> dict[str, Any]:
    """The figures that came with the dictionary: published ones, or those of its own training."""
    told = dictionary.metadata.get("published")
    if isinstance(told, Mapping):
        return dict(told)
    own = dictionary.metadata.get("statistics")
    if not isinstance(own, Mapping):
        return {}
    return {key: own[key] for key in ("l0", "explained_variance") if key in own} | {"source": "its own training"}


def _complaints(dictionary: Any, l0: float, variance: float, told: Mapping[str, Any]) -> list[str]:
    """One line for each number that is off."""
    out, source = [], f" ({told['source']})" if told.get("source") else ""
    wanted = told.get("explained_variance")
    if wanted is not None and variance < wanted - VARIANCE_DROP:
        out.append(f"it explains {variance:.2f} of the variance here; published: {wanted:.2f}{source}")
    elif wanted is None and variance < LOW_VARIANCE:
        out.append(f"it explains {variance:.2f} of the variance here, less than half; no figure is published")
    expected = told.get("l0")
    if expected and not expected / L0_FACTOR <= l0 <= expected * L0_FACTOR:
        out.append(f"{l0:.1f} latents are on per token here; published: {expected:g}{source}")
    elif not expected and not 0.5 <= l0 <= dictionary.n_features / 10:
        out.append(f"{l0:.1f} of {dictionary.n_features} latents are on per token here: hardly a sparse code")
    return out


def _explanations(dictionary: SparseDictionary, x: Tensor, others: Mapping[str, Tensor]) -> dict[str, Measured]:
    """What would be measured if the dictionary were read otherwise, or elsewhere."""
    out: dict[str, Measured] = {}

    def try_(label: str, changed: SparseDictionary, rows: Tensor) -> None:
        got = evaluate(changed, rows)
        out[label] = Measured(got["l0"], got["explained_variance"])

    centred = dictionary.apply_b_dec_to_input
    try_(
        "without centring its input" if centred else "with its input centred by b_dec",
        dictionary.replace(apply_b_dec_to_input=not centred), x,
    )  # fmt: skip
    usual = math.sqrt(x.shape[-1]) / float(x.norm(dim=-1).mean().clamp_min(1e-12))
    for scale in (usual, *_SCALES):
        label = f"with its input multiplied by {scale:.3g}" + (" (norm √d)" if scale == usual else "")
        try_(label, dictionary, x * scale)
    if dictionary.threshold is not None and dictionary.activation == "jumprelu":
        norms = decoder_norms(dictionary.W_dec)
        try_("with a gate on pre·‖W_dec‖", dictionary.replace(threshold=dictionary.threshold / norms), x)
        try_("with a gate on pre/‖W_dec‖", dictionary.replace(threshold=dictionary.threshold * norms), x)
        try_("with no gate but the relu", dictionary.replace(activation="relu", threshold=None), x)
    for site, rows in others.items():
        try_(f"at {site}", dictionary, rows)
    return out


def _likely(now: Measured, tried: Mapping[str, Measured], told: Mapping[str, Any]) -> str:
    """The sentence that names the explanation which mends most, or says that none does."""

    def off(found: Measured) -> float:
        """How far from what was published; 1 - variance where nothing was."""
        wanted, expected = told.get("explained_variance"), told.get("l0")
        gap = max(0.0, (1.0 if wanted is None else wanted) - found.explained_variance)
        spread = abs(math.log(max(found.l0, 1e-3) / expected)) if expected else 0.0
        return min(gap, 2.0) + 0.3 * spread

    best = min(tried, key=lambda label: off(tried[label]), default=None)
    if best is None:
        return "what may be wrong is not tried for transcoders: look at its layer, and at the model it was trained on"
    if off(tried[best]) > (1 - MENDS) * off(now):
        return (
            "nothing that was tried explains it: it may belong to another model (a base one, a chat-tuned one), or "
            "to text unlike this"
        )
    got = tried[best]
    meaning = {"at ": "a wrong layer or site", "with its input multiplied": "a wrong scale of its input"}
    meaning |= {"without centring": "a wrong centring", "with its input centred": "a missing centring"}
    meaning |= {"with a gate": "a wrong gate", "with no gate": "a wrong gate"}
    means = next((m for start, m in meaning.items() if best.startswith(start)), "")
    return f"this may mean {means}: {best} it explains {got.explained_variance:.2f} with L0 {got.l0:.1f}"


def _transcoded(dictionary: Transcoder, x: Tensor, y: Tensor) -> dict[str, float]:
    f = dictionary.encode(x)
    error, spread = (dictionary.reconstruct(x) - y).square().sum(), (y - y.mean(0)).square().sum()
    if float(spread) == 0.0:
        raise FairleadError("explained variance has no meaning here", expected="activations that differ", got="one")
    on = f > 0
    return {
        "l0": float(on.float().sum(-1).mean()),
        "explained_variance": 1.0 - float(error / spread),
        "dead": 1.0 - float(on.any(0).float().mean()),
    }


def _around(site: str, sites: Sequence[str]) -> list[str]:
    """The sites of the same kind up to two layers away, and the other sites of its own layer."""
    kind, _, layer = site.rpartition(".")
    if not hookpoints.known(site):
        return []
    near = [f"{kind}.{int(layer) + step}" for step in (-2, -1, 1, 2)]
    near += [f"{other}.{layer}" for other in ("attn", "mlp", "resid") if other != kind]
    return [other for other in near if other in sites]


def _read(
    subject: Any, texts: Iterable[Any], sites: Sequence[str], tokens: int, max_tokens: int, progress: Progress | None
) -> dict[str, Tensor]:
    """Activations [n, d] at each site, without the first token of each text, until `tokens` rows are seen."""
    got: dict[str, list[Tensor]] = {site: [] for site in sites}
    waiting: list[Any] = []
    seen = 0

    def flush() -> int:
        if isinstance(waiting[0], str):
            found = subject.text_activations(waiting, sites, max_tokens=max_tokens)
        else:
            found = subject.activations(waiting, sites, tokens="all")
        for site in sites:
            got[site] += [rows[1:].float() for rows in found[site]]
        return sum(len(rows) - 1 for rows in found[sites[0]])

    for text in texts:
        waiting.append(text)
        if len(waiting) == _BATCH:
            seen, waiting = seen + flush(), []
            if progress:
                progress(min(seen, tokens), tokens)
            if seen >= tokens:
                break
    if waiting and seen < tokens:
        seen += flush()
    if seen < 2:
        raise FairleadError("too few tokens to check a dictionary on", expected="texts of some words", got=f"{seen}")
    if progress:
        progress(tokens, tokens)
    return {site: torch.cat(rows)[:tokens] for site, rows in got.items()}
