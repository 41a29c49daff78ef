"""Training resumes: a run that was stopped and continued ends with the weights of an unbroken one."""

from __future__ import annotations

import pytest
import torch

from fairlead.worlds import mixture as mx
from fairlead.worlds import pretrain
from fairlead.worlds import tokenizer as tk

SIZE = pretrain.Size(width=32, layers=2, heads=2, inner=48)
RECIPE = pretrain.Recipe(steps=20, batch=4, warmup=3, curriculum=((0.5, (2,)), (1.01, (2, 3))))


class Stopped(Exception):
    """As if the process had been killed right after a checkpoint."""


def trained(folder, stop_at=None):
    tokenizer = tk.wrap(tk.build(mx.cue_text()))
    model = pretrain.new_model(tokenizer, SIZE, seed=0)

    def progress(line):
        if stop_at is not None and f"step {stop_at}/" in line:
            raise Stopped

    pretrain.train(model, tokenizer, mx.TRUNK, RECIPE, folder / "model.pt", progress, every=9)
    return model.state_dict()


def test_a_stopped_run_ends_like_an_unbroken_one(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "broken", stop_at=9)
    continued = trained(tmp_path / "broken")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert not all(torch.equal(whole[n], v) for n, v in pretrain.new_model(
        tk.wrap(tk.build(mx.cue_text())), SIZE, seed=0).state_dict().items())  # fmt: skip


def test_the_action_weighs_more_than_the_page():
    tokenizer = tk.wrap(tk.build(mx.cue_text()))
    example = next(mx.examples(mx.TRUNK, 1, (3,)))
    ids, weights = pretrain.render(tokenizer, example, RECIPE)
    assert tokenizer.decode(ids).endswith(example.action + tk.END)
    action = len(tokenizer(example.action + tk.END, add_special_tokens=False)["input_ids"])
    assert weights[-action:] == [1.0] * action
    assert set(weights[:-action]) == {RECIPE.prompt_weight}
