"""What a world of claims is: hypotheses about a label, each readable and executable, and what they predict of an item.

An item of such a task is a text, or a pair of texts, with a label:

    data["text"]        the text; or data["texts"], two of them, when the label says which of them has more of something
    data["label"]       bool (binary; of a pair: the first), a number (numeric), or a name (multiclass)
    data["covariates"]  numbers by name to adjust for, if there are any; of a pair: first minus second
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.core.types import Item, Json


@dataclass(frozen=True)
class Hypothesis:
    """One claim: texts of which `text` holds have more (`weight` > 0) or less of the label.

    `predicate` is its executable form, which reads nothing but a text (`features.texts.predicates`); empty where the
    claim is about a latent that nobody has put in words. `kind` is what made it. `fidelity` is the AUROC, on texts that
    nobody used before, with which it tells where the latent `of` fires (`low` to `high`: 95 % interval), `f1` its F1
    there; None where there is no latent behind it. `tried` has the F1 of every way to say it.
    """

    text: str
    kind: str
    weight: float
    predicate: Mapping[str, Json] = field(default_factory=dict)
    of: str = ""
    fidelity: float | None = None
    tried: Mapping[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    f1: float | None = None


@dataclass(frozen=True)
class Prediction:
    """What the claims say of one item: `p`, the probability of a true label (of a pair: that it is the first);
    `value`, of a numeric label; or `classes`, the probability of each name. `fired[i]` is whether hypothesis i holds of
    the text: 1 or 0, of a pair first minus second; a latent's own value where the claim is about a latent."""

    p: float | None = None
    value: float | None = None
    classes: Mapping[str, float] | None = None
    fired: tuple[float, ...] = ()


class Claims(Protocol):
    """The world that a method with `makes = "claims"` opens; its subject is an embedder (`lm.embed`)."""

    def claims(self) -> tuple[Hypothesis, ...]: ...

    async def predict(self, item: Item) -> Prediction: ...
