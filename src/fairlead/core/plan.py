"""The plan: what a study will do, read from TOML, frozen, hashed, and expanded into trials.

    question = "Does editing the failure features beat prompting on promotion traps?"
    task = "shop"
    model = "pocket/shopper-s"
    dictionary = "pocket/shopper-s@resid.2"
    arms = ["none", "prompt", "feature", "prompt+feature", "control.wrong_sign"]
    primary = "strict"                              # judged for `claim` against `beat` and the controls
    where = {trap = "on"}                           # ... on these strata
    smallest_effect = 0.10
    n = 200
    budget = {tuning_trials = 20, flops = 1e13}     # per arm, equal

`model` and `dictionary` may be lists of one length: then every arm runs on every model. An arm is
`name[.variant]`, and `a+b` fits b on a's subject inside one budget.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fairlead.core import plugins
from fairlead.core.errors import PlanError
from fairlead.core.keys import canonical, content_key, sha256
from fairlead.core.ledger import DICTIONARY_SHARE, Budget
from fairlead.core.types import Trial

REFERENCE = "reference"  # the arm that runs method `none` on the reference model
DECODINGS = ("constrained", "free")
STOPPING = ("none", "anytime")
MOST = 100_000  # instances; a plan that asks for more slipped on the keyboard
_ARM = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?(\+[a-z][a-z0-9_]*(\.[a-z0-9_]+)?)*")


@dataclass(frozen=True)
class Component:
    """One method of an arm: `control.wrong_sign` is name control, variant wrong_sign."""

    name: str
    variant: str | None

    def __str__(self) -> str:
        return self.name if self.variant is None else f"{self.name}.{self.variant}"


@dataclass(frozen=True)
class Facts:
    """What a key hashes beside the plan: content that only the files on disk can tell.

    `sources` and `siblings` are keyed by arm, `weights` and `dictionaries` by reference, `manifests` by split.
    """

    manifests: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    siblings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without_dictionary: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for facts.json and the lock."""
        data: dict[str, Any] = json.loads(canonical(asdict(self)))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Facts:
        """The facts that `to_json` wrote. Raises PlanError."""
        try:
            siblings = {arm: tuple(names) for arm, names in data["siblings"].items()}
            alone = frozenset(data["without_dictionary"])
            return cls(**{**data, "siblings": siblings, "without_dictionary": alone})
        except (TypeError, KeyError, AttributeError) as error:
            raise PlanError("facts.json cannot be read", expected="what this version wrote", got=str(error)) from error


@dataclass(frozen=True)
class Plan:
    """A study before it is run. `n` counts test instances (clusters); each keeps all its renderings, so
    n = 200 shop instances are 200 trap-on, 200 trap-off and 200 inverse items. `n_strata` lowers that for
    single strata values ({"trap": {"off": 20}}), taking the first clusters."""

    question: str
    task: str
    models: tuple[str, ...]
    arms: tuple[str, ...]
    primary: str
    smallest_effect: float
    n: int
    dictionaries: tuple[str | None, ...] = ()
    reference: str | None = None
    seeds: tuple[int, ...] = (0,)
    budget: Budget = Budget()
    decoding: tuple[str, ...] = ("constrained",)
    claim: str = ""
    beat: tuple[str, ...] = ("none",)
    where: Mapping[str, str] = field(default_factory=dict)
    n_strata: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    n_train: int = 60
    n_validation: int = 60
    chunk: int = 16
    traces: int | None = None
    task_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    n_arms: Mapping[str, int] = field(default_factory=dict)
    amortise: float = DICTIONARY_SHARE
    prices: Mapping[str, float] = field(default_factory=dict)
    stop: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    power: float = 0.8

    @property
    def hash(self) -> str:
        """sha256 of the canonical plan, which the lock holds. Anything that changes it makes a new study."""
        return sha256(self.to_json())

    def to_json(self) -> str:
        """The canonical JSON that is hashed and stored as plan.json. A key of `_LATER` that is not given is left
        out, so that a plan keeps the hash it had before there was such a key."""
        data = asdict(self)
        fresh = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(self)}
        return canonical({k: v for k, v in data.items() if k not in _LATER or v != fresh[k]})

    @property
    def run_arms(self) -> tuple[str, ...]:
        """The arms that are run: `arms` without those that the plan says do not apply."""
        return tuple(arm for arm in self.arms if arm not in self.not_applicable)

    @property
    def baseline_arms(self) -> tuple[str, ...]:
        """The arms behind `claim - max(baselines)`: `baselines` as stated, or every arm that is run but none, the
        claim, combinations that hold the claim, controls and stress arms."""
        return self.baselines or tuple(arm for arm in self.run_arms if self._is_baseline(arm))

    @property
    def dictionary_flops_high(self) -> float | None:
        """The most that a dictionary's training may have cost, where the dictionary does not say: from `[prices]`."""
        return self.prices.get("dictionary_flops_high")

    def _is_baseline(self, arm: str) -> bool:
        parts = [str(c) for c in components(arm)]
        apart = parts[0] == "none" or components(arm)[0].name in ("control", "stress")
        return not apart and self.claim not in (arm, *parts)

    def n_of(self, arm: str) -> int:
        """How many test instances (clusters) an arm is run on: `n`, or less by `[n_arms]`."""
        return min(self.n, self.n_arms.get(components(arm)[0].name, self.n))

    def run_id(self, name: str) -> str:
        """`name-` and the first eight hex digits of the hash: a changed plan is a new run."""
        return f"{name}-{self.hash[:8]}"

    def limited(self, n: int | None) -> Plan:
        """The same plan on at most `n` test instances: another plan, with another hash."""
        return self if n is None else replace(self, n=min(n, self.n))

    def dictionary_of(self, model: str) -> str | None:
        """The dictionary reference that belongs to a model of this plan; None for the reference model."""
        return dict(zip(self.models, self.dictionaries, strict=True)).get(model)

    def options_of(self, component: Component) -> dict[str, Any]:
        """A component's options: `[options.control]`, overlaid by `[options."control.wrong_sign"]`."""
        return {**self.options.get(component.name, {}), **self.options.get(str(component), {})}

    def options_for_task(self, decoding: str) -> dict[str, Any]:
        """What the task's plugin receives: `[task_options]`, the decoding mode, and `n`, the number of
        instances (clusters) it must offer in each split."""
        n = max(self.n, self.n_train, self.n_validation)
        return {"n": n, **self.task_options, "decoding": decoding}

    def trials(self, facts: Facts | None = None) -> tuple[Trial, ...]:
        """All trials, in plan order. Pure: the same plan and facts give the same keys anywhere."""
        facts = facts or Facts()
        arms = (*self.arms, *(arm for arm in self.not_applicable if arm not in self.arms))
        found = [
            self._trial(arm, model, decoding, seed, facts)
            for model in self.models
            for arm in arms
            for seed in self.seeds
            for decoding in self.decoding
        ]
        if self.reference is not None:
            found += [
                self._trial(REFERENCE, self.reference, decoding, seed, facts)
                for seed in self.seeds
                for decoding in self.decoding
            ]
        return tuple(found)

    def _trial(self, arm: str, model: str, decoding: str, seed: int, facts: Facts) -> Trial:
        dictionary = None if arm in facts.without_dictionary else self.dictionary_of(model)
        siblings = [self._trial(s, model, self.decoding[0], seed, facts).key for s in facts.siblings.get(arm, ())]
        material: dict[str, Any] = {
            "task": [self.task, self.options_for_task(decoding), dict(facts.manifests)],
            "fitted_under": self.decoding[0],
            "items": [self.n, self.n_strata, self.n_train, self.n_validation, self.chunk, self.traces],
            "arm": [arm, [[str(c), self.options_of(c)] for c in components(arm)], facts.sources.get(arm)],
            "model": [model, facts.weights.get(model)],
            "dictionary": [dictionary, facts.dictionaries.get(dictionary or "")],
            "budget": self.budget,
            "seed": seed,
            "siblings": siblings,
        }
        if self.n_of(arm) != self.n:
            material["n"] = self.n_of(arm)
        if arm in self.not_applicable:
            material["not_applicable"] = self.not_applicable[arm]
        if self.amortise != DICTIONARY_SHARE:
            material["amortise"] = self.amortise
        if self.dictionary_flops_high is not None and dictionary is not None:
            material["dictionary_flops_high"] = self.dictionary_flops_high
        return Trial(content_key(material)[:32], arm, model, dictionary, decoding, seed)


def components(arm: str) -> tuple[Component, ...]:
    """`prompt+control.noise` -> prompt, control.noise. The reference arm is method `none`."""
    if arm == REFERENCE:
        return (Component("none", None),)
    if not _ARM.fullmatch(arm):
        raise PlanError("an arm that cannot be read", expected="name[.variant], joined by +", got=repr(arm))
    parts = [part.partition(".") for part in arm.split("+")]
    return tuple(Component(name, variant or None) for name, _, variant in parts)


def read_plan(path: str | Path) -> Plan:
    """Read, validate and resolve a plan file. Raises PlanError, or UnknownName for an unknown plugin."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read the plan {path}", expected="a TOML file", got=str(error)) from error
    plan = parse_plan(text)
    check_plan(plan)
    return plan


def parse_plan(text: str) -> Plan:
    """TOML text to a Plan; names are not resolved yet. Unknown keys name the nearest valid one."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; a number of 5,000 digits; brackets without end
        raise PlanError("the plan is not TOML", expected="key = value lines", got=str(error)) from error
    return plan_from(raw)


_KEYS: dict[str, str] = {
    "question": "str", "task": "str", "model": "strs", "dictionary": "strs", "arms": "strs", "reference": "str",
    "primary": "str", "smallest_effect": "float", "n": "int", "seeds": "ints", "budget": "table",
    "decoding": "strs", "claim": "str", "beat": "strs", "where": "table", "n_strata": "table", "n_train": "int",
    "n_validation": "int", "chunk": "int", "traces": "int", "task_options": "table", "options": "table",
    "baselines": "strs", "not_applicable": "table", "n_arms": "table", "amortise": "float", "prices": "table",
    "stop": "table", "protocol": "table", "power": "float",
}  # fmt: skip
_LATER = ("baselines", "not_applicable", "n_arms", "amortise", "prices", "stop", "protocol", "power")
_REQUIRED = ("question", "task", "model", "arms", "primary", "smallest_effect", "n")


def plan_from(raw: Mapping[str, Any]) -> Plan:
    """A Plan from the parsed TOML."""
    _known(raw, tuple(_KEYS), "the plan")
    missing = [key for key in _REQUIRED if key not in raw]
    if missing:
        raise PlanError("the plan is incomplete", expected=", ".join(_REQUIRED), got="no " + ", ".join(missing))
    v = {key: _typed(key, _KEYS[key], value) for key, value in raw.items()}
    models = v["model"]
    dictionaries = v.get("dictionary", (None,) * len(models))
    if len(dictionaries) != len(models):
        raise PlanError(
            "models and dictionaries do not match",
            expected=f"one dictionary per model ({len(models)})",
            got=str(len(dictionaries)),
        )
    rest = {k: x for k, x in v.items() if k not in ("model", "dictionary", "budget", "decoding")}
    arms = v["arms"]
    rest.setdefault("claim", "feature" if "feature" in arms else next((a for a in arms if a != "none"), ""))
    plan = Plan(
        **rest,
        models=models,
        dictionaries=dictionaries,
        budget=_budget(v.get("budget", {})),
        decoding=v.get("decoding", ("constrained",)),
    )
    _consistent(plan)
    return plan


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """A Plan from its own canonical JSON (plan.json)."""
    fields: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in data.items()}
    try:
        return Plan(**{**fields, "budget": Budget(**fields.get("budget", {}))})
    except TypeError as error:
        raise PlanError("plan.json cannot be read", expected="what this version wrote", got=str(error)) from error


def check_plan(plan: Plan) -> None:
    """Resolve every name and die on a task and a method that do not fit, before any work is done."""
    task = plugins.get("tasks", plan.task)(plan.options_for_task(plan.decoding[0]))
    for arm in plan.run_arms:
        for component in components(arm):
            method = plugins.get("methods", component.name)(component.variant, plan.options_of(component))
            if method.makes != task.needs:
                raise PlanError(
                    f"arm {arm!r} does not fit task {plan.task!r}",
                    expected=f"a method that makes a {task.needs}",
                    got=f"{component} makes a {method.makes}",
                    do="run `fairlead list methods`",
                )


def _known(raw: Mapping[str, Any], valid: Sequence[str], where: str) -> None:
    for key in raw:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.4)
            raise PlanError(
                f"{where} has no key {key!r}",
                expected=", ".join(valid),
                got=key,
                do=f"did you mean {near[0]!r}?" if near else "remove it",
            )


def _typed(key: str, kind: str, value: Any) -> Any:
    def wrong(expected: str) -> PlanError:
        return PlanError(f"plan key {key!r} has the wrong type", expected=expected, got=repr(value))

    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "str":
        if not isinstance(value, str) or not value:
            raise wrong("a text")
    elif kind == "float":
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise wrong("a number, zero or more")
        return float(value)
    elif kind == "int":
        if not whole or value < 0:
            raise wrong("a whole number, zero or more")
    elif kind == "table":
        if not isinstance(value, dict):
            raise wrong("a table")
    else:
        items = value if isinstance(value, list) else [value]
        one = int if kind == "ints" else str
        if not items or any(not isinstance(x, one) or isinstance(x, bool) for x in items):
            raise wrong("whole numbers" if kind == "ints" else "a text or a list of texts")
        return tuple(items)
    return value


def _budget(raw: Mapping[str, Any]) -> Budget:
    _known(raw, ("tuning_trials", "flops"), "budget")
    trials = None if "tuning_trials" not in raw else _typed("budget.tuning_trials", "int", raw["tuning_trials"])
    flops = None if "flops" not in raw else _typed("budget.flops", "float", raw["flops"])
    return Budget(trials, flops)


def _consistent(plan: Plan) -> None:
    def die(message: str, **details: str) -> None:
        raise PlanError(message, **details)

    for what, values in (("arms", plan.arms), ("model", plan.models), ("seeds", plan.seeds)):
        if len(set(values)) != len(values):
            die(f"{what} holds one entry twice", got=", ".join(map(str, values)))
    if plan.n < 1 or plan.chunk < 1:
        die("n and chunk are at least 1", got=f"n = {plan.n}, chunk = {plan.chunk}")
    for name in ("n", "n_train", "n_validation", "chunk"):
        if getattr(plan, name) > MOST:
            die(f"{name} is too large", expected=f"at most {MOST}", got=str(getattr(plan, name)))
    for mode in plan.decoding:
        if mode not in DECODINGS:
            die("unknown decoding mode", expected=" or ".join(DECODINGS), got=mode)
    if REFERENCE in plan.arms:
        die(f"{REFERENCE!r} is not an arm", do='name the model instead: reference = "pocket/shopper-l"')
    known = {part for arm in plan.arms for c in components(arm) for part in (c.name, str(c))}
    _known(plan.options, sorted(known), "[options]")
    for name, table in plan.options.items():
        if not isinstance(table, dict):
            die(f"options.{name} is not a table", expected=f"[options.{name}]", got=repr(table))
        for key in table:
            if f"{name}.{key}" in known and isinstance(table[key], dict):
                die(f"options.{name}.{key} reads as a nested table", do=f'quote it: [options."{name}.{key}"]')
    for named in (plan.claim, *plan.beat):
        # a plan without `none` can be run; the judge then says inconclusive
        if named and named != "none" and named not in plan.arms:
            die(f"{named!r} is judged but not run", expected="one of " + ", ".join(plan.arms), got=named)
    for stratum, table in plan.n_strata.items():
        if not isinstance(table, dict) or not all(isinstance(x, int) for x in table.values()):
            die(f"n_strata.{stratum} is not a table of counts", expected="{off = 20}", got=repr(table))
    _consistent_fight(plan, die)


def _consistent_fight(plan: Plan, die: Callable[..., None]) -> None:
    """The keys of a fair fight: baselines, arms that do not apply, caps, prices, stopping rule, power."""
    for arm, reason in plan.not_applicable.items():
        components(arm)
        if arm == REFERENCE:
            die(f"{REFERENCE!r} is not an arm", do="leave the reference model out")
        if not isinstance(reason, str) or not reason.strip():
            wanted = 'a text: lora = "peft is not installed"'
            die(f"not_applicable.{arm} has no reason", expected=wanted, got=repr(reason))
    for named in (plan.claim, *plan.beat, *plan.baselines):
        if named in plan.not_applicable:
            die(f"{named!r} is judged but does not apply", got=plan.not_applicable[named])
    for named in plan.baselines:
        if named not in plan.arms:
            die(f"baselines names {named!r}, which is not run", expected="some of " + ", ".join(plan.arms), got=named)
        if named == plan.claim:
            die("the claim is named among its baselines", got=named)
    firsts = {components(arm)[0].name for arm in plan.arms}
    _known(plan.n_arms, sorted(firsts), "[n_arms]")
    for name, count in plan.n_arms.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            die(f"n_arms.{name} is no count", expected="a whole number, one or more", got=repr(count))
    for name, price in plan.prices.items():
        if not isinstance(price, (int, float)) or isinstance(price, bool) or not 0 <= price < float("inf"):
            die(f"prices.{name} is no price", expected="a number, zero or more", got=repr(price))
    _known(plan.stop, ("rule", "alpha"), "[stop]")
    if plan.stop.get("rule", "none") not in STOPPING:
        die("unknown stopping rule", expected=" or ".join(STOPPING), got=repr(plan.stop.get("rule")))
    alpha = plan.stop.get("alpha", 0.05)
    if not isinstance(alpha, float) or not 0 < alpha < 1:
        die("stop.alpha is no error rate", expected="a number between 0 and 1", got=repr(alpha))
    if not 0 < plan.power < 1:
        die("power is no probability", expected="a number between 0 and 1", got=repr(plan.power))
    if not 0 <= plan.amortise <= 1:
        die("amortise is no share", expected="a number from 0 to 1", got=repr(plan.amortise))
