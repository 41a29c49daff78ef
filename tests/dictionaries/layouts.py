"""Dictionaries written in exactly the layout of each public project, each with that project's forward as a formula.

    written = write("llama-scope", tmp_path, d=32, m=96, layer=1)
    written.ref                      # what to load
    latents, output = written.forward(x)

The formulas are set out from the projects' own sources (named in the format modules) over the raw tensors, in
the order in which those projects compute; nothing here uses Fairlead's arithmetic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Written:
    """Where it was written, what loads it, and what its project computes."""

    folder: Path
    ref: str
    site: str
    forward: Forward
    transcoder: bool = False


@dataclass
class Draw:
    """Random weights of one dictionary: W [d, m] and D [m, d] (rows of different norms), biases, thresholds."""

    d: int
    m: int
    layer: int
    generator: torch.Generator
    dtype: torch.dtype = torch.float32

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norms = 0.5 + torch.rand(self.m, 1, generator=self.generator)
        D = torch.nn.functional.normalize(self.normal(self.m, self.d), dim=-1) * norms
        W = 1.3 * D.T + 0.05 * self.normal(self.d, self.m)
        kept = (W.contiguous(), D.contiguous())
        W, D = (t.to(self.dtype) for t in kept)
        return W, D, 0.1 * self.normal(self.m), 0.3 * self.normal(self.d)

    def threshold(self) -> Tensor:
        return 0.4 + 0.6 * torch.rand(self.m, generator=self.generator)


def write(name: str, folder: Path, *, d: int = 24, m: int = 96, layer: int = 1, seed: int = 0,
          dtype: torch.dtype = torch.float32) -> Written:  # fmt: skip
    """The case `name` of CASES in a new folder inside `folder`."""
    inside = folder / name.replace("/", "-").replace(" ", "-")
    inside.mkdir(parents=True, exist_ok=True)
    return CASES[name](inside, Draw(d, m, layer, torch.Generator().manual_seed(seed + 17), dtype))


def topk(pre: Tensor, k: int) -> Tensor:
    kept = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)


def put(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(value))


def saelens(folder: Path, draw: Draw, architecture: str, tensors: dict[str, Tensor], **cfg: Any) -> None:
    save_file({key: t.contiguous() for key, t in tensors.items()}, folder / "sae_weights.safetensors")
    settings = {
        "architecture": architecture, "d_in": draw.d, "d_sae": draw.m, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": f"blocks.{draw.layer}.hook_resid_post"},
    }  # fmt: skip
    put(folder, "cfg.json", {**settings, **cfg})


def saelens_standard(folder: Path, draw: Draw) -> Written:
    W, D, b, c = draw.weights()
    saelens(folder, draw, "standard", {"W_enc": W, "W_dec": D, "b_enc": b, "b_dec": c})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = ((x - c) @ W + b).relu()
        return f, f @ D + c

    return Written(folder, str(folder), f"resid.{draw.layer}", forward)


def saelens_jumprelu(folder: Path, draw: Draw) -> Written:
    (W, D, b, c), t = draw.weights(), draw.threshold()
    saelens(folder, draw, "jumprelu", {"W_enc": W, "W_dec": D, "b_enc": b, "b_dec": c, "threshold": t},
            apply_b_dec_to_input=False)  # fmt: skip

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ W + b
        f = pre.relu() * (pre > t)
        return f, f @ D + c

    return Written(folder, str(folder), f"resid.{draw.layer}", forward)


def saelens_gated(folder: Path, draw: Draw) -> Written:
    W, D, gate, c = draw.weights()
    r, mag, gate = 0.3 * draw.normal(draw.m), 0.2 * draw.normal(draw.m), gate - 0.5
    saelens(folder, draw, "gated", {"W_enc": W, "W_dec": D, "b_gate": gate, "b_mag": mag, "r_mag": r, "b_dec": c})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        on = ((x - c) @ W + gate) > 0
        f = on * ((x - c) @ (W * r.exp()) + mag).relu()
        return f, f @ D + c

    return Written(folder, str(folder), f"resid.{draw.layer}", forward)


def saelens_topk(folder: Path, draw: Draw) -> Written:
    W, D, b, c = draw.weights()
    saelens(folder, draw, "topk", {"W_enc": W, "W_dec": D, "b_enc": b, "b_dec": c}, k=6,
            rescale_acts_by_decoder_norm=True)  # fmt: skip
    norm = D.norm(dim=-1)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = topk(((x - c) @ W + b) * norm, 6).relu()
        return f, (f / norm) @ D + c

    return Written(folder, str(folder), f"resid.{draw.layer}", forward)


def saelens_training(folder: Path, draw: Draw, architecture: str) -> Written:
    """A training checkpoint: one threshold in a buffer, and the input scale beside it."""
    W, D, b, c = draw.weights()
    theta, s = torch.tensor(0.7, dtype=torch.float64), 1.7
    saelens(folder, draw, architecture, {"W_enc": W, "W_dec": D, "b_enc": b, "b_dec": c, "topk_threshold": theta},
            k=6, rescale_acts_by_decoder_norm=True, normalize_activations="expected_average_only_in")  # fmt: skip
    put(folder, "activation_scaler.json", {"scaling_factor": s})
    norm = D.norm(dim=-1)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = ((s * x - c) @ W + b) * norm
        f = pre.relu() * (pre > float(theta))
        return f / s, ((f / norm) @ D + c) / s  # saved for inference, latents are in the model's units

    return Written(folder, str(folder), f"resid.{draw.layer}", forward)


def saelens_transcoder(folder: Path, draw: Draw) -> Written:
    (W, D, b, c), t, skip = draw.weights(), draw.threshold(), 0.1 * draw.normal(draw.d, draw.d)
    tensors = {"W_enc": W, "W_dec": D, "b_enc": b, "b_dec": c, "threshold": t, "W_skip": skip}
    hooks = {"hook_name": f"blocks.{draw.layer}.hook_resid_pre", "hook_name_out": f"blocks.{draw.layer}.hook_mlp_out"}
    saelens(folder, draw, "jumprelu_skip_transcoder", tensors, d_out=draw.d, metadata=hooks,
            apply_b_dec_to_input=False)  # fmt: skip

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ W + b
        f = pre.relu() * (pre > t)
        return f, f @ D + c + x @ skip.T

    return Written(folder, str(folder), f"mlp.{draw.layer}", forward, transcoder=True)


def goodfire(folder: Path, draw: Draw) -> Written:
    W, D, b, c = draw.weights()
    path = folder / f"Tiny-SAE-l{draw.layer}.pth"
    torch.save({"encoder_linear.weight": W.T.contiguous(), "encoder_linear.bias": b - 0.3,
                "decoder_linear.weight": D.T.contiguous(), "decoder_linear.bias": c}, path)  # fmt: skip

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = torch.nn.functional.linear(x, W.T, b - 0.3).relu()
        return f, torch.nn.functional.linear(f, D.T, c)

    return Written(folder, str(path), f"resid.{draw.layer}", forward)


def gemma_scope(folder: Path, draw: Draw, part: str = "res") -> Written:
    (W, D, b, c), t = draw.weights(), draw.threshold()
    inside = folder / f"gemma-scope-2b-pt-{part}" / f"layer_{draw.layer}" / "width_16k" / "average_l0_20"
    inside.mkdir(parents=True, exist_ok=True)
    arrays = {"W_enc": W, "W_dec": D, "b_enc": b, "b_dec": c, "threshold": t}
    np.savez(inside / "params.npz", **{key: value.numpy() for key, value in arrays.items()})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ W + b
        f = (pre > t) * pre.relu()
        return f, f @ D + c

    site = f"{'resid' if part == 'res' else 'mlp'}.{draw.layer}"
    return Written(inside, str(inside), site, forward, transcoder=part == "transcoders")


def gemma_scope_2(folder: Path, draw: Draw, affine: bool = False) -> Written:
    (W, D, b, c), t, skip = draw.weights(), draw.threshold(), 0.1 * draw.normal(draw.d, draw.d)
    kind = "transcoder_all" if affine else "resid_post_all"
    inside = folder / kind / f"layer_{draw.layer}_width_16k_l0_medium{'_affine' if affine else ''}"
    inside.mkdir(parents=True, exist_ok=True)
    tensors = {"w_enc": W, "w_dec": D, "b_enc": b, "b_dec": c, "threshold": t}
    cfg = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"}
    block = f"model.layers.{draw.layer}"
    if affine:
        tensors["affine_skip_connection"] = skip
        cfg |= {"affine_connection": True, "hf_hook_point_in": f"{block}.pre_feedforward_layernorm.output",
                "hf_hook_point_out": f"{block}.post_feedforward_layernorm.output"}  # fmt: skip
    else:
        cfg |= {"hf_hook_point_in": f"{block}.output"}
    save_file(tensors, inside / "params.safetensors")
    put(inside, "config.json", cfg)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ W + b
        f = pre.relu() * (pre > t)
        return f, f @ D + c + (x @ skip if affine else 0.0)

    return Written(inside, str(inside), f"{'mlp' if affine else 'resid'}.{draw.layer}", forward, transcoder=affine)


def llama_scope(folder: Path, draw: Draw) -> Written:
    """The loader of late 2024: standardise, then unit decoder norm, then the scalar threshold."""
    W, D, b, c = draw.weights()
    t, norm_in = 0.6, 2.5
    inside = folder / f"Llama3_1-8B-Base-L{draw.layer}R-8x"
    (inside / "checkpoints").mkdir(parents=True, exist_ok=True)
    tensors = {"encoder.weight": W.T, "encoder.bias": b, "decoder.weight": D.T, "decoder.bias": c}
    save_file({k: v.contiguous() for k, v in tensors.items()}, inside / "checkpoints" / "final.safetensors")
    hook = f"blocks.{draw.layer}.hook_resid_post"
    put(inside, "hyperparams.json", {
        "hook_point_in": hook, "hook_point_out": hook, "use_decoder_bias": True, "expansion_factor": 8,
        "apply_decoder_bias_to_pre_encoder": False, "d_model": draw.d, "d_sae": draw.m, "act_fn": "jumprelu",
        "jump_relu_threshold": t, "norm_activation": "dataset-wise", "top_k": 50, "use_glu_encoder": False,
        "dataset_average_activation_norm": {"in": norm_in, "out": norm_in}, "sparsity_include_decoder_norm": True,
    })  # fmt: skip
    a = math.sqrt(draw.d) / norm_in

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        norm = D.norm(dim=-1)  # the columns' norms: input and output are scaled alike
        pre = x @ (W * norm) + b / a * norm
        f = torch.where(pre > t, pre, 0.0)
        return f / norm, f @ (D / norm[:, None]) + c / a  # reported per unit of the stored column

    return Written(inside, str(inside), f"resid.{draw.layer}", forward)


def llama_scope_r1(folder: Path, draw: Draw) -> Written:
    """Normalised inputs, and a threshold per latent on pre·‖column‖ in the normalised units."""
    (W, D, b, c), log_t, norm_in = draw.weights(), 0.2 * draw.normal(draw.m) - 0.5, 3.1
    inside = folder / f"L{draw.layer}R"
    inside.mkdir(parents=True, exist_ok=True)
    hook = f"blocks.{draw.layer}.hook_resid_post"
    tensors = {"encoder.weight": W.T, "encoder.bias": b, "decoder.weight": D.T, "decoder.bias": c,
               "log_jumprelu_threshold": log_t, f"dataset_average_activation_norm.{hook}": torch.tensor(norm_in)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, inside / "sae_weights.safetensors")
    put(inside, "config.json", {
        "sae_type": "sae", "hook_point_in": hook, "hook_point_out": hook, "d_model": draw.d, "act_fn": "jumprelu",
        "expansion_factor": draw.m // draw.d, "norm_activation": "dataset-wise", "use_decoder_bias": True,
        "sparsity_include_decoder_norm": True, "apply_decoder_bias_to_pre_encoder": False,
    })  # fmt: skip
    a = math.sqrt(draw.d) / norm_in

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (a * x) @ W + b
        f = pre * ((pre * D.norm(dim=-1)) > log_t.exp())
        return f / a, (f @ D + c) / a  # reported in the model's units

    return Written(inside, str(inside), f"resid.{draw.layer}", forward)


def qwen_scope(folder: Path, draw: Draw) -> Written:
    W, D, b, c = draw.weights()
    inside = folder / "SAE-Res-Qwen3-8B-Base-W64K-L0_6"
    inside.mkdir(parents=True, exist_ok=True)
    path = inside / f"layer{draw.layer}.sae.pt"
    torch.save({"W_enc": W.T.contiguous(), "W_dec": D.T.contiguous(), "b_enc": b, "b_dec": c}, path)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = topk(x @ W + b, 6)
        return f, f @ D + c

    return Written(inside, str(path), f"resid.{draw.layer}", forward)


def dictionary_learning(folder: Path, draw: Draw, kind: str) -> Written:
    (W, D, b, c), k, theta = draw.weights(), 6, 0.7
    D = D if kind == "AutoEncoder" else torch.nn.functional.normalize(D.float(), dim=-1)
    linear = {"encoder.weight": W.T.contiguous(), "decoder.weight": D.T.contiguous()}
    more: dict[str, Any] = {"k": k} if "TopK" in kind else {}
    counted = {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(theta)}
    if kind == "AutoEncoder":
        state = {**linear, "encoder.bias": b, "bias": c}
        norm = D.norm(dim=-1)

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            f = ((x - c) @ W + b).relu()
            return f * norm, f @ D + c
    elif kind == "AutoEncoderNew":
        state = {**linear, "encoder.bias": b - 0.3, "decoder.bias": c}

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            f = (x @ W + b - 0.3).relu()
            return f, f @ D + c
    elif kind == "AutoEncoderTopK":
        state = {**linear, "encoder.bias": b, "b_dec": c, **counted}

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            f = topk(((x - c) @ W + b).relu(), k)
            return f, f @ D + c
    elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        state = {**linear, "encoder.bias": b, "b_dec": c, **counted}
        if kind.startswith("Matryoshka"):
            groups = torch.tensor([draw.m // 4, draw.m - draw.m // 4])
            state = {"W_enc": W, "b_enc": b, "W_dec": D.contiguous(), "b_dec": c, "group_sizes": groups, **counted}
            more |= {"group_sizes": groups.tolist()}

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            f = ((x - c) @ W + b).relu()
            f = f * (f > theta)
            return f, f @ D + c
    elif kind == "JumpReluAutoEncoder":
        t = draw.threshold()
        state = {"W_enc": W, "b_enc": b, "W_dec": D.contiguous(), "b_dec": c, "threshold": t}

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            pre = x @ W + b
            f = (pre * (pre > t)).relu()
            return f, f @ D + c
    else:
        r, mag, gate = 0.3 * draw.normal(draw.m), 0.2 * draw.normal(draw.m), b - 0.5
        state = {**linear, "decoder_bias": c, "r_mag": r, "gate_bias": gate, "mag_bias": mag}

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            u = (x - c) @ W
            f = (u + gate > 0) * (r.exp() * u + mag).relu()
            return f, f @ D + c

    inside = folder / "trainer_0"
    inside.mkdir(parents=True, exist_ok=True)
    torch.save(state, inside / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": draw.d, "dict_size": draw.m, "layer": draw.layer,
               "lm_name": "tiny", "submodule_name": f"resid_post_layer_{draw.layer}"}  # fmt: skip
    put(inside, "config.json", {"trainer": {**trainer, **more}, "buffer": {"ctx_len": 128}})
    return Written(inside, str(inside), f"resid.{draw.layer}", forward)


def sparsify(folder: Path, draw: Draw, transcode: bool = False) -> Written:
    (W, D, b, c), k, skip = draw.weights(), 6, 0.1 * draw.normal(draw.d, draw.d)
    inside = folder / f"layers.{draw.layer}{'.mlp' if transcode else ''}"
    inside.mkdir(parents=True, exist_ok=True)
    tensors = {"encoder.weight": W.T.contiguous(), "encoder.bias": b, "W_dec": D, "b_dec": c}
    cfg = {"activation": "topk", "expansion_factor": 4, "normalize_decoder": not transcode, "num_latents": draw.m,
           "k": k, "multi_topk": False, "skip_connection": transcode, "transcode": transcode, "d_in": draw.d}
    save_file(tensors | ({"W_skip": skip} if transcode else {}), inside / "sae.safetensors")
    put(inside, "cfg.json", cfg)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = topk(((x if transcode else x - c) @ W + b).relu(), k)
        return f, f @ D + c + (x @ skip.T if transcode else 0.0)

    return Written(inside, str(inside), f"{'mlp' if transcode else 'resid'}.{draw.layer}", forward, transcode)


CLASSES = ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
           "JumpReluAutoEncoder", "GatedAutoEncoder")  # fmt: skip
CASES: dict[str, Callable[[Path, Draw], Written]] = {
    "saelens": saelens_standard,
    "saelens/jumprelu": saelens_jumprelu,
    "saelens/gated": saelens_gated,
    "saelens/topk": saelens_topk,
    "saelens/batchtopk training": lambda folder, draw: saelens_training(folder, draw, "batchtopk"),
    "saelens/matryoshka training": lambda folder, draw: saelens_training(folder, draw, "matryoshka_batchtopk"),
    "saelens/transcoder": saelens_transcoder,
    "goodfire": goodfire,
    "gemma-scope": gemma_scope,
    "gemma-scope/transcoder": lambda folder, draw: gemma_scope(folder, draw, "transcoders"),
    "gemma-scope-2": gemma_scope_2,
    "gemma-scope-2/affine transcoder": lambda folder, draw: gemma_scope_2(folder, draw, True),
    "llama-scope": llama_scope,
    "llama-scope-r1": llama_scope_r1,
    "qwen-scope": qwen_scope,
    **{
        f"dictionary-learning/{kind}": (lambda folder, draw, kind=kind: dictionary_learning(folder, draw, kind))
        for kind in CLASSES
    },
    "sparsify": sparsify,
    "sparsify/transcoder": lambda folder, draw: sparsify(folder, draw, True),
}
NINE = {
    "saelens": "saelens", "goodfire": "goodfire", "gemma-scope": "gemma-scope", "gemma-scope-2": "gemma-scope-2",
    "llama-scope": "llama-scope", "llama-scope-r1": "llama-scope-r1", "qwen-scope": "qwen-scope",
    "dictionary-learning": "dictionary-learning/BatchTopKSAE", "sparsify": "sparsify",
}  # fmt: skip
