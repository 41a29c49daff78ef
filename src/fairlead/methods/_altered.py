"""One thing about a fitted edit changed, the rest kept: its dose, layer or scope. For controls and stress arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fairlead import steering
from fairlead.core.errors import NotApplicable
from fairlead.features.change import in_raw
from fairlead.features.excerpt import Excerpt
from fairlead.methods._steered import Steered
from fairlead.steering import Edit, Latent, Op, Reading, Scope, StoredVector
from fairlead.steering.edit import AllOf, AnyOf, Compare, Condition


def dosed(edits: Sequence[Edit], factor: float) -> tuple[Edit, ...]:
    """The edits whose change is `factor` × Δh at every token: an added amount times the factor; a clamp of z to c
    becomes z + factor·(c − z). NotApplicable for caps and projections, which have no dose."""
    out: list[Edit] = []
    for edit in edits:
        if edit.op is Op.ADD:
            out.append(replace(edit, value=edit.value * factor))
        elif edit.op is Op.SCALE:
            out.append(replace(edit, value=1.0 + (edit.value - 1.0) * factor))
        elif edit.op in (Op.CLAMP, Op.ABLATE):
            out.append(replace(edit, op=Op.SCALE, value=1.0 - factor, unit="raw"))
            if edit.value:
                out.append(replace(edit, op=Op.ADD, value=factor * edit.value))
        else:
            raise NotApplicable(f"`{steering.format((edit,))}` has no dose", expected="edits that add, scale or clamp")
    return tuple(out)


def rescoped(edits: Sequence[Edit], scope: str) -> tuple[Edit, ...]:
    """The edits at the tokens of another scope. NotApplicable where that is their own."""
    if all(edit.scope.kind == scope for edit in edits):
        raise NotApplicable(f"{scope} is the edit's own scope, so this would be the claim itself")
    return tuple(replace(edit, scope=Scope(scope)) for edit in edits)  # type: ignore[arg-type]


def shifted(fitted: Steered, by: int, n_layers: int, method: str) -> Steered:
    """The same directions, of the same size, `by` layers further up (down where negative).

    Gates that compare latents go on reading them where they were found, if that is below; added amounts become stored
    vectors there. What depends on a latent's own activation (a clamp, a gate from above) is read at the new layer by
    the latent's old rows. NotApplicable where the model has no such layer."""
    sites = [edit.site or fitted.rows.site for edit in fitted.edits]
    moved = [_site(site, by, n_layers) for site in sites]
    about = {"moved": {"from": sorted(set(sites)), "to": sorted(set(moved))}}
    kept = all(isinstance(e.direction, StoredVector) or e.op is Op.ADD for e in fitted.edits)
    gated = any(e.gate.when is not None for e in fitted.edits)
    if kept and (by > 0 or not gated):
        return _as_vectors(fitted, moved, about, method)
    if any(isinstance(e.direction, StoredVector) for e in fitted.edits):
        raise NotApplicable("the edit's gate is read above its new layer", expected="a gate that is read below")
    rows = fitted.rows
    if isinstance(rows, Excerpt):
        rows = replace(rows, site=moved[0], fingerprint=f"{rows.fingerprint}@{moved[0]}")
    else:
        rows = rows.replace(site=moved[0])
    edits = tuple(replace(e, site=s) for e, s in zip(fitted.edits, moved, strict=True))
    return Steered(method, edits, rows, fitted.vectors, about, fitted.sample)


def _as_vectors(fitted: Steered, moved: Sequence[str], about: dict[str, Any], method: str) -> Steered:
    """Added latents as stored vectors at other sites, their gates read at the old one."""
    rows, edits, vectors = fitted.rows, [], dict(fitted.vectors)
    for edit, site in zip(fitted.edits, moved, strict=True):
        gate, old = edit.gate, edit.site or rows.site
        if isinstance(edit.direction, Latent):
            index = edit.direction.index
            vectors[f"latent_{index}"] = rows.decoder_rows([index])[0].clone()
            edit = replace(in_raw(edit, rows), direction=StoredVector(f"latent_{index}"))
        if gate.when is not None:
            gate = replace(gate, when=_at(gate.when, old))
        edits.append(replace(edit, site=site, gate=gate))
    gated = any(e.gate.when is not None for e in edits)
    return Steered(method, tuple(edits), rows if gated else None, vectors, about, fitted.sample)


def _at(condition: Condition, site: str) -> Condition:
    """The condition with its readings taken at `site`."""
    if isinstance(condition, Compare):
        right = (
            replace(condition.right, site=condition.right.site or site)
            if isinstance(condition.right, Reading)
            else condition.right
        )
        return replace(condition, left=replace(condition.left, site=condition.left.site or site), right=right)
    kind = AllOf if isinstance(condition, AllOf) else AnyOf
    return kind(tuple(_at(part, site) for part in condition.parts))


def _site(site: str, by: int, n_layers: int) -> str:
    kind, _, layer = site.partition(".")
    if not 0 <= int(layer) + by < n_layers:
        raise NotApplicable(f"there is no layer {by:+d} from {site}", expected=f"layers 0 to {n_layers - 1}")
    return f"{kind}.{int(layer) + by}"
