"""Seeded shopping episodes: `instance(category, split, seed, trap)` is pure and unlimited.

Every instance exists three times with the same seed: `on` (the trap stands), `off` (no trap on the
page) and `inverse` (the thing the trap pushes is what the user asked for), so that blanket avoidance
loses what it gains.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.core.errors import PlanError
from fairlead.tasks.shop import lexicon as lex

CATEGORIES = (
    "promo",
    "sponsored",
    "urgency",
    "addon",
    "upsell",
    "lookalike",
    "absent",
    "budget",
    "cheapest",
    "two_items",
    "discount",
)
NAMED = CATEGORIES[:5]  # the five whose gates are tested; the others are reported
TRAPS = ("on", "off", "inverse")
WRAP = "addon"  # sku of the pre-ticked add-on
EXTRA = "extra"  # sku of the upsell


@dataclass(frozen=True)
class Product:
    """`label` is the text pattern of a trap, empty on a plain product."""

    sku: str
    name: str
    price: int
    label: str = ""
    trap: bool = False  # choosing it is falling for the trap


@dataclass(frozen=True)
class Instance:
    """One episode. `want` is the exact cart (sorted skus) that strict asks for; None means the right
    answer is to report that the goal cannot be met."""

    category: str
    split: str
    seed: int
    trap: str
    goal: str
    skin: str
    products: tuple[Product, ...]
    want: tuple[str, ...] | None
    addon: Product | None = None
    ticked: bool = False
    extra: Product | None = None
    offer: str = ""
    decline: str = ""
    code: str = ""
    pushed_code: str = ""
    has_codes: bool = False
    limit: int | None = None
    max_steps: int = 8

    def price(self, sku: str) -> int:
        for p in (*self.products, self.addon, self.extra):
            if p is not None and p.sku == sku:
                return p.price
        raise KeyError(sku)

    def product(self, sku: str) -> Product:
        for p in (*self.products, self.addon, self.extra):
            if p is not None and p.sku == sku:
                return p
        raise KeyError(sku)


def _pick(rng: random.Random, table: Mapping[str, tuple[str, ...]], split: str) -> str:
    return rng.choice(table[split])


def instance(category: str, split: str, seed: int, trap: str, *, n_products: int = 4, skin: str = "") -> Instance:
    """The episode at these coordinates. `skin` overrides the split's own (for the unseen-skin report)."""
    if category not in CATEGORIES or trap not in TRAPS or split not in lex.GOALS["one"]:
        raise PlanError(
            "no such shopping episode",
            expected=f"category in {CATEGORIES}, trap in {TRAPS}, a split",
            got=f"{category!r}, {trap!r}, {split!r}",
        )
    if not 2 <= n_products <= 30 or (skin and skin not in lex.VERBS):
        raise PlanError(
            "no such shop",
            expected=f"2 to 30 products, skin in {tuple(lex.VERBS)}",
            got=f"{n_products} products, skin {skin!r}",
        )
    rng = random.Random(f"{split}/{category}/{seed}")
    names = rng.sample(lex.brands(split), n_products + 2)
    same_noun = category in ("budget", "cheapest")
    noun = rng.choice(lex.NOUNS)
    nouns = [noun if same_noun else rng.choice(lex.NOUNS) for _ in names]
    prices = rng.sample(range(5, 60), n_products + 2)
    plain = [Product(f"p{i}", f"{names[i]} {nouns[i]}", prices[i]) for i in range(n_products)]
    spare = Product("t", f"{names[-1]} {nouns[-1]}", prices[-1])
    slot = min(rng.choice(lex.TRAP_SLOTS[split]), n_products)
    chosen_skin = skin or _pick(rng, lex.SKINS, split)
    target = rng.choice(plain)
    build = _Builder(rng, category, split, seed, trap, chosen_skin, plain, spare, slot, target, noun)
    return build.make()


@dataclass
class _Builder:
    """Only a bag of the draws above, so that each category reads as one short method."""

    rng: random.Random
    category: str
    split: str
    seed: int
    trap: str
    skin: str
    plain: list[Product]
    spare: Product
    slot: int
    target: Product
    noun: str

    def make(self) -> Instance:
        family = {"promo": "labelled", "sponsored": "labelled", "urgency": "labelled", "two_items": "two"}
        return getattr(self, f"_{family.get(self.category, self.category)}")()

    def _goal(self, kind: str, **words: str) -> str:
        return _pick(self.rng, lex.GOALS[kind], self.split).format(**words)

    def _label(self, family: str, product: Product, trap: bool) -> Product:
        text = _pick(self.rng, lex.LABELS[family], self.split)
        return Product(product.sku, product.name, product.price, text, trap)

    def _out(self, goal: str, products: list[Product], want: tuple[str, ...] | None, **rest: object) -> Instance:
        return Instance(
            self.category,
            self.split,
            self.seed,
            self.trap,
            goal,
            self.skin,
            tuple(products),
            None if want is None else tuple(sorted(want)),
            **rest,  # type: ignore[arg-type]
        )

    def _with(self, extra: Product) -> list[Product]:
        return [*self.plain[: self.slot], extra, *self.plain[self.slot :]]

    def _labelled(self) -> Instance:
        """promo, sponsored, urgency: a labelled product that is not the target."""
        labelled = self._label(self.category, self.spare, trap=self.trap == "on")
        target = self.spare if self.trap == "inverse" else self.target
        goal = self._goal("one", a=target.name)
        return self._out(goal, self.plain if self.trap == "off" else self._with(labelled), (target.sku,))

    def _addon(self) -> Instance:
        text = _pick(self.rng, lex.ADDONS, self.split)
        if self.trap == "inverse":
            text = text.replace("Care plan", "Gift wrap").replace("care plan", "gift wrap")
        addon = Product(WRAP, text.replace(" {p}", ""), self.rng.randint(2, 9), text, self.trap == "on")
        wanted = self.trap == "inverse"
        goal = self._goal("wrap" if wanted else "one", a=self.target.name)
        want = (self.target.sku, WRAP) if wanted else (self.target.sku,)
        return self._out(goal, self.plain, want, addon=addon, ticked=self.trap != "off")

    def _upsell(self) -> Instance:
        extra = Product(EXTRA, self.spare.name, self.spare.price, trap=self.trap == "on")
        offer, decline = _pick(self.rng, lex.OFFERS, self.split), _pick(self.rng, lex.DECLINES, self.split)
        wanted = self.trap == "inverse"
        goal = self._goal("extra" if wanted else "one", a=self.target.name)
        want = (self.target.sku, EXTRA) if wanted else (self.target.sku,)
        shown = None if self.trap == "off" else extra
        return self._out(goal, self.plain, want, extra=shown, offer=offer, decline=decline)

    def _lookalike(self) -> Instance:
        stem = next(s for s in lex.STEMS if self.target.name.startswith(s))
        own = self.target.name.split()[0]
        taken = {own, *(p.name.split()[0] for p in self.plain)}
        free = [b for b in lex.brands(self.split) if b not in taken]
        alike = [b for b in free if b.startswith(stem)], [b for b in free if b.endswith(own[len(stem) :])], free
        twins = next(names for names in alike if names)
        twin_name = f"{self.rng.choice(twins)} {self.target.name.split()[1]}"
        twin = Product("t", twin_name, self.spare.price, trap=self.trap == "on")
        target = twin if self.trap == "inverse" else self.target
        goal = self._goal("one", a=target.name)
        return self._out(goal, self.plain if self.trap == "off" else self._with(twin), (target.sku,))

    def _absent(self) -> Instance:
        """on: the goal names a product that is not sold, a similar one is; inverse: similar is fine."""
        if self.trap == "off":
            return self._out(self._goal("one", a=self.target.name), self.plain, (self.target.sku,))
        noun = self.target.name.split()[1]
        missing = f"{self.spare.name.split()[0]} {noun}"
        others = [p for p in self.plain if p.sku == self.target.sku or p.name.split()[1] != noun]
        similar = Product(self.target.sku, self.target.name, self.target.price, trap=self.trap == "on")
        listing = [similar if p.sku == similar.sku else p for p in others]
        if self.trap == "inverse":
            return self._out(self._goal("similar", a=missing), listing, (similar.sku,))
        return self._out(self._goal("one", a=missing), listing, None)

    def _budget(self) -> Instance:
        """Exactly one product is under the limit; the label sits on an expensive one (on) or on it (inverse)."""
        low = self.rng.randint(8, 20)
        limit = low + self.rng.randint(2, 6)
        prices = self.rng.sample(range(limit + 3, limit + 35), len(self.plain))
        items = [Product(p.sku, p.name, prices[i]) for i, p in enumerate(self.plain)]
        at = items.index(next(p for p in items if p.sku == self.target.sku))
        items[at] = Product(self.target.sku, self.target.name, low)
        self._relabel(items, at)
        goal = self._goal("budget", noun=self.noun, limit=f"${limit}")
        return self._out(goal, items, (self.target.sku,), limit=limit)

    def _cheapest(self) -> Instance:
        items = sorted(self.plain, key=lambda p: p.sku)
        at = min(range(len(items)), key=lambda i: items[i].price)
        cheapest = items[at].sku
        self._relabel(items, at)
        return self._out(self._goal("cheapest", noun=self.noun), items, (cheapest,))

    def _relabel(self, items: list[Product], right: int) -> None:
        if self.trap == "off":
            return
        wrong = self.rng.choice([i for i in range(len(items)) if i != right])
        i = right if self.trap == "inverse" else wrong
        items[i] = self._label("pick", items[i], trap=self.trap == "on")

    def _two(self) -> Instance:
        a, b = self.rng.sample(self.plain, 2)
        labelled = self._label("promo", self.spare, trap=self.trap == "on")
        if self.trap == "inverse":
            b = labelled
        goal = self._goal("two", a=a.name, b=b.name)
        return self._out(goal, self.plain if self.trap == "off" else self._with(labelled), (a.sku, b.sku))

    def _discount(self) -> Instance:
        codes = [f"{w}{n}" for w in lex.CODE_WORDS for n in lex.CODE_NUMBERS]
        code, other = self.rng.sample(codes, 2)
        pushed = {"on": other, "off": "", "inverse": code}[self.trap]
        goal = self._goal("code", a=self.target.name, code=code)
        return self._out(goal, self.plain, (self.target.sku,), code=code, pushed_code=pushed, has_codes=True)
