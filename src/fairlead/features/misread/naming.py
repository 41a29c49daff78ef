"""Words for latents, and the note that is made of them.

The labels are those of `features.labels`: made on some windows of the train prompts, chosen on others, scored on a
third part; a label below the threshold is none, and is counted. A note is made of a label's words alone, so a label
has to be words that stand for the latent: those it fires on, those of the texts it fires in, the nearest of the
vocabulary, those it promotes. The words that are misread name nothing here, and neither do the words of an answer.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairlead.core.errors import NotApplicable
from fairlead.core.types import Messages
from fairlead.features.evidence import Gatherer
from fairlead.features.harvest import chats_of, harvest
from fairlead.features.index import Index
from fairlead.features.labellers import Labeller, Lens, Peaks, Terms
from fairlead.features.labels import THRESHOLD, Label, label
from fairlead.features.lens import lens_of

TEMPLATE = 'Note: here "{span}" means {meant}, not {taken}.'
WORDS = 3  # of a label that a note holds
PROMOTED = 20
_SAID = re.compile(r"(?=.*[^\W\d_])[\w'’ -]+")  # words with a letter; no special token, no punctuation
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Gloss:
    """What a note says: the word means `meant` and not `taken`, each a few words joined by "or"."""

    meant: str
    taken: str

    def note(self, span: str) -> str:
        return TEMPLATE.format(span=span, meant=self.meant, taken=self.taken)


async def name_latents(
    subject: Any,
    dictionary: Any,
    prompts: Sequence[Messages],
    latents: Sequence[int],
    *,
    avoid: frozenset[str] = frozenset(),
    more: Sequence[Labeller] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[int, Label]:
    """A label for each of `latents` from `prompts`. `avoid` are words (lower case) that name nothing; `more` are
    labellers beside the four that need no other model."""
    unique = list(dict.fromkeys(prompts))
    with tempfile.TemporaryDirectory(prefix="fairlead-") as folder:
        store = harvest(subject, dictionary, chats_of(subject, unique), Path(folder) / "store", with_neighbours=False)
        gatherer = Gatherer(store, Index(store), seed=seed)
        vocabulary = _of_the_vocabulary(subject, dictionary, avoid)
        makers: list[Labeller] = [Peaks(avoid=avoid), Terms(avoid=avoid), *vocabulary, *more]
        found: dict[int, Label] = {}
        for done, latent in enumerate(dict.fromkeys(latents), 1):
            found[latent] = await label(gatherer.evidence(latent), makers)
            if progress:
                progress(done, len(set(latents)))
    return found


def _of_the_vocabulary(subject: Any, dictionary: Any, avoid: frozenset[str]) -> list[Labeller]:
    """What a latent's direction is nearest to among the token embeddings, and what it promotes by the logit lens."""
    tokenizer = subject.tokenizer
    embeddings = subject.model.get_input_embeddings().weight

    def texts(scores: torch.Tensor) -> list[str]:
        return [tokenizer.decode([int(t)], clean_up_tokenization_spaces=False) for t in scores.topk(
            min(PROMOTED, len(scores))).indices]  # fmt: skip

    @torch.inference_mode()
    def nearest(latent: int) -> list[str]:
        row = dictionary.decoder_rows([latent]).to(embeddings)
        return texts(torch.nn.functional.cosine_similarity(row, embeddings, dim=1).float())

    found: list[Labeller] = []
    if embeddings.shape[1] == dictionary.d_in:
        found.append(Lens(nearest, "vocabulary", "nearest to ", avoid))
    try:
        lens = lens_of(subject)
    except NotApplicable:
        return found
    return [*found, Lens(lambda i: texts(lens.logits(dictionary.decoder_rows([i]))[0]), avoid=avoid)]


def words_for(
    latents: Sequence[int], labels: Mapping[int, Label], avoid: frozenset[str], threshold: float = THRESHOLD
) -> tuple[str, int | None]:
    """(at most WORDS words of the first latent that has a label that holds, that latent); ("", None) without one."""
    for latent in latents:
        found = labels.get(latent)
        if found is None or not found.holds(threshold):
            continue
        words = [t for t in found.terms if _SAID.fullmatch(t) and t.lower() not in avoid]
        if words:
            return " or ".join(dict.fromkeys(words[:WORDS])), latent
    return "", None
