"""Sparse codes with gradients: the cost of a training step is one dense encode plus work in the code alone.

A batch's code is stored by row. Both weight gradients are sums over the rows in which a latent is on, so
the code is transposed once (one sort) and each gradient is a single `embedding_bag` over the transposed
code: no [B, m] tensor is differentiated and no [m, d] product is dense. Checked against dense autograd by test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Code:
    """Which latents are on where: `cols` [nnz] are latent ids, and row i holds `cols[starts[i]:starts[i+1]]`."""

    cols: Tensor
    starts: Tensor
    n_features: int

    @cached_property
    def rows(self) -> Tensor:
        """[nnz] the batch row of each entry."""
        counts = torch.diff(self.starts, append=self.starts.new_tensor([len(self.cols)]))
        return torch.repeat_interleave(torch.arange(len(self.starts), device=self.cols.device), counts)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transposed code: (order [nnz] of entries, their rows [nnz], starts [m] of each latent)."""
        order = torch.argsort(self.cols, stable=True)
        counts = torch.bincount(self.cols, minlength=self.n_features)
        return order, self.rows[order], torch.cumsum(counts, 0) - counts

    def sum_by_latent(self, weights: Tensor, table: Tensor) -> Tensor:
        """[m, d]: for each latent, the sum over its entries of weight × table[row]."""
        order, rows, starts = self.by_latent
        return functional.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights[order])

    def select(self, keep: Tensor) -> Code:
        """The code restricted to entries where `keep` [nnz] holds."""
        counts = torch.bincount(self.rows[keep], minlength=len(self.starts))
        return Code(self.cols[keep], torch.cumsum(counts, 0) - counts, self.n_features)


class _EncodeAt(torch.autograd.Function):
    """values[e] = (x[row] − b_dec)·encoder[col] + b_enc[col], known already from the dense encode."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor, values: Tensor, code: Code
    ) -> Tensor:
        ctx.save_for_backward(x, encoder, b_enc, b_dec)
        ctx.code = code
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, encoder, b_enc, b_dec = ctx.saved_tensors
        grad, code = grads[0].contiguous(), ctx.code
        d_b_enc = torch.zeros_like(b_enc).index_add_(0, code.cols, grad)
        d_encoder = code.sum_by_latent(grad, x).addr_(d_b_enc, b_dec, alpha=-1)
        return None, d_encoder, d_b_enc, -(d_b_enc @ encoder), None, None


class _DecodeAt(torch.autograd.Function):
    """out[row] = Σ values[e] · decoder[col]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, code: Code) -> Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.code = code
        return functional.embedding_bag(code.cols, decoder, code.starts, mode="sum", per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, decoder = ctx.saved_tensors
        grad, code = grads[0].contiguous(), ctx.code
        with torch.enable_grad():  # embedding_bag's own gradient for its weights never gathers [nnz, d]
            weights = values.detach().requires_grad_()
            bag = functional.embedding_bag(
                code.cols, decoder.detach(), code.starts, mode="sum", per_sample_weights=weights
            )
            (d_values,) = torch.autograd.grad(bag, weights, grad)
        return d_values, code.sum_by_latent(values, grad), None


def encode_at(x: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor, values: Tensor, code: Code) -> Tensor:
    """Give `values` [nnz], read off a dense encode done without autograd, their gradient with respect to
    encoder [m, d], b_enc [m] and b_dec [d]. x [B, d] is data and gets none."""
    out: Tensor = _EncodeAt.apply(x, encoder, b_enc, b_dec, values, code)
    return out


def decode_at(values: Tensor, decoder: Tensor, code: Code) -> Tensor:
    """[B, d] sparse decode with sparse gradients for values [nnz] and decoder [m, d]; the bias is not added."""
    out: Tensor = _DecodeAt.apply(values, decoder, code)
    return out
