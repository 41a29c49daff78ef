"""Where the named places of a model are, found by structure, and how a hook gets there and away again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fairlead.core.errors import FairleadError, NotApplicable, UnknownName
from fairlead.lm.probe import find_blocks, find_parts

KINDS = ("resid", "resid_pre", "attn", "mlp", "mlp_in")
_INPUTS = ("resid_pre", "mlp_in")  # what a module takes in; the others are what one puts out


class Sites:
    """The decoder blocks of a model and what they are made of.

    "resid.L" is what block L puts out, "resid_pre.L" what it takes in, "attn.L" and "mlp.L" what its
    attention and its MLP add to the stream: resid_pre + attn + mlp = resid, as was tried when they were found.
    "mlp_in.L" is what the MLP reads, behind the norm.
    """

    def __init__(self, model: nn.Module, n_layers: int) -> None:
        self.blocks: list[nn.Module] = find_blocks(model, n_layers)
        parts = find_parts(model, self.blocks)
        self.attn: list[nn.Module | None] = [part.attn for part in parts]
        self.mlp: list[nn.Module | None] = [part.mlp for part in parts]
        self.mlp_in: list[nn.Module | None] = [part.mlp_in for part in parts]

    @property
    def additive(self) -> bool:
        """Whether every block is the sum of what it takes in, its attention and its MLP."""
        return all(part is not None for part in (*self.attn, *self.mlp))

    def names(self) -> list[str]:
        """Every site, e.g. ["resid.0", ..., "mlp.3"]."""
        return [f"{kind}.{i}" for kind in KINDS for i, module in enumerate(self._modules(kind)) if module is not None]

    def _modules(self, kind: str) -> Sequence[nn.Module | None]:
        return {"attn": self.attn, "mlp": self.mlp, "mlp_in": self.mlp_in}.get(kind, self.blocks)

    def place(self, site: str) -> tuple[str, nn.Module]:
        """(kind, module) of a site. UnknownName when there is no such site."""
        kind, _, layer = site.partition(".")
        if kind not in KINDS or not layer.isascii() or not layer.isdigit() or int(layer) >= len(self.blocks):
            last = len(self.blocks) - 1
            raise UnknownName(
                f"no site {site!r} in this model",
                expected=f"{', '.join(KINDS)} with a layer 0..{last}, e.g. resid.{last}",
                got=site,
            )
        module = self._modules(kind)[int(layer)]
        if module is None:
            raise NotApplicable(
                f"{site} is not something this model adds to its residual stream",
                expected="blocks in which resid_pre + attn + mlp = resid",
                do="use resid or resid_pre sites with this architecture",
            )
        return kind, module

    def depth(self, site: str) -> int:
        """How many blocks a forward must run for `site` to have been there."""
        kind, layer = self.place(site)[0], int(site.partition(".")[2])
        return layer if kind == "resid_pre" else layer + 1

    def can_stop(self, layers: int | None) -> bool:
        """Whether a forward may end behind `layers` blocks: there are more, and none is moved between devices."""
        moved = any(hasattr(block, "_hf_hook") for block in self.blocks)
        return layers is not None and layers < len(self.blocks) and not moved


class _Enough(Exception):
    """Ends a forward whose rest nobody asked for."""


@contextmanager
def stopped_behind(sites: Sites, layers: int) -> Iterator[None]:
    """Forwards inside end, without a result, where block `layers` would begin. Enter it after other hooks."""

    def enough(_module: nn.Module, _args: Any) -> None:
        raise _Enough

    handle = sites.blocks[layers].register_forward_pre_hook(enough)
    try:
        yield
    except _Enough:
        pass
    finally:
        handle.remove()


class Attached:
    """Hooks that are in the model until `stack` closes; knows which of them ran. What is told to them beside the
    activations is `info`."""

    def __init__(
        self, stack: ExitStack, sites: Sites, hooks: Sequence[tuple[str, Callable[[Tensor, Any], Tensor]]], info: Any
    ) -> None:
        self._asked = [site for site, _ in hooks]
        self._ran = [False] * len(hooks)
        for index, (site, hook) in enumerate(hooks):
            kind, module = sites.place(site)
            if kind in _INPUTS:
                before = self._before(index, site, hook, info)
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = module.register_forward_hook(self._after(index, site, hook, info))
            stack.callback(handle.remove)

    def check(self) -> None:
        """Raises when a hook was asked for and its site never ran: never unsteered in silence."""
        silent = [site for site, ran in zip(self._asked, self._ran, strict=True) if not ran]
        if silent:
            raise FairleadError(
                f"the model's forward never reached {', '.join(silent)}",
                expected="every hooked site runs in every forward",
                do="this architecture needs its own entry in fairlead.lm.sites; nothing was returned unsteered",
            )

    def _after(self, index: int, site: str, hook: Callable[[Tensor, Any], Tensor], info: Any) -> Any:
        def run(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            self._ran[index] = True
            new = checked(site, hidden, hook(hidden, info))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return run

    def _before(self, index: int, site: str, hook: Callable[[Tensor, Any], Tensor], info: Any) -> Any:
        def run(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._ran[index] = True
            new = checked(site, hidden, hook(hidden, info))
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        return run


def checked(site: str, old: Tensor, new: Tensor) -> Tensor:
    """`new`, where it can take the place of `old` at a site."""
    if new is not old and (new.shape != old.shape or new.dtype != old.dtype):
        raise FairleadError(
            f"the hook at {site} changed the shape or type of the activations",
            expected=f"{tuple(old.shape)} {old.dtype}",
            got=f"{tuple(new.shape)} {new.dtype}",
        )
    return new
