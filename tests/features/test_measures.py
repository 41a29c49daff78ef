"""Contrast, attribution, excerpt and card: each against something computed another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.features.planted import PLANTED, SITE, M

from fairlead import steering
from fairlead.core.errors import EditError
from fairlead.core.keys import canonical
from fairlead.dictionaries.base import SparseDictionary
from fairlead.features import cards, excerpt
from fairlead.features.attribution import attribute, preference
from fairlead.features.contrast import contrast
from fairlead.steering import Edit, Latent, Op


def test_contrast_agrees_with_counting_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (30, 5), generator=g).float()
    wrong = [i % 3 == 0 for i in range(30)]
    got = contrast(x, wrong)
    bad, good = x[torch.tensor(wrong)], x[~torch.tensor(wrong)]
    assert (got.n_wrong, got.n_right) == (10, 20)
    for j in range(5):
        pairs = [(a > b) + 0.5 * (a == b) for a in bad[:, j].tolist() for b in good[:, j].tolist()]
        assert float(got.auroc[j]) == pytest.approx(sum(pairs) / len(pairs))
    assert torch.allclose(got.difference, bad.mean(0) - good.mean(0))


def test_contrast_without_both_kinds_is_not_measured() -> None:
    got = contrast(torch.rand(4, 3), [True] * 4)
    assert bool(got.auroc.isnan().all()) and (got.n_right, got.n_wrong) == (0, 4)


def test_attribution_is_the_slope_of_the_edit(subject: Any, points: Any, dictionary: Any) -> None:
    few = points[:4]
    effects = attribute(subject, dictionary, few)

    def margins(edits: Any) -> torch.Tensor:
        world = steering.apply(subject, edits, dictionary)
        d = [p.decision for p in few]
        scores = world.action_logprobs([x.messages for x in d], [x.legal for x in d])
        return torch.stack([preference(p)(s) for p, s in zip(few, scores, strict=True)])

    bare, small = margins(()), 0.004
    scope = steering.Scope("prompt")
    for latent in (PLANTED, 0, 7):
        moved = margins((Edit(Latent(latent), Op.ADD, small, "max", scope=scope),))
        assert torch.allclose((moved - bare) / small, effects.amplify[:, latent], rtol=0.1, atol=0.05)
        moved = margins((Edit(Latent(latent), Op.SCALE, 1 - small, scope=scope),))
        assert torch.allclose((moved - bare) / small, effects.suppress[:, latent], rtol=0.1, atol=0.05)
    assert torch.allclose(effects.margin, bare, atol=1e-4)
    assert int(effects.mean(effects.amplify, few).argmax()) == PLANTED
    with pytest.raises(EditError):
        attribute(subject, dictionary, few, "generated")


def test_attribution_at_the_last_token_is_part_of_all(subject: Any, points: Any, dictionary: Any) -> None:
    last = attribute(subject, dictionary, points[:2], "last")
    # at the last site only the decision token reaches the first action token
    assert torch.allclose(last.amplify, attribute(subject, dictionary, points[:2]).amplify, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_an_excerpt_steers_as_the_whole(subject: Any, points: Any, activation: str) -> None:
    g = torch.Generator().manual_seed(2)
    rows = torch.randn(M, subject.d_model, generator=g)
    whole = SparseDictionary(
        "w", SITE, rows.T.contiguous(), rows, torch.randn(M, generator=g), torch.randn(subject.d_model, generator=g),
        activation=activation,  # type: ignore[arg-type]
        threshold=torch.rand(M, generator=g) if activation == "jumprelu" else None,
        k=3 if activation == "topk" else None, max_activation=torch.rand(M, generator=g) + 1,
    )  # fmt: skip
    part = excerpt.cut(whole, [9, 3, 9])
    assert (part is whole) == (activation == "topk")
    edits = steering.parse("3 = 0; 9 += 0.5x; 3 *= 2 on step 1")
    d = points[0].decision
    said = [steering.apply(subject, edits, x).action_logprobs([d.messages], [d.legal])[0] for x in (whole, part)]
    assert torch.equal(*said)
    if activation != "topk":
        data = json.loads(json.dumps(excerpt.to_json(part)))
        again = excerpt.from_parts(data, excerpt.to_tensors(part))
        assert again.ids == (9, 3) and torch.equal(again.decoder, part.decoder)
        x = torch.randn(5, subject.d_model, generator=g)
        assert torch.allclose(part.encode_rows(x, [3, 9]), whole.encode_rows(x, [3, 9]), atol=1e-5)
        with pytest.raises(EditError):
            part.decoder_rows([4])


def test_a_card_shows_where_the_latent_fires(subject: Any, points: Any, dictionary: Any) -> None:
    card = cards.card(PLANTED, subject, dictionary, points, doses=[{"strength": 1.0, "on": 0.5}], effect=0.2)
    canonical(card)
    assert card["index"] == PLANTED and card["site"] == SITE and card["effect"] == 0.2
    top = card["top_contexts"][0]
    assert top["value"] == max(c["value"] for c in card["top_contexts"]) and 0 <= top["highlight"] < len(top["tokens"])
    page = "".join(top["tokens"])
    assert any(page in subject.tokens(p.decision.messages).text for p in points)
    lens = card["logit_lens"]["positive"]
    right = subject.tokenizer.decode(list(subject.checkpoint.chat.action("noop()"))[:1])
    assert right in [token for token, _ in lens]  # the planted latent writes the right action's first token
    assert len(card["neighbours"]) == 4 and all(i != PLANTED for i, _ in card["neighbours"])


def test_a_card_prints_in_the_report(subject: Any, points: Any, dictionary: Any, tmp_path: Path) -> None:
    from fairlead.report import describe

    card = cards.card(PLANTED, subject, dictionary, points, doses=[{"strength": 1.0, "on": 0.5}])
    shown = describe._card(card, drawn=False)
    assert shown["contexts"] and shown["positive"] and "svg" in shown["spark"]
