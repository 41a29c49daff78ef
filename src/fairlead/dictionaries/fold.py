"""Exact rewritings of other parametrisations into ours."""

from __future__ import annotations

import torch
from torch import Tensor

from fairlead.dictionaries.base import SparseDictionary, wide


def gated(
    name: str, site: str, W_enc: Tensor, W_dec: Tensor, b_dec: Tensor, *,
    r_mag: Tensor, b_gate: Tensor, b_mag: Tensor, apply_b_dec_to_input: bool = True,
) -> SparseDictionary:  # fmt: skip
    """A gated SAE as a jumprelu.

    With u = x·W: f = relu(exp(r_mag)·u + b_mag) where u + b_gate > 0. The magnitude's pre-activation is
    p = exp(r_mag)·u + b_mag, and u > −b_gate exactly where p > b_mag − exp(r_mag)·b_gate; a threshold below 0
    is 0, because the relu is there already.
    """
    scale = r_mag.exp()
    plain = bool((r_mag == 0).all())
    return SparseDictionary(
        name=name,
        site=site,
        W_enc=W_enc if plain else W_enc.to(wide(W_enc)) * scale,
        W_dec=W_dec,
        b_enc=b_mag,
        b_dec=b_dec,
        activation="jumprelu",
        threshold=(b_mag - scale * b_gate).clamp_min(0.0),
        apply_b_dec_to_input=apply_b_dec_to_input,
    )


def unit_decoder(dictionary: SparseDictionary) -> SparseDictionary:
    """The same reconstruction with decoder rows of norm 1: encoder, biases and latents are multiplied by the
    norm. Selection among the latents (topk) and a threshold then see pre·‖W_dec‖; a jumprelu's threshold is
    left as it is, which is what "the gate sees pre·‖W_dec‖" asks for."""
    W_dec = dictionary.W_dec.to(wide(dictionary.W_dec))
    norm = W_dec.norm(dim=-1).clamp_min(1e-12)
    return dictionary.replace(
        W_enc=dictionary.W_enc.to(wide(dictionary.W_enc)) * norm,
        b_enc=dictionary.b_enc * norm,
        W_dec=W_dec / norm[:, None],
    )


def scaled_input(dictionary: SparseDictionary, factor: float) -> SparseDictionary:
    """A dictionary trained on x·factor, for x as the model has it: the latents stay, the reconstruction is
    divided by the factor again."""
    W_enc, W_dec = (w.to(wide(w)) for w in (dictionary.W_enc, dictionary.W_dec))
    return dictionary.replace(W_enc=W_enc * factor, W_dec=W_dec / factor, b_dec=dictionary.b_dec / factor)


def decoder_norms(W_dec: Tensor, rows: int = 4096) -> Tensor:
    """‖row‖ [m] in float32 of W_dec [m, d], a block of rows at a time."""
    return torch.cat([part.float().norm(dim=-1) for part in W_dec.split(rows)]).clamp_min(1e-12)
