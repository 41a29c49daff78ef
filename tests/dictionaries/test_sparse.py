"""The sparse gradients are the dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fairlead.dictionaries.sparse import Code, decode_at, encode_at

B, D, M, K = 7, 5, 11, 3


def weights(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((M, D), (M,), (D,), (M, D))
    return [torch.randn(*s, generator=generator, dtype=torch.double).requires_grad_() for s in shapes]


def ragged_code(pre: Tensor) -> Code:
    """Everything above 0.3: rows of different lengths, some empty."""
    where = (pre > 0.3).nonzero()
    counts = torch.bincount(where[:, 0], minlength=len(pre))
    return Code(where[:, 1], counts.cumsum(0) - counts, pre.shape[1])


def topk_code(pre: Tensor) -> Code:
    return Code(pre.topk(K, sorted=False).indices.flatten(), torch.arange(0, len(pre) * K, K), pre.shape[1])


@pytest.mark.parametrize("make", [topk_code, ragged_code])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_equal_dense_autograd(make, seed):
    encoder, b_enc, b_dec, decoder = weights(seed)
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.double)
    with torch.no_grad():
        pre = (x - b_dec) @ encoder.T + b_enc
        pre[0] = -1.0 if make is ragged_code else pre[0]
        code = make(pre)
    mask = torch.zeros(B, M, dtype=torch.double)
    mask[code.rows, code.cols] = 1.0

    with torch.no_grad():
        values = ((x - b_dec) @ encoder.T + b_enc)[code.rows, code.cols]
    sparse = x - decode_at(encode_at(x, encoder, b_enc, b_dec, values, code).relu(), decoder, code) - b_dec
    dense = x - (((x - b_dec) @ encoder.T + b_enc) * mask).relu() @ decoder - b_dec
    torch.testing.assert_close(sparse, dense)
    parameters = (encoder, b_enc, b_dec, decoder)
    got = torch.autograd.grad(sparse.square().sum(), parameters)
    want = torch.autograd.grad(dense.square().sum(), parameters)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(float(g.abs().sum()) > 0 for g in want)


def test_decode_passes_gradcheck():
    decoder = weights(3)[3]
    code = topk_code(torch.randn(B, M, generator=torch.Generator().manual_seed(5)))
    values = torch.randn(B * K, dtype=torch.double, generator=torch.Generator().manual_seed(6)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: decode_at(v, w, code), (values, decoder))


def test_select_keeps_rows_apart():
    pre = torch.randn(B, M, generator=torch.Generator().manual_seed(1))
    code = ragged_code(pre)
    keep = code.cols >= 4
    part = code.select(keep)
    assert torch.equal(part.rows, code.rows[keep]) and torch.equal(part.cols, code.cols[keep])
