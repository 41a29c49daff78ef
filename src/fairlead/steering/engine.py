"""The one hook engine: Δh = Σ_j g_j·(α_j + β_j·z_j)·d_j, z_j = φ(e_j·h + b_j), read from tables.

Every row of a batch has a slot. Slot 0 rows are copied through untouched, bit for bit; slot s rows get the
s-th set of edits. Only the encoder rows of watched latents are read, and only the change is written, so the
dictionary's reconstruction error stays where it was. Readings are taken as the activation arrives at the
site, before any edit there, for edits and for conditions alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.core.types import EditReport
from fairlead.lm.hooks import ForwardInfo, SiteHook
from fairlead.steering.edit import SITE_KINDS, Edit, Gate, Latent, Scope, StoredVector, readings, site_order
from fairlead.steering.edit import fingerprint as edits_fingerprint
from fairlead.steering.language import format as format_edits
from fairlead.steering.passes import Passes
from fairlead.steering.site import SiteEditor
from fairlead.steering.tables import Context, Mask, Placed, build, place

_ALWAYS = Mask(Scope(), Gate(), -1)

TopK = Literal["exact", "threshold"]


def compile_edits(
    edits: Sequence[Edit],
    dictionaries: Any,
    vectors: Mapping[str, Tensor] | None = None,
    *,
    d_model: int | None = None,
    n_layers: int | None = None,
    topk: TopK = "exact",
) -> Engine:
    """An Engine whose slot 1 holds `edits`.

    `dictionaries` is one dictionary, several, or a mapping site -> dictionary; `vectors` are the stored
    directions, [d] each. With `d_model` and `n_layers` widths and sites are checked against the model.
    `topk="threshold"` reads a topk's latents row by row against a calibrated threshold: approximate, and
    labelled so in the reports. Raises EditError for all that cannot be applied.
    """
    return compile_sets([edits], dictionaries, vectors, d_model=d_model, n_layers=n_layers, topk=topk)


def compile_sets(
    sets: Sequence[Sequence[Edit]],
    dictionaries: Any,
    vectors: Mapping[str, Tensor] | None = None,
    *,
    d_model: int | None = None,
    n_layers: int | None = None,
    topk: TopK = "exact",
) -> Engine:
    """As `compile_edits`, for many sets at once: rows with slot i + 1 get `sets[i]`, in one batch."""
    if topk not in ("exact", "threshold"):
        raise EditError("no such topk mode", expected="exact or threshold", got=str(topk))
    sites = [f"{kind}.{layer}" for layer in range(n_layers) for kind in SITE_KINDS] if n_layers is not None else None
    context = Context(by_site(dictionaries), vectors or {}, d_model, sites, topk == "threshold")
    return Engine([tuple(s) for s in sets], context)


def by_site(dictionaries: Any) -> dict[str, Any]:
    """site -> dictionary, of one dictionary, several, such a mapping, or None. EditError for two at one site."""
    if dictionaries is None:
        return {}
    if isinstance(dictionaries, Mapping):
        return dict(dictionaries)
    several = dictionaries if isinstance(dictionaries, Sequence) else [dictionaries]
    found: dict[str, Any] = {}
    for dictionary in several:
        if dictionary.site in found:
            raise EditError(f"two dictionaries at {dictionary.site}", expected="one per site", do="choose one of them")
        found[dictionary.site] = dictionary
    return found


class Engine:
    """Compiled edits. `hooks` go to `LocalSubject.edited`; `reports()` says what they did since last asked.

    `fingerprint` covers the edits, the dictionaries and vectors they use, and the topk mode.
    """

    def __init__(self, sets: Sequence[tuple[Edit, ...]], context: Context) -> None:
        self.sets = tuple(sets)
        both = [place(edits, index, context) for index, edits in enumerate(self.sets)]
        self._placed = [placed for placed, _ in both]
        columns = [found for _, found in both]
        masks = list(dict.fromkeys([_ALWAYS, *(p.mask for ps in self._placed for p in ps)]))
        numbered = [{(s, c.key): j for s, cs in found.items() for j, c in enumerate(cs)} for found in columns]
        self._passes = Passes(self._placed, masks, numbered)
        read = {r.site for m in masks if m.gate.when is not None for r in readings(m.gate.when)}
        sites = sorted({site for found in columns for site in found}, key=site_order)
        self._editors = {}
        for site in sites:
            here = [[p for p in placed if p.site == site] for placed in self._placed]
            number = {mask: i for i, mask in enumerate(masks)}
            table = build(site, [found.get(site, []) for found in columns], here, number, context)
            self._editors[site] = SiteEditor(self._passes, table, site in read)
        self._rough = {s for s in sites if context.rough(s)}
        self._texts = [[self._text(p) for p in placed] for placed in self._placed]
        self.hooks: Mapping[str, SiteHook] = dict(self._editors) or {"resid.0": self._watch}
        self.fingerprint = self._fingerprint(sites, {key[1] for found in numbered for _, key in found}, context)

    @property
    def approximate(self) -> bool:
        """Whether some latent is read by a threshold that only stands in for a topk."""
        return bool(self._rough)

    @property
    def flops_per_token(self) -> int:
        """What the edits add to a forward, per token of the widest set: reads and writes, 2 FLOPs a weight."""
        return sum(editor.flops_per_token for editor in self._editors.values())

    def reports(self) -> list[tuple[EditReport, ...]]:
        """Per request of the batch (in order of `ForwardInfo.request`), what each edit did since the last
        call; then forgets it. Unedited requests have an empty tuple.

        `seen` counts tokens in the edit's scope, whatever its gate; `fired` those where the edit changed the
        activation. The tokens of scored continuations count as generated ones. `before` and `after` are the
        direction's reading at the decision token, `after` read again from the changed activation."""
        tallies = self._passes.tallies()
        texts = self._texts
        return [
            tuple(EditReport(*row) for row in zip(texts[t.slot - 1], t.fired, t.seen, t.before, t.after, strict=True))
            if (t := tallies.get(request)) is not None and t.slot
            else ()
            for request in range(max(tallies, default=-1) + 1)
        ]

    def _text(self, p: Placed) -> str:
        read = (
            {r.site for r in readings(p.mask.gate.when) if isinstance(r.direction, Latent)}
            if p.mask.gate.when
            else set()
        )
        read |= {p.site} if isinstance(p.edit.direction, Latent) else set()
        return format_edits((p.edit,)) + (" (approximate: threshold mode)" if read & self._rough else "")

    def _fingerprint(self, sites: Sequence[str], directions: set[Any], context: Context) -> str:
        names = sorted(d.name for d in directions if isinstance(d, StoredVector))
        data = {
            "edits": [edits_fingerprint(s) for s in self.sets],
            "sites": list(sites),
            "dictionaries": {s: context.dictionaries[s].fingerprint for s in sites if s in context.dictionaries},
            "vectors": {n: _tensor_hash(context.vectors[n]) for n in names},
            "topk": "threshold" if self.approximate else "exact",
        }
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def _watch(self, h: Tensor, info: ForwardInfo) -> Tensor:
        """The hook of no edits at all: changes nothing, and keeps one empty report a request."""
        self._passes.begin(info, "resid.0").done.add("resid.0")
        return h


def _tensor_hash(tensor: Tensor) -> str:
    data = tensor.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()
