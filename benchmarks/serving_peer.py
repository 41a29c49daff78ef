"""One peer, in its own process and virtual environment: 16 rows, greedy tokens, one edit at one block.

    PYTHON benchmarks/serving_peer.py NAME MODEL_FOLDER

Prints {"tokens_per_cpu_second": ...} of this one-thread process, the best of three after one to warm up. The edit is
what each library does by itself: a vector added to the stream of every row (steering-vectors, repeng, pyvene, nnsight,
TransformerLens), or an SAE's latent clamped with the error kept (SAELens). "fairlead" runs 16 different clamps in the
server's loop, and so does more. For a venv: python -m venv $FAIRLEAD_BENCH_VENVS/NAME, then pip install NAME there.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROWS, PROMPT, NEW = 16, 16, 32
Run = Callable[[], Any]


def prompts(vocabulary: int) -> torch.Tensor:
    return (torch.arange(ROWS * PROMPT).reshape(ROWS, PROMPT) * 7) % vocabulary


def load(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def generating(model: Any, ids: torch.Tensor) -> Run:
    mask = torch.ones_like(ids)
    return lambda: model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )


def vector(model: Any) -> torch.Tensor:
    d = model.config.hidden_size
    return torch.randn(d, generator=torch.Generator().manual_seed(0)) / d**0.5


def fairlead(folder: str) -> Run:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.serving import Loop, dictionary

    net = load(folder)
    site = net.config.num_hidden_layers // 2
    held = dictionary(net.config.hidden_size, 2048, f"resid.{site}")
    loop = Loop(net, held, [f"@resid.{site}: {i} = 1" for i in range(ROWS)])
    ids = prompts(net.config.vocab_size).numpy()
    return lambda: loop.run(ids)


def steering_vectors(folder: str) -> Run:
    from steering_vectors import SteeringVector  # type: ignore[import-not-found]

    net = load(folder)
    site = net.config.num_hidden_layers // 2
    given, run = SteeringVector({site: vector(net)}), generating(net, prompts(net.config.vocab_size))

    def one() -> Any:
        with given.apply(net):
            return run()

    return one


def repeng(folder: str) -> Run:
    from repeng import ControlModel, ControlVector  # type: ignore[import-not-found]

    net = load(folder)
    site = net.config.num_hidden_layers // 2
    held = ControlModel(net, [site])
    held.set_control(ControlVector(model_type="llama", directions={site: vector(net).numpy()}), 1.0)
    return generating(net, prompts(net.config.vocab_size))


def pyvene(folder: str) -> Run:
    import pyvene as pv  # type: ignore[import-not-found]

    net = load(folder)
    site, d = net.config.num_hidden_layers // 2, vector(net)
    given = pv.IntervenableModel(
        {"layer": site, "component": "block_output", "intervention": lambda base, *_, **__: base + d}, model=net
    )
    ids = prompts(net.config.vocab_size)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return lambda: given.generate(
        inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0, intervene_on_prompt=True,
        unit_locations=None,
    )  # fmt: skip


def words(model: Any) -> Any:
    """A tokenizer, for who asks for one: a word a token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    every = Tokenizer(models.WordLevel({str(i): i for i in range(model.config.vocab_size)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=every, pad_token="0")


def interp_engine(folder: str) -> Run:
    """Its eager engine takes one prompt a call, so the 16 are answered one after the other."""
    from interp_engine import SteerSpec, generate_stream, load_model, steer  # type: ignore[import-not-found]

    net = load(folder)
    with tempfile.TemporaryDirectory() as own:
        net.save_pretrained(own)
        words(net).save_pretrained(own)
        held = load_model(own, backend="eager", device="cpu", dtype="float32")
    spec, ids = SteerSpec(vector(net), net.config.num_hidden_layers // 2), prompts(net.config.vocab_size)

    def answer(row: torch.Tensor) -> list[int]:
        with steer(held, [spec]):
            return [s.token_id for s in generate_stream(held, row[None], max_tokens=NEW, temperature=0.0,
                                                        stop_at_eos=False)]  # fmt: skip

    return lambda: [answer(row) for row in ids]


def nnsight(folder: str) -> Run:
    from nnsight import LanguageModel  # type: ignore[import-not-found]

    net = load(folder)
    site, d, ids = net.config.num_hidden_layers // 2, vector(net), prompts(net.config.vocab_size)
    held = LanguageModel(net, tokenizer=words(net))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def one() -> Any:
        with held.generate(given, max_new_tokens=NEW, do_sample=False, pad_token_id=0) as tracer:
            for _ in tracer.iter[:]:
                held.model.layers[site].output += d

    return one


def transformer_lens(folder: str) -> Run:
    lens = _lens(folder)
    site, d = lens.cfg.n_layers // 2, torch.randn(lens.cfg.d_model) / lens.cfg.d_model**0.5
    lens.add_hook(f"blocks.{site}.hook_resid_post", lambda h, **_: h + d)
    return _lens_run(lens)


def sae_lens(folder: str) -> Run:
    from sae_lens import SAE, StandardSAE, StandardSAEConfig  # type: ignore[import-not-found]  # noqa: F401

    lens = _lens(folder)
    site, width = lens.cfg.n_layers // 2, 2048
    sae = StandardSAE(StandardSAEConfig(d_in=lens.cfg.d_model, d_sae=width, apply_b_dec_to_input=False))

    def clamp(h: torch.Tensor, **_: Any) -> torch.Tensor:
        f = sae.encode(h)
        error = h - sae.decode(f)
        f[..., 0] = 1.0
        return sae.decode(f) + error

    lens.add_hook(f"blocks.{site}.hook_resid_post", clamp)
    return _lens_run(lens)


def _lens(folder: str) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # type: ignore[import-not-found]
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights  # type: ignore[import-not-found]

    net = load(folder)
    c = net.config
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, d_head=c.hidden_size // c.num_attention_heads,
        n_heads=c.num_attention_heads, d_mlp=c.intermediate_size, d_vocab=c.vocab_size, n_ctx=512, act_fn="silu",
        normalization_type="RMS", positional_embedding_type="rotary", gated_mlp=True, final_rms=True,
        eps=c.rms_norm_eps, rotary_dim=c.hidden_size // c.num_attention_heads, rotary_adjacent_pairs=False,
        original_architecture="LlamaForCausalLM", n_key_value_heads=c.num_key_value_heads,
    )  # fmt: skip
    lens = HookedTransformer(cfg)
    lens.load_and_process_state_dict(
        convert_llama_weights(net, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    return lens.eval()


def _lens_run(lens: Any) -> Run:
    ids = prompts(lens.cfg.d_vocab)
    return lambda: lens.generate(
        ids, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
    )


PEERS = {
    "fairlead": fairlead, "steering-vectors": steering_vectors, "repeng": repeng, "pyvene": pyvene, "nnsight": nnsight,
    "interp-engine": interp_engine,
    "transformer-lens": transformer_lens, "sae-lens": sae_lens,
}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with torch.no_grad():
        run = PEERS[sys.argv[1]](sys.argv[2])
        run()
        seconds = []
        for _ in range(3):
            started = time.process_time()
            run()
            seconds.append(time.process_time() - started)
    found = {"tokens_per_cpu_second": ROWS * NEW / min(seconds), "cpu_seconds": seconds}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
