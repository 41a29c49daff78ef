"""Output score and Δ confidence: a suffix is the model's own forward, a planted latent scores 1, a dead one none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.features import planted as planted_model
from tests.features.planted import SITE
from tests.lm.tiny import ARCHITECTURES, write

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import Meter
from fairlead.dictionaries.base import SparseDictionary
from fairlead.features import lens as lens_module
from fairlead.features import output
from fairlead.features.lens import lens_of
from fairlead.features.output import screen
from fairlead.features.suffix import Suffix
from fairlead.lm.load import load
from fairlead.lm.sites import Attached

PROMPT = "buy the red lamp, which is long enough for a window of eight tokens"


def whole_forward(subject: Any, ids: tuple[int, ...], site: str, change: torch.Tensor) -> torch.Tensor:
    """The same by a forward of the whole prompt for every edit, without a cache."""
    from contextlib import ExitStack

    out = []
    for row in change:

        def edit(hidden: torch.Tensor, _info: Any, row: torch.Tensor = row) -> torch.Tensor:
            last = torch.zeros_like(hidden)
            last[:, -1] = row
            return hidden + last

        with ExitStack() as stack, torch.inference_mode():
            Attached(stack, subject.checkpoint.sites, [(site, edit)], None)
            out.append(subject.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float())
    return torch.stack(out)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_suffix_is_the_end_of_the_whole_forward(architecture: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    subject = load(write(tmp_path, architecture))
    ids = subject.text_tokens([PROMPT])[0]
    change = torch.randn(5, subject.d_model, generator=torch.Generator().manual_seed(0))
    change[0] = 0
    last = subject.n_layers - 1
    for site in ("resid_pre.0", "resid.0", "attn.1", f"mlp.{last}", f"resid.{last}"):
        if site not in subject.sites:
            continue
        got = Suffix(subject, ids, site).logits(change)
        assert torch.allclose(got, whole_forward(subject, ids, site, change), atol=1e-4, rtol=1e-4), site
    one = Suffix(subject, ids[:1], "resid.0").logits(change)
    assert torch.allclose(one, whole_forward(subject, ids[:1], "resid.0", change), atol=1e-4, rtol=1e-4)
    assert all("forward" not in block.__dict__ for block in subject.checkpoint.sites.blocks)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_lens_is_the_slope_of_the_logits(architecture: str, tmp_path: Path) -> None:
    """At a state along which the last norm's division does not move to first order."""
    subject = load(write(tmp_path, architecture))
    lens, d = lens_of(subject), subject.d_model
    head = subject.model.get_output_embeddings()
    norm = lens_module._last_norm(subject.model, head)
    state = torch.ones(1, 1, d)
    state[..., 1::2] = -1
    directions = torch.randn(3, d, generator=torch.Generator().manual_seed(1))
    directions -= (directions * state[0]).mean(1, keepdim=True) * state[0]

    def after(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(norm(x)[0, 0], head.weight)

    with torch.inference_mode():
        slope = torch.stack([(after(state + 1e-2 * r) - after(state - 1e-2 * r)) / 2e-2 for r in directions])
    assert torch.allclose(lens.logits(directions), slope, atol=2e-3, rtol=2e-3)
    assert lens.centred == isinstance(norm, torch.nn.LayerNorm)


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that can be sure of a token: its last norm has a gain of 12."""
    subject = planted_model.subject(tmp_path_factory.mktemp("sure"))
    subject.model.model.norm.weight.data *= 12
    return subject


def planted(subject: Any, strength: float = 30.0) -> tuple[SparseDictionary, list[int]]:
    """At the last block: latent i writes what the head reads as token 20 + i; the last latent is dead, and the one
    before it writes noise."""
    lens, n = lens_of(subject), 12
    tokens = list(range(20, 20 + n))
    rows = (lens.unembedding[tokens].float() - lens.unembedding.float().mean(0)) * lens.gain
    rows = rows / rows.norm(dim=1, keepdim=True)
    noise = torch.randn(1, subject.d_model, generator=torch.Generator().manual_seed(5))
    rows = torch.cat([rows, noise / noise.norm() * 1e-3, rows[:1]])
    largest = torch.full((n + 2,), strength)
    largest[-1] = 0.0
    d = subject.d_model
    made = SparseDictionary(
        "planted", SITE, rows.T.contiguous(), rows.contiguous(), torch.zeros(n + 2), torch.zeros(d),
        max_activation=largest,
    )  # fmt: skip
    return made, tokens


def test_a_planted_output_latent_scores_one_and_a_dead_one_does_not(sure: Any) -> None:
    dictionary, tokens = planted(sure)
    found = screen(sure, dictionary, prompt=PROMPT)
    live = slice(0, len(tokens))
    assert (found.score[live] > 0.9).all() and (found.rank[live] == 0).all()
    assert found.chance[live].mean() < 0.4 and (found.score[-2:] < 0.3).all()  # 20 of 400 tokens, and rows alike
    assert (found.confidence[live] > 1.0).all() and abs(found.confidence[-1]) < 1e-4
    assert set(found.best(len(tokens))) == set(range(len(tokens)))
    assert np.allclose(found.score, (1 - found.rank / 400) * found.probability, atol=1e-6)


def test_shuffled_directions_are_at_chance(sure: Any) -> None:
    """The tokens of the latent's own row, an edit along another's: the score is what `chance` says it is worth."""
    dictionary, tokens = planted(sure)
    found = screen(sure, dictionary, prompt=PROMPT, latents=range(len(tokens)))
    order = torch.roll(torch.arange(len(tokens)), 1)
    own = lens_of(sure).logits(dictionary.W_dec[: len(tokens)]).topk(20, dim=1).indices
    suffix = Suffix(sure, sure.text_tokens([PROMPT])[0], SITE)
    logp = suffix.logits(300.0 * dictionary.W_dec[order]).log_softmax(1)
    shuffled = output._read(logp, own)[0]
    assert float(shuffled.mean()) < 0.2 and abs(float(shuffled.mean()) - found.chance.mean()) < 0.15


def test_batched_is_one_by_one_and_costs_a_suffix(model: Any, dictionary: Any) -> None:
    meter = Meter()
    together = screen(model.metered(meter), dictionary, prompt=PROMPT)
    alone = screen(model, dictionary, prompt=PROMPT, batch=1)
    for name in ("score", "confidence", "probability"):
        assert np.allclose(getattr(together, name), getattr(alone, name), atol=1e-5), name
    assert np.array_equal(together.rank, alone.rank)
    shape = model.checkpoint.shape
    whole = dictionary.n_features * shape.flops(len(model.text_tokens([PROMPT])[0]), 20, 1)
    assert 0 < meter.flops < 0.2 * whole


def test_stopped_it_goes_on(
    subject: Any, dictionary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_BLOCK", 5)
    wanted = screen(subject, dictionary, prompt=PROMPT, batch=3)
    seen: list[int] = []

    def stop(done: int, _total: int) -> None:
        seen.append(done)
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen(subject, dictionary, prompt=PROMPT, batch=3, out=tmp_path / "s", progress=stop)
    again: list[int] = []
    got = screen(
        subject, dictionary, prompt=PROMPT, batch=3, out=tmp_path / "s", progress=lambda d, _: again.append(d)
    )
    assert seen[0] < 5 and again[:2] == [5, 10] and again[-1] == dictionary.n_features
    for name in output.NAMES:
        assert np.array_equal(getattr(got, name), getattr(wanted, name))
    with pytest.raises(FairleadError, match="another screening"):
        screen(subject, dictionary, prompt="Another", batch=3, out=tmp_path / "s")
    with pytest.raises(FairleadError, match="no largest activations"):
        screen(subject, dictionary.replace(max_activation=None), prompt=PROMPT)


def test_a_transcoder_is_read_at_one_site_and_written_at_another(model: Any, tmp_path: Path) -> None:
    from fairlead.dictionaries.transcoder import Transcoder
    from fairlead.features.harvest import harvest, texts_of
    from fairlead.features.index import Index

    g, d = torch.Generator().manual_seed(0), model.d_model
    into, out = torch.randn(d, 9, generator=g), torch.randn(9, d, generator=g)
    made = Transcoder("t", "resid_pre.1", "mlp.1", into, out, torch.zeros(9), torch.zeros(d),
                      max_activation=torch.ones(9))  # fmt: skip
    texts = [f"{PROMPT} {i}" for i in range(20)]
    store = harvest(model, made, texts_of(model, texts), tmp_path / "s")
    x = torch.cat(model.text_activations(texts, ["resid_pre.1"])["resid_pre.1"])
    assert np.array_equal(Index(store).count, (made.encode(x) > 0).sum(0).numpy())
    found = screen(model, made, prompt=PROMPT)
    logits = Suffix(model, model.text_tokens([PROMPT])[0], "mlp.1").logits(10 * out)
    own = lens_of(model).logits(out).topk(20, dim=1).indices
    assert np.allclose(found.score, output._read(logits.log_softmax(1), own)[0].numpy(), atol=1e-5)
