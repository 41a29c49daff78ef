"""An arm of a plan as something that can be fitted, saved, loaded and opened: one method, or a chain `a+b`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.core import plugins
from fairlead.core.chain import Chain, load
from fairlead.core.plan import Plan, components
from fairlead.core.protocols import FitContext, Fitted, Method


@dataclass(frozen=True)
class Arm:
    """The methods behind an arm's name, in order."""

    name: str
    methods: tuple[Method[Any], ...]
    options: tuple[dict[str, Any], ...]
    modules: tuple[str, ...]

    @property
    def uses_dictionary(self) -> bool:
        """A method says `uses_dictionary = False` when it does not; it then gets none and pays for none."""
        return any(getattr(method, "uses_dictionary", True) for method in self.methods)

    @property
    def siblings(self) -> tuple[str, ...]:
        """Arms whose Fitted this one asks for: `siblings` of its methods; a control matches `feature`."""
        found: list[str] = []
        for method, module in zip(self.methods, self.modules, strict=True):
            default = ("feature",) if module.rpartition(".")[2] == "control" else ()
            found += [s for s in getattr(method, "siblings", default) if s not in found and s != self.name]
        return tuple(found)

    async def fit(self, ctx: FitContext[Any]) -> Fitted[Any]:
        """Fit each part on the world that the parts before it open; the parts share one budget equally."""
        parts: list[Fitted[Any]] = []
        with ExitStack() as stack:
            world = ctx.subject
            for method, options in zip(self.methods, self.options, strict=True):
                ctx.budget.part(len(self.methods) - len(parts))
                dictionary = ctx.dictionary if getattr(method, "uses_dictionary", True) else None
                part = await method.fit(replace(ctx, subject=world, dictionary=dictionary, options=options))
                parts.append(part)
                if len(parts) < len(self.methods):
                    world = stack.enter_context(part.open(world))
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def load(self, path: Path) -> Fitted[Any]:
        """Load what `save` left: the same files whether the fit is fresh or resumed."""
        return load(self.methods, path)


def build(plan: Plan, name: str) -> Arm:
    """Resolve an arm's methods through the plugins."""
    methods, options, modules = [], [], []
    for component in components(name):
        plugin = plugins.get("methods", component.name)
        table = plan.options_of(component) if name in plan.arms else {}
        methods.append(plugin(component.variant, table))
        options.append(table)
        modules.append(str(plugin.__module__))
    return Arm(name, tuple(methods), tuple(options), tuple(modules))


def in_order(arms: dict[str, Arm]) -> list[str]:
    """Plan order, but every arm after the siblings it asks for."""
    done: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in done or name in above:
            return
        for sibling in arms[name].siblings:
            if sibling in arms:
                visit(sibling, (*above, name))
        done.append(name)

    for name in arms:
        visit(name, ())
    return done
