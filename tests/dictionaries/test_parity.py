"""Every public format, against its own project's forward on a file in exactly its layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.dictionaries.layouts import CASES, NINE, Written, write

from fairlead import dictionaries
from fairlead.core.errors import EditError, LoadError
from fairlead.dictionaries import formats
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder

ROWS = 256
WITHIN = 1e-5  # of the largest value


def activations(d: int = 24, seed: int = 3) -> torch.Tensor:
    return torch.randn(ROWS, d, generator=torch.Generator().manual_seed(seed)) * 1.2


def compared(written: Written) -> tuple[float, float, float, bool, float]:
    """(L0, largest difference of latents, of outputs, both as shares of the largest value; every row's L0 equal;
    share of the outputs' variance that the formula reaches, so that nobody compares zeros)."""
    found, x = dictionaries.load(written.ref), activations()
    f, y = written.forward(x)
    ours = found.encode(x)
    out = found.reconstruct(x) if isinstance(found, Transcoder) else found.decode(ours)
    latents = float((ours - f).abs().max() / f.abs().max())
    outputs = float((out - y).abs().max() / y.abs().max())
    equal = bool(torch.equal((ours > 0).sum(-1), (f > 0).sum(-1)))
    return float((f > 0).float().sum(-1).mean()), latents, outputs, equal, float(f.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_reader_agrees_with_the_projects_own_forward(name, tmp_path):
    written = write(name, tmp_path)
    l0, latents, outputs, equal, largest = compared(written)
    assert latents <= WITHIN and outputs <= WITHIN and equal
    assert 1 < l0 < 60 and largest > 0.5  # sparse, and not a comparison of zeros
    found = dictionaries.load(written.ref)
    assert found.site == written.site and isinstance(found, Transcoder) == written.transcoder
    ids = [5, 0, 17]
    torch.testing.assert_close(found.encode_rows(activations(), ids), found.encode(activations())[:, ids])
    assert formats.of(Path(written.ref)) == name.partition("/")[0]


@pytest.mark.parametrize("name", CASES)
def test_every_format_can_be_written_in_the_saelens_layout(name, tmp_path):
    found = dictionaries.load(write(name, tmp_path).ref)
    if isinstance(found, Transcoder) and found.activation == "topk":
        with pytest.raises(LoadError, match="no such transcoder"):
            dictionaries.save(found, tmp_path / "out")
        return
    back = dictionaries.load(dictionaries.save(found, tmp_path / "out"))
    assert type(back) is type(found) and back.fingerprint == found.fingerprint and back.name == found.name
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert cfg["architecture"] in ("standard", "jumprelu", "topk", "transcoder", "jumprelu_transcoder",
                                   "jumprelu_skip_transcoder")  # fmt: skip


@pytest.mark.parametrize("name", [n for n in NINE.values() if n != "gemma-scope"])  # npz has no bfloat16
def test_half_precision_files_are_kept_as_stored_and_computed_in_full(name, tmp_path):
    written = write(name, tmp_path, dtype=torch.bfloat16)
    found = dictionaries.load(written.ref)
    assert isinstance(found, SparseDictionary) and found.encode(activations()).dtype == torch.float32
    if name != "dictionary-learning/BatchTopKSAE":  # its fixture normalises the decoder in float32
        assert found.W_enc.dtype == found.W_dec.dtype == torch.bfloat16
    wide = found.replace(W_enc=found.W_enc.float(), W_dec=found.W_dec.float())
    x = activations()
    torch.testing.assert_close(found.encode(x), wide.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.decode(found.encode(x)), wide.decode(wide.encode(x)), atol=1e-5, rtol=1e-5)
    rows, biases = found.encoder_rows([3, 4])
    torch.testing.assert_close(x @ rows.T + biases, wide.preactivations(x)[:, [3, 4]], atol=1e-5, rtol=1e-5)


def test_the_errors_of_other_readers_would_show(tmp_path):
    """What sae-lens does with two of these formats is outside the tolerance, so the tests above can tell."""
    x = activations()
    scope = dictionaries.load(write("llama-scope", tmp_path).ref)
    f, _ = write("llama-scope", tmp_path).forward(x)
    without_norm = scope.replace(threshold=torch.full_like(scope.threshold, 0.6)).encode(x)
    assert (without_norm > 0).sum() != (f > 0).sum()
    coder = dictionaries.load(write("sparsify", tmp_path).ref)
    f, _ = write("sparsify", tmp_path).forward(x)
    assert ((coder.replace(apply_b_dec_to_input=False).encode(x) > 0) != (f > 0)).any()


def test_a_transcoder_has_an_input_of_its_own(tmp_path):
    found = dictionaries.load(write("saelens/transcoder", tmp_path).ref)
    assert (found.site_in, found.site) == ("resid_pre.1", "mlp.1")
    assert found.decoder_rows([2, 3]).shape == (2, 24) and found.fingerprint != found.replace(W_skip=None).fingerprint
    with pytest.raises(EditError, match="not in dictionary"):
        found.encode_rows(activations(), [96])


def test_the_table_in_the_docs(tmp_path):
    from tests.test_docs import ROOT, written

    rows = ["| File | L0 | Latents | Output | L0 of every row |", "|---|---|---|---|---|"]
    for name in CASES:
        l0, latents, outputs, equal, _ = compared(write(name, tmp_path))
        shown = ["≤ 1e-5" if share <= WITHIN else f"{share:.0e}" for share in (latents, outputs)]
        rows.append(f"| {name} | {l0:.1f} | {shown[0]} | {shown[1]} | {'equal' if equal else 'differs'} |")
    written(ROOT / "docs" / "dictionaries.md", "parity", "\n".join(rows))
