"""Fine-tuning: low-rank adapters on the model's linear layers, learned from right actions. Needs `fairlead[lora]`.

The adapters are peft's. They are in the model only while a batch of this arm runs, so all other arms' weights are what
they were, to the bit; and they are saved as peft saves them, in the folder `adapter`, for any tool that reads those.
Every rank × learning rate is one tuning attempt, each epoch is judged on validation, the best one is kept (see
_learned.py). Options:
ranks, lrs   the settings, in order; alpha = 2 × rank
targets      endings of the linear layers' names that are adapted, e.g. ["q_proj", "v_proj"]; none: every linear layer
             of the blocks, found by structure, whatever its name; beside experts, the attention's only
and epochs, batch, patience, n_decisions, select, measure, balance, n_validation.

Source: Hu et al., LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fairlead.core.errors import LoadError, NotApplicable
from fairlead.core.keys import canonical, content_key
from fairlead.core.protocols import FitContext
from fairlead.methods import _learned, _options
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._steered import tensor_hash

ADAPTER, CONFIG, WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"
FUSED = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")  # where experts are stacked, peft takes these for them
PREFIX = "base_model.model."  # what peft puts before a module's name in its files
DEFAULTS: dict[str, Any] = {
    "ranks": [32, 8, 2],
    "lrs": [3e-3, 1e-3, 3e-4],
    "targets": [],
    **_learned.DEFAULTS,
}


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as data: peft's configuration as JSON values, and its tensors under the names of peft's files."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def fingerprint(self) -> str:
        held = {name: tensor_hash(tensor) for name, tensor in sorted(self.tensors.items())}
        used = {key: self.config.get(key) for key in ("r", "lora_alpha", "use_rslora", "target_modules", "peft_type")}
        return content_key(["lora", used, held])


class Layers:
    """peft's layers for one adapter, beside the model's own, and the context that puts them in their place."""

    def __init__(self, subject: Any, config: Mapping[str, Any], seed: int = 0) -> None:
        peft, model = _peft(), subject.model
        with subject.checkpoint.lock, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            own, frozen = model.__dict__.get("peft_config"), [p.requires_grad for p in model.parameters()]
            everything = list(model.parameters())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # it says which of its patterns for experts it dropped
                peft.inject_adapter_in_model(peft.LoraConfig(**config), model)
            if own is None:
                del model.peft_config
            for parameter, wanted in zip(everything, frozen, strict=True):
                parameter.requires_grad_(wanted)
            wrapped = [(n, m) for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
            self._places = [(model.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2], m) for n, m in wrapped]
            for parent, name, layer in self._places:
                layer.eval()
                setattr(parent, name, layer.base_layer)
        self.tensors: dict[str, nn.Parameter] = {
            f"{PREFIX}{name}.{part}.weight": getattr(layer, part)["default"].weight
            for name, layer in wrapped
            for part in ("lora_A", "lora_B")
        }
        self.flops_per_token = 2.0 * sum(t.numel() for t in self.tensors.values())

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """The layers in their places, around what stands there now; afterwards that stands there again."""
        before = [getattr(parent, name) for parent, name, _ in self._places]
        try:
            for (parent, name, layer), inner in zip(self._places, before, strict=True):
                layer.base_layer = inner
                setattr(parent, name, layer)
            yield
        finally:
            for (parent, name, _), inner in zip(self._places, before, strict=True):
                setattr(parent, name, inner)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set and freeze the layers' tensors. LoadError where they are others'."""
        if set(tensors) != set(self.tensors) or any(tensors[n].shape != t.shape for n, t in self.tensors.items()):
            odd = sorted(set(tensors) ^ set(self.tensors))[:2] or ["tensors of other shapes"]
            raise LoadError("the adapter does not fit this model", expected="the model it was made for", got=str(odd))
        for name, parameter in self.tensors.items():
            parameter.requires_grad_(False)
            parameter.copy_(tensors[name])


class Finetuning:
    """A Learner: an adapter of one setting; its second factor starts at zero, so at first nothing changes."""

    def __init__(self, subject: Any, setting: Mapping[str, Any], modules: Sequence[str], seed: int) -> None:
        self._config = _config(subject, setting["rank"], modules)
        self._layers = Layers(subject, self._config, seed)
        self.parameters = [t.requires_grad_(True) for t in self._layers.tensors.values()]
        self.world = subject.within(self._layers.enabled, "lora in training", self._layers.flops_per_token)

    def state(self) -> Adapter:
        return Adapter(self._config, {n: t.detach().clone().cpu() for n, t in self._layers.tensors.items()})


@dataclass(frozen=True)
class Tuned:
    """The fitted arm; `adapter` None: the model as it is was best on validation."""

    adapter: Adapter | None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return content_key(["lora", None if self.adapter is None else self.adapter.fingerprint])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        if self.adapter is None:
            return nullcontext(subject)
        _learned.check_local(subject)
        layers = Layers(subject, self.adapter.config)
        with torch.no_grad():
            layers.put(self.adapter.tensors)
        return nullcontext(subject.within(layers.enabled, self.fingerprint, layers.flops_per_token))

    def describe(self) -> dict[str, Any]:
        if self.adapter is None:
            return {"adapter": None, **self.about}
        size = sum(t.numel() for t in self.adapter.tensors.values())
        chosen = {"rank": self.adapter.config["r"], "modules": list(self.adapter.config["target_modules"])}
        return {"adapter": {**chosen, "parameters": size}, **self.about}

    def save(self, path: Path) -> None:
        write_json(path, "lora", {"about": dict(self.about), "adapter": self.adapter is not None})
        if self.adapter is not None:
            folder = path / ADAPTER
            folder.mkdir()
            (folder / CONFIG).write_text(canonical(self.adapter.config), encoding="utf-8")
            held = {name: tensor.contiguous() for name, tensor in self.adapter.tensors.items()}
            (folder / WEIGHTS).write_bytes(safetensors.torch.save(held, metadata={"format": "pt"}))


def load(path: Path) -> Tuned:
    """The inverse of `Tuned.save`. LoadError when a file is missing, truncated or another method's."""
    data = read_json(path, "lora")
    if not data.get("adapter"):
        return Tuned(None, data["about"])
    folder = path / ADAPTER
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError("the adapter cannot be read", expected=str(folder), got=str(error)) from error
    return Tuned(Adapter(config, tensors), data["about"])


@dataclass(frozen=True)
class LoraMethod:
    """See the module."""

    options: Mapping[str, Any]
    name: str = "lora"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Tuned:
        _learned.check_local(ctx.subject)
        _peft()
        subject, options = ctx.subject, self.options
        modules = linear_layers(subject.checkpoint, options["targets"])
        settings = [{"rank": int(rank), "lr": float(lr)} for rank in options["ranks"] for lr in options["lrs"]]
        begin: Callable[[Mapping[str, Any], int], Finetuning] = lambda setting, seed: Finetuning(  # noqa: E731
            subject, setting, modules, seed
        )
        found = await _learned.learn(ctx, options, settings, begin)
        return Tuned(found.state, found.about())

    def load(self, path: Path) -> Tuned:
        return load(path)


def linear_layers(checkpoint: Any, endings: Sequence[str] = ()) -> list[str]:
    """Names of the blocks' linear layers, as peft takes them: the last part where it says enough ("q_proj"), else
    the whole. With `endings`, only those whose last part is one. NotApplicable where there is none."""
    sites, model = checkpoint.sites, checkpoint.model
    names = {id(m): n for n, m in model.named_modules() if _is_linear(m)}
    read = {id(m) for m in (*sites.blocks, *sites.attn, *sites.mlp)}  # a hook that reads a site must see the adapter
    inside = {id(m) for block in sites.blocks for m in block.modules()} - read
    experts = any(p.ndim == 3 for p in model.parameters())
    kept = {n for i, n in names.items() if i in inside and not (experts and n.rpartition(".")[2] in FUSED)}
    found = [n for n in names.values() if n in kept and (not endings or n.rpartition(".")[2] in endings)]
    if not found:
        have = sorted({n.rpartition(".")[2] for n in kept})
        raise NotApplicable(
            "this model has no such linear layers", expected=", ".join(have) or "linear layers", got=", ".join(endings)
        )
    short = {n.rpartition(".")[2] for n in found}
    alike = {n for n in names.values() if n.rpartition(".")[2] in short}
    return sorted(found) if alike != set(found) else sorted(short)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _config(subject: Any, rank: int, modules: Sequence[str]) -> dict[str, Any]:
    """peft's configuration as plain JSON values, the same on every machine."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": subject.name, "r": rank,
        "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none", "target_modules": list(modules),
        "inference_mode": True, "fan_in_fan_out": _conv(subject, modules),
    }  # fmt: skip


def _conv(subject: Any, modules: Sequence[str]) -> bool:
    """Whether the adapted layers store their weights input first, as GPT-2's Conv1D does."""
    found = (m for n, m in subject.model.named_modules() if n in modules or n.rpartition(".")[2] in modules)
    return type(next(iter(found), None)).__name__ == "Conv1D"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise NotApplicable(
            "lora needs peft, which is not installed", do="pip install 'fairlead[lora]'", got=str(error)
        ) from error
    return peft


def plugin(variant: str | None, options: Mapping[str, Any]) -> LoraMethod:
    """`lora`; it has no variants."""
    _options.variant_of(variant, ("",), "lora")
    return LoraMethod(_options.read(options, DEFAULTS, "lora"))
