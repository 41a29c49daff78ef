"""The self-check is quiet on a dictionary that fits, and names what is wrong with one that does not."""

from __future__ import annotations

import pytest
import torch
from tests.dictionaries.conftest import FEATURES, D, K, plant, quick

from fairlead import dictionaries
from fairlead.core.errors import LoadError, UnknownName
from fairlead.dictionaries import fold
from fairlead.dictionaries.check import check_activations, figures, self_check
from fairlead.dictionaries.train import train
from fairlead.dictionaries.transcoder import Transcoder


class World:
    """A subject whose layers are planted worlds: resid.1 is the one the dictionary knows."""

    d_model, sites = D, ["resid.0", "resid.1", "resid.2", "mlp.1"]

    def __init__(self, x: torch.Tensor) -> None:
        turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5))).Q
        self.x = {"resid.0": x @ turn, "resid.1": x, "resid.2": x @ turn.T, "mlp.1": 0.1 * x @ turn}

    def text_activations(self, texts, sites, *, max_tokens=None):
        """A text is "first:last" rows; its first token is a sink."""
        out = {}
        for site in sites:
            rows = [self.x[site][slice(*map(int, text.split(":")))].clone() for text in texts]
            for r in rows:
                r[0] = 1000.0
            out[site] = rows
        return out


@pytest.fixture(scope="module")
def world() -> World:
    return World(plant(4000, seed=21).activations)


TEXTS = [f"{i}:{i + 40}" for i in range(0, 4000, 40)]


@pytest.fixture(scope="module")
def good(planted):
    """A jumprelu whose decoder rows have different norms; the function is the trained one."""
    d = train(planted.activations, quick(kind="batchtopk", steps=800, name="planted", site="resid.1"))
    n = torch.exp(0.8 * torch.randn(FEATURES, generator=torch.Generator().manual_seed(2)))
    assert d.threshold is not None
    return d.replace(
        W_enc=d.W_enc / n, b_enc=d.b_enc / n, threshold=d.threshold / n, W_dec=d.W_dec * n[:, None],
        apply_b_dec_to_input=True,
    )  # fmt: skip


def test_it_is_quiet_where_all_is_right(world, good):
    steps = []
    found = self_check(good, world, TEXTS, progress=lambda done, total: steps.append((done, total)))
    assert found.ok and found.rows == 2048 and found.site == "resid.1" and not found.tried
    assert found.l0 == pytest.approx(K, rel=0.2) and found.explained_variance > 0.7  # sinks are left out
    assert found.published["source"] == "its own training" and steps[-1] == (2048, 2048)
    assert self_check(good.replace(metadata={}), world, TEXTS).ok


WRONG = {
    "wrong layer": (lambda d: d.replace(site="resid.2"), "a wrong layer or site: at resid.1"),
    "wrong layer, on the other side": (lambda d: d.replace(site="resid.0"), "a wrong layer or site: at resid.1"),
    "wrong scale": (lambda d: fold.scaled_input(d, 0.25), "a wrong scale of its input: with its input multiplied by 4"),
    "other scale": (lambda d: fold.scaled_input(d, 3.0), "a wrong scale of its input"),
    "dropped centring": (lambda d: d.replace(apply_b_dec_to_input=False), "a missing centring"),
    "wrong gate": (
        lambda d: d.replace(threshold=d.threshold * d.W_dec.norm(dim=-1)), "a wrong gate: with a gate on pre·‖W_dec‖",
    ),
    "no gate": (lambda d: d.replace(activation="relu", threshold=None), "latents are on per token here; published"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_it_names_what_is_wrong(case, world, good):
    do, message = WRONG[case]
    found = self_check(do(good), world, TEXTS)
    assert not found.ok and message in " | ".join(found.warnings), found.warnings


@pytest.mark.parametrize("case", ["wrong layer", "wrong layer, on the other side", "wrong scale"])
def test_it_warns_without_a_published_figure_too(case, world, good):
    found = self_check(WRONG[case][0](good).replace(metadata={}), world, TEXTS)
    assert not found.ok and WRONG[case][1] in found.warnings[-1], found


def test_another_model_is_said_when_nothing_explains_it(world, good):
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9))).Q
    found = check_activations(good, world.x["resid.1"][:1000] @ turn)
    assert any("another model" in line for line in found.warnings)


def test_figures_come_from_the_file_or_the_caller(good, world):
    assert figures(good)["source"] == "its own training" and figures(good.replace(metadata={})) == {}
    named = good.replace(metadata={"published": {"l0": 40.0, "source": "the folder's name"}})
    found = self_check(named, world, TEXTS)
    assert "published: 40 (the folder's name)" in found.warnings[0]
    assert self_check(named, world, TEXTS, published={"l0": K}).ok


def test_a_transcoder_is_checked_on_both_of_its_sites(world, good):
    through = Transcoder(
        "t", "resid.1", "resid.2", good.W_enc, good.W_dec @ torch.linalg.lstsq(world.x["resid.1"], world.x["resid.2"])
        .solution, good.b_enc - good.b_dec @ good.W_enc, torch.zeros(D), "jumprelu", good.threshold,
    )  # fmt: skip
    mean = (world.x["resid.2"] - through.decode(through.encode(world.x["resid.1"]))).mean(0)
    right = self_check(through.replace(b_dec=mean), world, TEXTS)
    assert right.ok and right.explained_variance > 0.6
    wrong = self_check(through.replace(b_dec=mean, site_in="resid.0"), world, TEXTS)
    assert not wrong.ok and "not tried for transcoders" in wrong.warnings[-1]


def test_misfits_are_errors(world, good, tmp_path):
    from tests.lm.tiny import write

    from fairlead.lm.load import load

    subject = load(write(tmp_path / "llama"))
    with pytest.raises(LoadError, match="does not fit this model"):
        self_check(good, subject, ["red blue"])
    from tests.dictionaries.layouts import write as put

    held = dictionaries.load(put("goodfire", tmp_path, d=32, layer=1).ref)
    found = self_check(held, subject, ["red blue green"] * 20, tokens=40)
    assert found.rows == 40 and not found.ok  # random weights explain nothing
    with pytest.raises(UnknownName):
        self_check(held.replace(site="resid.9"), subject, ["red blue green"])
    with pytest.raises(Exception, match="too few tokens"):
        self_check(held, subject, [])
