"""Places: where an edit should act, told from gradients; and edits that act only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.features.planted import PLANTED, SITE
from tests.steering.conftest import forward_info

from fairlead import steering
from fairlead.features import attribution
from fairlead.features.change import change, in_raw, watched
from fairlead.features.places import APART, COVER, LEVEL, find_places


def test_a_place_fires_at_the_decision_and_knows_what_to_add_there(subject: Any, points: Any, dictionary: Any) -> None:
    failed = [p for p in points if p.critical]
    x = subject.activations([p.decision.messages for p in failed], [SITE], "last")[SITE]
    rows = dictionary.W_enc.clone()
    mark = x.mean(0) / x.mean(0).norm()  # a latent that reads the decision tokens' own direction
    rows[:, 0] = mark
    largest = torch.full_like(dictionary.max_activation, 1e6)  # the others never come near theirs
    largest[0] = 0.5
    marked = dictionary.replace(W_enc=rows, max_activation=largest)
    found = find_places(subject, marked, failed, 24)
    here = next(place for place in found if place.latent == 0)
    assert int(here.amplify.argmax()) == PLANTED
    assert steering.format((steering.Edit(steering.Latent(5), steering.Op.ADD, 1.0, gate=here.gate),)).count("when 0 >")
    assert find_places(subject, marked, failed, 0) == [] == find_places(subject, marked, [], 3)


def test_the_size_of_a_gated_edit_is_what_the_engine_writes(dictionary: Any) -> None:
    x = torch.randn(30, dictionary.d_in, generator=torch.Generator().manual_seed(1)) * 3
    edits = steering.parse("5 += 1x when 2 > 0.1x; 3 = 0; 4 *= 0.5 when 7 > 0.5")
    assert watched(edits) == [5, 3, 4, 2, 7]
    hook = steering.compile_edits(edits, dictionary).hooks[SITE]
    wrote = hook(x[None].clone(), forward_info(30, prompt=30))[0] - x
    assert torch.allclose(change(edits, dictionary, x), wrote, atol=1e-3)
    plain = dictionary.replace(max_activation=None)
    assert torch.allclose(change([in_raw(e, dictionary) for e in edits], plain, x), wrote, atol=1e-3)


def test_a_hint_shows_the_place_it_moves_and_what_moves_there() -> None:
    """On a shipped organism: the gate fires in nearly every prompt, on few tokens, after the system line."""
    from fairlead.dictionaries import load as load_dictionary
    from fairlead.features.places import RARE, hinted_place
    from fairlead.features.points import points as decision_points
    from fairlead.lm.load import load
    from fairlead.tasks.shop import ShopTask
    from fairlead.worlds.gates import rollout

    shopper, dictionary = load("pocket/shopper-s"), load_dictionary("pocket/shopper-s@resid.1")
    task = ShopTask({"n": 10, "traps": ["on"]})
    found = [p for p in decision_points(rollout(shopper, task, task.items("train"))) if p.critical]
    place = hinted_place(shopper, dictionary, found, ("Be careful.",))
    assert place is not None and float(dictionary.firing_rate[place.latent]) <= RARE
    prompts = [p.decision.messages for p in found]
    level = LEVEL * dictionary.max_activation[place.latent]
    acts = shopper.activations(prompts, ["resid.1"], "all")["resid.1"]
    fires = [bool((dictionary.encode(x)[:, place.latent] > level).any()) for x in acts]
    assert sum(fires) / len(fires) >= COVER
    assert hinted_place(shopper, dictionary, found, ()) is None
    assert hinted_place(shopper, dictionary, [], ("Be careful.",)) is None


def densely(found: Any, dictionary: Any, n: int) -> list[int]:
    """The places as they are defined, with every latent of every token at hand."""
    fires = [dictionary.encode(x.float()) > LEVEL * dictionary.max_activation for x in found.activations]
    cover = torch.stack([f.any(0).float() for f in fires]).mean(0)
    all_fires, norms = torch.cat(fires), torch.cat([g.float().norm(dim=1) for g in found.gradients])
    count = all_fires.sum(0).clamp_min(1)
    strength = (all_fires * norms[:, None]).sum(0) / count
    live = (cover >= COVER) & (dictionary.max_activation > 0)
    chosen: list[int] = []
    for i in [i for i in strength.argsort(descending=True, stable=True).tolist() if live[i]]:
        shared = [(all_fires[:, i] & all_fires[:, j]).sum() / torch.minimum(count[i], count[j]) for j in chosen]
        if all(float(s) <= APART for s in shared) and len(chosen) < n:
            chosen.append(i)
    return chosen


def test_in_pieces_and_sparse_it_is_the_same(
    subject: Any, points: Any, dictionary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary too wide to be dense on all tokens: the same places and, but for rounding, the same effects."""
    low = dictionary.replace(max_activation=0.05 * dictionary.max_activation)
    found = attribution.gradients(subject, SITE, points)
    places = find_places(subject, low, points, 3, found=found)
    assert [p.latent for p in places] == densely(found, low, 3) and places
    whole = attribution.attribute(subject, low, points, found=found)
    monkeypatch.setattr(attribution, "DENSE_AT_ONCE", 7 * dictionary.n_features)
    pieces = find_places(subject, low, points, 3, found=found)
    assert [p.latent for p in pieces] == [p.latent for p in places]
    assert all(torch.equal(a.amplify, b.amplify) for a, b in zip(places, pieces, strict=True))
    parts = attribution.attribute(subject, low, points, found=found)
    assert torch.allclose(parts.suppress, whole.suppress, atol=1e-4, rtol=1e-4)
    assert torch.allclose(parts.amplify, whole.amplify, atol=1e-4, rtol=1e-4)


def test_one_backward_pass_serves_both(subject: Any, points: Any, dictionary: Any) -> None:
    """Gradients of some of the points, taken alone or picked from those of all: the same places."""
    low = dictionary.replace(max_activation=0.05 * dictionary.max_activation)
    chosen = [i for i, p in enumerate(points) if p.failed]
    picked = attribution.only(attribution.gradients(subject, SITE, points), chosen)
    together = find_places(subject, low, [points[i] for i in chosen], 3, found=picked)
    alone = find_places(subject, low, [points[i] for i in chosen], 3)
    assert [p.latent for p in together] == [p.latent for p in alone] and together
    assert all(torch.allclose(a.amplify, b.amplify, atol=1e-5) for a, b in zip(together, alone, strict=True))
