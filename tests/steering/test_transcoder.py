"""A transcoder's latents are read elsewhere: their rows can be added, and nothing that needs a reading is taken."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tests.lm.tiny import WIDTH, write

from fairlead import steering
from fairlead.core.errors import EditError, NotApplicable
from fairlead.core.types import Message
from fairlead.dictionaries.transcoder import Transcoder


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    from fairlead.lm.load import load

    torch.set_num_threads(1)
    return load(write(tmp_path_factory.mktemp("tiny") / "llama"))


@pytest.fixture(scope="module")
def transcoder():
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = (torch.randn(*shape, generator=generator) for shape in ((WIDTH, 20), (20, WIDTH)))
    largest = torch.full((20,), 2.0)
    zeros = (torch.zeros(20), torch.zeros(WIDTH))
    return Transcoder("t", "resid_pre.1", "mlp.1", W_enc, W_dec, *zeros, max_activation=largest)


@pytest.mark.parametrize("line", ["3 = 0", "3 *= 0.5", "3 = 4 at last", "5 += 1 when 3 > 0.2"])
def test_edits_that_read_it_are_refused(line, subject, transcoder):
    with pytest.raises(EditError, match="belongs to the transcoder t, which reads resid_pre.1"):
        steering.apply(subject, steering.parse(line), transcoder)


def test_its_rows_are_added_as_vectors(subject, transcoder):
    prompt = (Message("user", "red blue green"),)
    added = steering.apply(subject, steering.parse("3 += 4"), transcoder)
    x = subject.activations([prompt], ["mlp.1"], "all")["mlp.1"][0]
    y = added.activations([prompt], ["mlp.1"], "all")["mlp.1"][0]
    torch.testing.assert_close(y - x, (4 * transcoder.W_dec[3]).expand_as(x), atol=1e-5, rtol=1e-5)
    twice = steering.apply(subject, steering.parse("3 += 2x"), transcoder)
    torch.testing.assert_close(twice.activations([prompt], ["mlp.1"], "all")["mlp.1"][0], y, atol=1e-5, rtol=1e-5)
    out = steering.apply(subject, steering.parse("3 -> out"), transcoder)
    z = out.activations([prompt], ["mlp.1"], "all")["mlp.1"][0]
    assert float((z @ transcoder.W_dec[3]).abs().max()) < 1e-4


def test_the_feature_method_says_that_it_does_not_apply(transcoder):
    from types import SimpleNamespace

    from fairlead.methods.feature import plugin

    with pytest.raises(NotApplicable, match="is a transcoder"):
        asyncio.run(plugin(None, {}).fit(SimpleNamespace(dictionary=transcoder, options={})))
