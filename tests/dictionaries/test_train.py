"""Training finds what was planted, twice the same, and wakes latents that died."""

from __future__ import annotations

import pytest
import torch
from tests.dictionaries.conftest import FEATURES, D, K, plant, quick

from fairlead import dictionaries
from fairlead.core.errors import FairleadError, LoadError
from fairlead.dictionaries import shuffled
from fairlead.dictionaries.stream import Stream
from fairlead.dictionaries.train import TrainConfig, Trainer, train


def test_topk_recovers_planted_directions(planted, trained):
    assert planted.recovered(trained) >= 0.9
    fresh = plant(2000, seed=12).activations  # rows of the same world that training never saw
    measured = dictionaries.evaluate(trained, fresh)
    assert measured["explained_variance"] > 0.8 and measured["l0"] <= K
    assert trained.metadata["statistics"]["explained_variance"] == pytest.approx(
        measured["explained_variance"], abs=0.05
    )


def test_shuffled_and_unrelated_activations_are_at_chance(planted, trained):
    broken = shuffled.shuffle(trained, seed=1)
    assert torch.equal(broken.encode(planted.activations[:50]), trained.encode(planted.activations[:50]))
    assert dictionaries.evaluate(broken, planted.activations[:2000])["explained_variance"] < 0
    columns = planted.activations.clone()  # each coordinate permuted on its own: no planted direction is left
    generator = torch.Generator().manual_seed(3)
    for j in range(D):
        columns[:, j] = columns[torch.randperm(len(columns), generator=generator), j]
    assert planted.recovered(train(columns, quick(steps=150))) <= 0.05


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_batch_kinds_become_a_jumprelu_of_the_right_l0(planted, kind):
    d = train(planted.activations, quick(kind=kind))
    assert d.activation == "jumprelu" and d.exact_rows
    assert d.metadata["statistics"]["l0"] == pytest.approx(K, abs=0.1)
    assert planted.recovered(d) > 0.3


def test_matryoshka_prefixes_reconstruct_on_their_own(planted):
    def prefix_variance(kind):
        d = train(planted.activations, quick(kind=kind, steps=250))
        keep = torch.arange(FEATURES) < FEATURES // 8
        first = d.replace(W_dec=d.W_dec * keep[:, None])
        return dictionaries.evaluate(first, planted.activations[:2000])["explained_variance"]

    assert prefix_variance("matryoshka") > prefix_variance("batchtopk") + 0.05


def test_relu_learns_a_sparse_code(planted):
    d = train(planted.activations, quick(kind="relu", steps=800))
    statistics = d.metadata["statistics"]
    assert d.activation == "relu" and statistics["explained_variance"] > 0.6
    assert statistics["l0"] < FEATURES / 4 and planted.recovered(d) > 0.3


def test_same_seed_same_bytes_other_seed_other_weights(planted):
    runs = [train(planted.activations, quick(steps=30, seed=seed)) for seed in (5, 5, 6)]
    assert runs[0].fingerprint == runs[1].fingerprint != runs[2].fingerprint


def test_what_it_says_of_itself(trained):
    assert torch.allclose(trained.W_dec.norm(dim=-1), torch.ones(FEATURES), atol=1e-5)
    assert trained.site == "resid.2" and trained.k == K and trained.metadata["training"]["steps"] == 800
    fired = trained.firing_rate > 0
    assert torch.equal(fired, trained.max_activation > 0)
    dense = 800 * 256 * 10 * D * FEATURES
    assert dense <= trained.training_flops < 1.5 * dense  # more where dead latents are revived


def test_harvest_cost_and_progress_are_passed_on(planted):
    calls = []
    config = quick(steps=20, dead_after=10**9)
    plain = train(planted.activations, config, lambda *call: calls.append(call))
    charged = train(planted.activations, config, harvest_flops=1e12)
    assert charged.training_flops == plain.training_flops + 1e12
    assert [c[0] for c in calls] == list(range(1, 21)) and calls[0][1] == 20
    assert set(calls[0][2]) == {"explained_variance", "l0", "dead"}


def trainer_with_dead_half(activations, bias, **changes):
    config = quick(dead_after=1024, **changes)
    generator = torch.Generator().manual_seed(0)
    stream = Stream(activations, batch=config.batch, held_out=100, buffer=1000, generator=generator)
    trainer = Trainer(stream, config, generator)
    with torch.no_grad():
        trainer.b_enc[: FEATURES // 2] = bias
    return trainer


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu"])
def test_dead_latents_get_a_gradient_before_the_relu(planted, kind):
    trainer = trainer_with_dead_half(planted.activations, -30.0, kind=kind)
    dead = slice(0, FEATURES // 2)
    seen = []
    for step in range(8):
        trainer.step(step)
        seen.append(float(trainer.encoder.grad[dead].abs().sum()))
    assert seen[2] == 0.0 and seen[-1] > 0.0  # nothing while they are merely silent; AuxK once they count as dead


def test_auxk_wakes_latents_that_stay_dead_without_it(planted):
    alive = {}
    for weight in (0.0, 1 / 32):
        trainer = trainer_with_dead_half(planted.activations, -5.0, aux_weight=weight, steps=200)
        for step in range(200):
            trainer.step(step)
        recent = trainer.seen - trainer.last_fired[: FEATURES // 2] < 10_000
        alive[weight] = float(recent.float().mean())
    assert alive[0.0] == 0.0 and alive[1 / 32] > 0.8


def test_streamed_batches_train_as_well(planted):
    pieces = list(planted.activations.split(700))
    d = train(pieces, quick(buffer=4096))
    assert planted.recovered(d) >= 0.6


def test_held_out_rows_are_never_trained_on():
    rows = torch.arange(600.0)[:, None].repeat(1, 2)
    for source in (rows, [rows[:250], rows[250:]]):
        stream = Stream(source, batch=50, held_out=100, buffer=200, generator=torch.Generator().manual_seed(0))
        seen = {float(v) for _ in range(60) for v in stream.next()[:, 0]}
        held = {float(v) for v in stream.held_out[:, 0]}
        assert not held & seen and len(held) >= 60 and held | seen == set(map(float, range(600)))


def test_a_generator_that_runs_dry_is_an_error(planted):
    with pytest.raises(FairleadError, match="ran out"):
        train((piece for piece in planted.activations[:4000].split(500)), quick(steps=200, held_out=256, buffer=1024))


def test_bad_activations_are_refused(planted):
    poisoned = planted.activations[:2000].clone()
    poisoned[3, 3] = float("nan")
    with pytest.raises(LoadError, match="NaN"):
        train(poisoned, quick())
    with pytest.raises(LoadError, match="not a matrix"):
        train(planted.activations[0], quick())
    with pytest.raises(FairleadError, match="too few"):
        train(planted.activations[:200], quick())


@pytest.mark.parametrize(
    "wrong", [{"kind": "gated"}, {"k": 0}, {"k": FEATURES + 1}, {"steps": 0}, {"groups": (0.5, 0.2, 1.0)}]
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(FairleadError):
        quick(**wrong)


def test_config_is_data():
    assert TrainConfig(n_features=64) == TrainConfig(n_features=64)


def test_a_tensor_is_streamed_where_it_lies_each_row_once_an_epoch():
    x = torch.arange(103.0)[:, None].repeat(1, 2)
    stream = Stream(x, batch=10, held_out=13, buffer=10, generator=torch.Generator().manual_seed(0))
    assert stream._pool.data_ptr() == x.data_ptr()
    held, first = set(stream.held_out[:, 0].tolist()), set(stream.sample(1000)[:, 0].tolist())
    epochs = [[v for _ in range(9) for v in stream.next()[:, 0].tolist()] for _ in range(2)]
    assert len(held) == 13 and first.isdisjoint(held) and first | held == set(x[:, 0].tolist())
    assert set(epochs[0]) == set(epochs[1]) == first and epochs[0] != epochs[1]
