"""Which latents have an effect on what the model says: output score and Δ token confidence, of all latents.

Latent i is amplified at the last token of a neutral prompt, by `strength` (10) times its largest activation. With the
next-token probabilities p that follow, and the 20 tokens T_i that its decoder row promotes most (logit lens):

    output score              S_i = (1 − min rank_p(T_i) / |V|) · max p(T_i), ranks from 0    (Arad et al. 2025)
    Δ token confidence        C(p_i) − C(p), with C(p) = −mean log p over the 20 likeliest tokens (Wang et al. 2025,
                              after Fu et al. 2025): how much surer of one token the amplified model is
    chance                    S_i with the tokens of another latent: what a score is worth that reads the wrong tokens

Each batch of latents is one token through the blocks above the site (see suffix.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.core.keys import canonical
from fairlead.features.lens import Lens, lens_of
from fairlead.features.store import Array, load_array, save_arrays
from fairlead.features.suffix import Suffix

NEUTRAL, STRENGTH, PROMOTED = "From my experience,", 10.0, 20
NAMES = ("score", "confidence", "chance", "rank", "probability")
_BLOCK = 4096  # latents that are saved together

Progress = Callable[[int, int], None]  # latents done, of how many


@dataclass(frozen=True, eq=False)
class Screened:
    """Per latent [n] of `latents`: `score`, `confidence` (the change), `chance`, and what the score is made of: the
    `rank` of the promoted token that is likeliest under the edit, from 0, and its `probability`."""

    latents: Array
    score: Array
    confidence: Array
    chance: Array
    rank: Array
    probability: Array

    def best(self, n: int, by: str = "score") -> list[int]:
        """The latents of highest `by`, best first; ties go to the lower number."""
        order = np.lexsort((self.latents, -getattr(self, by)))
        return [int(i) for i in self.latents[order[:n]]]


def screen(
    subject: Any,
    dictionary: Any,
    *,
    latents: Sequence[int] | None = None,
    largest: Tensor | None = None,
    prompt: str = NEUTRAL,
    strength: float = STRENGTH,
    batch: int = 256,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Screened:
    """Screens `latents` (default: all). `largest` [m] are their largest activations (default: the dictionary's).

    With `out`, every 4,096 latents are saved there when done, and the same call goes on where it was stopped."""
    wanted = np.arange(dictionary.n_features) if latents is None else dictionary.check_ids(latents).cpu().numpy()
    levels = dictionary.max_activation if largest is None else largest
    if levels is None:
        raise FairleadError(
            f"{dictionary.name} has no largest activations",
            expected="max_activation in the dictionary, or a feature store",
            do="harvest first: `fairlead features harvest`",
        )
    dictionary.check_width(subject.d_model)
    ids = subject.text_tokens([prompt])[0]
    about = {
        "model": subject.checkpoint.fingerprint, "dictionary": dictionary.fingerprint, "prompt": prompt,
        "strength": strength, "batch": batch, "latents": len(wanted), "format": 1,
    }  # fmt: skip
    if out is not None:
        _begin(out, about)
    run: tuple[Suffix, Lens] | None = None
    parts: list[dict[str, Array]] = []
    for number, start in enumerate(range(0, len(wanted), _BLOCK)):
        block = wanted[start : start + _BLOCK]
        place = None if out is None else out / f"{number:05d}"
        if place is None or not place.is_dir():
            run = run or (Suffix(subject, ids, dictionary.site), lens_of(subject))

            def told(done: int, before: int = start) -> None:
                if progress:
                    progress(before + done, len(wanted))

            parts.append(_scores(*run, dictionary, torch.as_tensor(block), levels.float(), strength, batch, told))
            if place is not None:
                save_arrays(place, {"latents": block, **parts[-1]})
        else:
            parts.append({name: load_array(place / f"{name}.npy") for name in NAMES})
        if progress:
            progress(start + len(block), len(wanted))
    joined = {name: np.concatenate([p[name] for p in parts]) for name in NAMES}
    return Screened(wanted, **joined)


def _scores(
    suffix: Suffix,
    lens: Lens,
    dictionary: Any,
    latents: Tensor,
    levels: Tensor,
    strength: float,
    batch: int,
    told: Callable[[int], None],
) -> dict[str, Array]:
    bare = _confidence(suffix.bare[None].log_softmax(1))
    found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    done = 0
    for part in _even_parts(latents, batch):
        rows = dictionary.decoder_rows(part).float()
        tokens = lens.logits(rows).topk(min(PROMOTED, lens.unembedding.shape[0]), dim=1).indices
        change = rows * (strength * levels[part.to(levels.device)].to(rows.device))[:, None]
        logp = suffix.logits(change).log_softmax(1)
        score, rank, probability = _read(logp, tokens)
        chance, _, _ = _read(logp, tokens.roll(1, 0))
        values = (score, _confidence(logp) - bare, chance, rank, probability)
        for name, value in zip(NAMES, values, strict=True):
            found[name].append(value.cpu())
        done += len(part)
        told(done)
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def _read(logp: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(score, rank, probability) [n] of the likeliest of each row's `tokens` [n, 20] under `logp` [n, V]."""
    best = logp.gather(1, tokens).amax(1)
    rank = (logp > best[:, None]).sum(1)
    probability = best.exp()
    return (1.0 - rank / logp.shape[1]) * probability, rank.int(), probability


def _confidence(logp: Tensor) -> Tensor:
    return -logp.topk(min(PROMOTED, logp.shape[1]), dim=1).values.mean(1)


def _even_parts(latents: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Parts of at most `batch`, none much smaller than the others: a part of one would have itself for chance."""
    return latents.tensor_split(max(1, -(-len(latents) // batch)))


def _begin(out: Path, about: dict[str, Any]) -> None:
    file = out / "screen.json"
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")) != about:
            raise FairleadError(
                f"{out} holds another screening",
                expected="the same model, dictionary, prompt and settings",
                do="choose another directory, or remove this one",
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(canonical(about), encoding="utf-8")
