"""Places: where an edit should act, told from gradients; and edits that act only there."""

from __future__ import annotations

from typing import Any

import torch
from tests.features.planted import PLANTED, SITE
from tests.steering.conftest import forward_info

from fairlead import steering
from fairlead.features.change import change, in_raw, watched
from fairlead.features.places import find_places


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
    from fairlead.features.places import COVER, LEVEL, RARE, hinted_place
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
