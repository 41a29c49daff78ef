"""Rows that come and go say what transformers' `generate` says for each prompt alone, in every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.lm.conftest import PAGES, checkpoint
from tests.lm.tiny import ARCHITECTURES, write

from fairlead.core.types import Message
from fairlead.lm.lean import find_lean
from fairlead.lm.load import load
from fairlead.lm.rows import Piece, Rows, Span
from fairlead.lm.subject import LocalSubject

NEW = 8
PROMPTS = [(Message("system", "You shop."), Message("user", page)) for page in PAGES[:3]]
LEAN = {"llama", "mistral", "qwen2", "qwen3"}  # the others keep their own forward


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LocalSubject:
    torch.set_num_threads(1)
    return load(write(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LocalSubject:
    torch.set_num_threads(1)
    return load(checkpoint(tmp_path_factory.mktemp("lean")))


def alone(model: LocalSubject, ids: np.ndarray[Any, Any]) -> tuple[list[int], float]:
    """(transformers' greedy tokens, the least distance between the two best on the way)."""
    row = torch.from_numpy(ids)[None]
    model.model.generation_config.eos_token_id = None
    out = model.model.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=NEW, do_sample=False, pad_token_id=2,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tops = torch.cat(out.logits).topk(2).values
    return out.sequences[0, len(ids) :].tolist(), float((tops[:, 0] - tops[:, 1]).min())


def together(rows: Rows, prompts: list[np.ndarray[Any, Any]], chunk: int, hooks: Any = None) -> list[list[int]]:
    """Prompts in chunks, side by side where they are as long, then a token each."""
    said: list[list[int]] = [[] for _ in prompts]
    for i, ids in enumerate(prompts):
        for start in range(0, len(ids), chunk):
            logits = rows.forward(i, [Piece(ids[start : start + chunk], start, len(ids))], hooks)
        said[i].append(int(logits.argmax()))
    for k in range(NEW - 1):
        pieces = [Piece(np.array(own[-1:]), len(ids) + k, len(ids)) for own, ids in zip(said, prompts, strict=True)]
        for own, token in zip(said, rows.forward(0, pieces, hooks).argmax(-1).tolist(), strict=True):
            own.append(token)
    return said


@pytest.mark.parametrize("chunk", [5, 512])
def test_rows_say_what_each_prompt_gets_alone(model: LocalSubject, chunk: int) -> None:
    """Windows are 8 tokens and prompts are longer; experts, parallel blocks and capped scores are among them."""
    prompts = [np.asarray(model.tokens(p).ids) for p in PROMPTS]
    rows = Rows(model.checkpoint, len(prompts))
    assert (rows.lean is not None) == (model.model.config.model_type in LEAN)
    said = together(rows, prompts, chunk)
    for got, ids in zip(said, prompts, strict=True):
        wanted, margin = alone(model, ids)
        assert margin > 1e-3 and got == wanted


def test_pieces_of_different_lengths_are_read_as_they_are_alone(model: LocalSubject) -> None:
    """The shorter are padded; nothing of that is in the cache."""
    prompts = [np.asarray(model.tokens(p).ids) for p in PROMPTS]
    rows, single = Rows(model.checkpoint, 3), Rows(model.checkpoint, 3)
    first = rows.forward(0, [Piece(ids[:n], 0, len(ids)) for ids, n in zip(prompts, (3, 9, 6), strict=True)])
    then = rows.forward(0, [Piece(ids[n:], n, len(ids)) for ids, n in zip(prompts, (3, 9, 6), strict=True)])
    for i, (ids, n) in enumerate(zip(prompts, (3, 9, 6), strict=True)):
        for got, piece in ((first[i], Piece(ids[:n], 0, len(ids))), (then[i], Piece(ids[n:], n, len(ids)))):
            wanted = single.forward(i, [piece])[0]
            assert float((got - wanted).norm()) < 1e-4 * float(wanted.norm())


KINDS = ("resid_pre", "attn", "mlp_in", "mlp", "resid")


def test_the_lean_forward_has_the_sites_of_the_model(llama: LocalSubject) -> None:
    """At every site both forwards show a hook the same activations, and do the same with what it returns."""
    ids = np.asarray(llama.tokens(PROMPTS[0]).ids)
    own, lean = Rows(llama.checkpoint, 1), Rows(llama.checkpoint, 1)
    own.lean = None
    assert lean.lean is not None
    for site in llama.sites:
        seen: list[torch.Tensor] = []

        def push(h: torch.Tensor, span: Span, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(h)
            return h + span.info.is_prompt[..., None] * torch.linspace(-1, 1, h.shape[-1])

        logits = [rows.forward(0, [Piece(ids, 0, len(ids))], lambda _s: [(site, push)]) for rows in (own, lean)]  # noqa: B023
        assert len(seen) == 2
        torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=1e-4)


def test_hooks_in_the_modules_are_called(llama: LocalSubject) -> None:
    """Somebody's hook is never passed over because a faster forward does not know of it."""
    ids = np.asarray(llama.tokens(PROMPTS[0]).ids)
    rows, called = Rows(llama.checkpoint, 1), []
    assert rows.lean is not None
    handle = llama.model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: called.append(1))
    rows.forward(0, [Piece(ids, 0, len(ids))])
    handle.remove()
    rows.forward(0, [Piece(ids[-1:], len(ids) - 1, len(ids))])
    assert called == [1]


def test_a_site_that_is_no_place_of_the_model_is_an_error(llama: LocalSubject) -> None:
    ids = np.asarray(llama.tokens(PROMPTS[0]).ids)
    with pytest.raises(Exception, match="resid.9"):
        Rows(llama.checkpoint, 1).forward(0, [Piece(ids, 0, len(ids))], lambda _s: [("resid.9", lambda h, _: h)])


def test_a_model_that_differs_keeps_its_own_forward(tmp_path: Path) -> None:
    """One that looks like a Llama, and scales its logits."""
    model = load(checkpoint(tmp_path))
    assert find_lean(model.model, model.checkpoint.masks) is not None
    own = model.model.lm_head.forward
    model.model.lm_head.forward = lambda h: own(h) * 1.1
    assert find_lean(model.model, model.checkpoint.masks) is None
