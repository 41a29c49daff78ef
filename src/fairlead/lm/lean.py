"""A Llama-shaped model's forward without its modules: the same weights, a third of the Python, hooks between the parts.

Of a small model's decode step most of the time goes into the calls of some sixty modules and into work that each of
them does again. Here the step is one function over the weights, and an edit is a line of it. Whether a model has this
shape is not told from its name: both forwards read a few tokens, and where their logits differ the model keeps its
own. It also keeps it while somebody has hooks in its modules, as those would not be called here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.lm.checkpoint import CHANGING_ROPE
from fairlead.lm.masks import Masks
from fairlead.lm.probe import TOKENS, sample_ids
from fairlead.lm.rowcache import Piece, Span, Store

SitesHook = Callable[[Tensor, Span], Tensor]
Act = Callable[[Tensor], Tensor]
Update = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
Weights = dict[str, Any]  # a module's own parameters, looked up at each use: they may be replaced


@dataclass(frozen=True, eq=False)
class _Block:
    """One decoder block's weights. Names of sites: resid_pre, attn, mlp_in, mlp, resid."""

    first: Weights
    second: Weights
    q: Weights
    k: Weights
    v: Weights
    o: Weights
    q_norm: Weights | None
    k_norm: Weights | None
    gate: Weights
    up: Weights
    down: Weights
    act: Callable[[Tensor], Tensor]
    size: int  # of a head
    scale: float
    kind: str  # of its mask, where layers have different ones
    sites: tuple[str, str, str, str, str]


class Lean:
    """See `find_lean`."""

    def __init__(self, model: Any) -> None:
        body, self.config = model.model, model.config
        self._modules, self.dtype = list(model.modules()), model.dtype
        self._rotary = body.rotary_emb
        self._eps = torch.tensor(float(self.config.rms_norm_eps), device=model.device)
        self._embed: Weights = body.embed_tokens._parameters
        self._norm: Weights = body.norm._parameters
        self._head: Weights = model.lm_head._parameters
        kinds = getattr(self.config, "layer_types", None) or ["full_attention"] * len(body.layers)
        self._blocks = [_block(i, layer, kinds[i], body.norm) for i, layer in enumerate(body.layers)]
        self._known = {site for block in self._blocks for site in block.sites}
        self._cos = self._sin = torch.zeros(0, 0)

    def watched(self) -> bool:
        """Whether somebody has hooks in the model, which only its own forward calls."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self._modules)

    def can(self, hooks: Sequence[tuple[str, SitesHook]]) -> bool:
        """Whether all these sites are places of this forward, each asked for once."""
        asked = [site for site, _ in hooks]
        return len(set(asked)) == len(asked) and self._known.issuperset(asked)

    def forward(
        self, span: Span, total: int, masks: Any, store: Store, hooks: Sequence[tuple[str, SitesHook]] = ()
    ) -> Tensor:
        """The logits [n, V] behind each row's last token."""
        def acting_by(hook: SitesHook) -> Act:
            return lambda h: hook(h, span)

        acting = {site: acting_by(hook) for site, hook in hooks}

        def update(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return store.update(layer, keys, values, span, total)

        cos, sin = self.angles(span.at, store.room)
        return self.body(span.to(span.ids), cos, sin, masks, update, acting)

    def body(
        self, ids: Tensor, cos: Tensor, sin: Tensor, masks: Any, update: Update, acting: Mapping[str, Act]
    ) -> Tensor:
        """The forward of ids [n, T] from tensors alone. `update` takes a layer's new keys and values and gives all that
        attention reads."""
        h = F.embedding(ids, self._embed["weight"])
        for i, block in enumerate(self._blocks):
            pre, attn, mlp_in, mlp, post = block.sites
            mask = masks[block.kind] if isinstance(masks, dict) else masks
            h = acting[pre](h) if pre in acting else h
            made = self._attend(i, block, self._normed(h, block.first), cos, sin, mask, update)
            h = h + (acting[attn](made) if attn in acting else made)
            x = self._normed(h, block.second)
            x = acting[mlp_in](x) if mlp_in in acting else x
            made = _linear(block.act(_linear(x, block.gate)) * _linear(x, block.up), block.down)
            h = h + (acting[mlp](made) if mlp in acting else made)
            h = acting[post](h) if post in acting else h
        return _linear(self._normed(h[:, -1], self._norm), self._head)

    def _attend(
        self, i: int, block: _Block, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, update: Update
    ) -> Tensor:
        n, t = x.shape[:2]
        q, k, v = (_linear(x, w).view(n, t, -1, block.size) for w in (block.q, block.k, block.v))
        if block.q_norm is not None and block.k_norm is not None:
            q, k = self._normed(q, block.q_norm), self._normed(k, block.k_norm)
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        keys, values = update(i, k.transpose(1, 2), v.transpose(1, 2))
        groups = q.shape[2] // keys.shape[1]
        if t == 1:  # the heads that share keys stand beside each other, as so many tokens
            q = q.view(n, -1, groups, block.size)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=block.scale)
        else:
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), keys, values, attn_mask=mask, scale=block.scale, enable_gqa=groups > 1
            ).transpose(1, 2)
        return _linear(out.reshape(n, t, -1), block.o)

    def _normed(self, x: Tensor, weights: Weights) -> Tensor:
        weight = weights["weight"]
        long = x if x.dtype == torch.float32 else x.float()
        norm = torch.linalg.vector_norm(long, dim=-1, keepdim=True)  # one pass, where a mean of squares takes two
        scaled = long * torch.rsqrt(torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]))
        found: Tensor = weight * (scaled if x.dtype == torch.float32 else scaled.to(x.dtype))
        return found

    def angles(self, at: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """cos and sin [n, T, 1, size] of positions below `room`; the sine of the first half has its sign turned, see
        `_turned`."""
        if self._cos.shape[0] != room:
            like = self._embed["weight"]
            cos, sin = self._rotary(like[:1, None], torch.arange(room, device=like.device)[None])
            half = sin.shape[-1] // 2
            self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        return self._cos[at][:, :, None], self._sin[at][:, :, None]


def find_lean(model: Any, masks: Masks) -> Lean | None:
    """The lean forward of a model that has its shape: the same logits on a few tokens, read in two pieces."""
    try:
        lean = Lean(model)
    except (AttributeError, KeyError, TypeError):
        return None
    ids = sample_ids(model)
    with torch.inference_mode():
        own = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        try:
            got = _tried(lean, ids[0].cpu().numpy(), masks, model)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            return None
    close = float((own - got).norm()) <= (1e-5 if model.dtype == torch.float32 else 0.02) * float(own.norm())
    return lean if close else None


def _tried(lean: Lean, ids: np.ndarray[Any, Any], masks: Masks, model: Any) -> Tensor:
    store, found = Store(1, TOKENS), None
    for start, stop in ((0, TOKENS - 1), (TOKENS - 1, TOKENS)):
        span = Span(0, [Piece(ids[start:stop], start, TOKENS)], TOKENS, model.device)
        keys = torch.arange(stop, device=model.device)[None]
        mask = masks.build(keys[:, None] <= span.at[:, :, None], span.at, keys, model.dtype)
        found = lean.forward(span, stop, mask, store)
    assert found is not None
    return found[0].float()


def _block(i: int, layer: Any, kind: str, norm: nn.Module) -> _Block:
    attn, mlp = layer.self_attn, layer.mlp
    linear = (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if any(type(part) is not nn.Linear for part in linear) or any(hasattr(m, "_hf_hook") for m in layer.modules()):
        raise TypeError("a part that is more than its weights")
    q, k, v, o, gate, up, down = (part._parameters for part in linear)
    rope = getattr(attn.config, "rope_parameters", None) or {}
    if rope.get("rope_type") in CHANGING_ROPE or attn.is_causal is not True:
        raise TypeError("angles that depend on the longest row")
    own = [getattr(attn, name, None) for name in ("q_norm", "k_norm")]
    norms = [layer.input_layernorm, layer.post_attention_layernorm, *(n for n in own if n is not None)]
    if any(type(n) is not type(norm) for n in norms):
        raise TypeError("norms of different kinds")
    q_norm, k_norm = (None if n is None else n._parameters for n in own)
    act = F.silu if attn.config.hidden_act == "silu" else mlp.act_fn
    sites = tuple(f"{name}.{i}" for name in ("resid_pre", "attn", "mlp_in", "mlp", "resid"))
    return _Block(
        layer.input_layernorm._parameters, layer.post_attention_layernorm._parameters, q, k, v, o, q_norm, k_norm,
        gate, up, down, act, int(attn.head_dim), float(attn.scaling), kind, sites,  # type: ignore[arg-type]
    )  # fmt: skip


def _linear(x: Tensor, weights: Weights) -> Tensor:
    return F.linear(x, weights["weight"], weights.get("bias"))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [n, T, heads, size] by its position's angles: (a, b) becomes (a·cos − b·sin, b·cos + a·sin)."""
    half = x.shape[-1] // 2
    other = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return torch.addcmul(x * cos, other, sin)
