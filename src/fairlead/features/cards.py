"""Feature cards: what a latent fires on, what it writes, and what moving it does. JSON, as the report reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fairlead.core import notebook
from fairlead.core.errors import NotApplicable
from fairlead.features.lens import lens_of
from fairlead.features.points import Point

CONTEXTS, AROUND, TOKENS, NEIGHBOURS = 5, 8, 6, 4


class Card(dict[str, Any]):
    """A card: plain JSON, which a notebook shows as what it says."""

    def _repr_html_(self) -> str:
        figures = [(name, self.get(name)) for name in ("density", "max_activation", "effect")]
        written = ", ".join(str(token) for token, _ in self.get("logit_lens", {}).get("positive", ()))
        shown = (notebook.marked(c["tokens"], c["highlight"]) for c in self.get("top_contexts", ()))
        title = f"latent {self.get('index')} at {self.get('site')}: {self.get('label') or 'no label'}"
        return notebook.box(title, notebook.table(("", ""), figures), notebook.line(f"writes: {written}"), *shown)


def card(
    index: int,
    subject: Any,
    dictionary: Any,
    points: Sequence[Point],
    *,
    doses: Sequence[dict[str, Any]] = (),
    effect: float | None = None,
    contrast: dict[str, float | None] | None = None,
) -> Card:
    """One latent's card. Contexts come from the points' prompts; `effect` is the gain in balanced P(right) of
    the latent's best single edit on train; `contrast` is wrong against right decisions."""
    contexts = top_contexts(index, subject, dictionary, points)
    rate, largest = dictionary.firing_rate, dictionary.max_activation
    return Card({
        "index": index,
        "site": dictionary.site,
        "density": None if rate is None else float(rate[index]),
        "max_activation": None if largest is None else float(largest[index]),
        "effect": effect,
        "label": label(contexts),
        "top_contexts": contexts,
        "logit_lens": logit_lens(subject, dictionary.decoder_rows([index])[0]),
        "neighbours": neighbours(index, dictionary),
        "contrast": contrast or {},
        "dose_response": list(doses),
    })  # fmt: skip


def top_contexts(index: int, subject: Any, dictionary: Any, points: Sequence[Point]) -> list[dict[str, Any]]:
    """The prompts on which the latent fires highest, each once: {"tokens", "highlight", "value"}."""
    prompts = list(dict.fromkeys(p.decision.messages for p in points))
    hidden = subject.activations(prompts, [dictionary.site], "all")[dictionary.site]
    found = []
    for messages, x in zip(prompts, hidden, strict=True):
        values = dictionary.encode_rows(x.float(), [index])[:, 0]
        value, at = values.max(0)
        if float(value) > 0:
            found.append((float(value), int(at), messages))
    contexts: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for value, at, messages in sorted(found, key=lambda f: -f[0]):
        prompt = subject.tokens(messages)
        first = max(0, at - AROUND)
        tokens = [prompt.text[a:b] for a, b in prompt.offsets[first : at + AROUND + 1].tolist()]
        if tuple(tokens) not in seen:
            seen.add(tuple(tokens))
            contexts.append({"tokens": tokens, "highlight": at - first, "value": value})
        if len(contexts) == CONTEXTS:
            break
    return contexts


def label(contexts: Sequence[dict[str, Any]]) -> str | None:
    """What the highlighted tokens are, in their own words; a description of when it fires, not of what it means."""
    words = Counter(c["tokens"][c["highlight"]].strip() for c in contexts)
    shown = [word for word, _ in words.most_common(3) if word]
    return "fires on " + ", ".join(f"“{word}”" for word in shown) if shown else None


def logit_lens(subject: Any, direction: Tensor) -> dict[str, list[list[Any]]]:
    """Tokens whose logits one unit of `direction` [d] raises and lowers most, read through the final norm's
    gain and the unembedding (the norm's division is left out, so the scale is relative). Empty where no norm feeds
    the head."""
    try:
        logits = lens_of(subject).logits(direction[None])[0]
    except NotApplicable:
        return {"positive": [], "negative": []}
    top, bottom = logits.topk(TOKENS), (-logits).topk(TOKENS)

    def name(token: int) -> str:
        return str(subject.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def rows(ids: Tensor) -> list[list[Any]]:
        return [[name(int(i)), float(logits[i])] for i in ids]

    return {"positive": rows(top.indices), "negative": rows(bottom.indices)}


def neighbours(index: int, dictionary: Any) -> list[list[Any]]:
    """The latents whose decoder rows point most nearly the same way: [[index, cosine], ...]."""
    rows = dictionary.W_dec.float()
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosine = unit @ unit[index]
    cosine[index] = -2.0
    top = cosine.topk(min(NEIGHBOURS, len(rows) - 1))
    return [[int(i), float(v)] for v, i in zip(top.values, top.indices, strict=True)]
