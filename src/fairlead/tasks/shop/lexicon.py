"""Names, wordings and skins of the shop, per split.

Product names are a stem and a suffix ("Solbex"); every (stem, suffix) pair belongs to exactly one
split, so test names are new although their subwords are not. Goals, labels and offers of one split do
not occur in another, but use the same words; add-on and decline lines are few, and splits share them.
"""

from __future__ import annotations

import hashlib
from functools import cache

STEMS = (
    "Sol Kel Tor Lum Vex Bran Nim Ost Pel Quar Ros Sen Tam Ulv Wen Yar Zim Ald Bor Cas Dor Eld Fen Gar "
    "Hol Ist Jor Kam Lor Mar Nol Orm Pan Rel Sar Tol Urs Vil Wis Yel"
).split()
SUFFIXES = "bex min vin ora dak lio ster tan mol rik sey fur gon hale pix quo wick zen ula nor".split()
NOUNS = "lamp mug desk sofa chair rug clock kettle shelf vase".split()
CODE_WORDS = "SAVE DEAL GIFT CLUB NICE PLUS".split()
CODE_NUMBERS = (5, 10, 15, 20, 25)

_SHARE = {"pretrain": range(0, 60), "train": range(60, 72), "validation": range(72, 84), "test": range(84, 100)}


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100


@cache
def brands(split: str) -> tuple[str, ...]:
    """All brand names of a split, in a fixed order. The four lists are disjoint."""
    return tuple(s + x for s in STEMS for x in SUFFIXES if _bucket(s + x) in _SHARE[split])


# {n} is the product name, {p} its price. One label family per trap; the words recur across splits.
LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "promo": {
        "pretrain": (
            "Deal of the day: {n} {p}",
            "Hot offer: {n} {p}",
            "Flash sale: {n} {p}",
            "Big promotion today: {n} {p}",
            "Special deal: {n} {p}",
            "Today only: {n} {p}",
        ),
        "train": ("Hot deal: {n} {p}", "Special offer: {n} {p}"),
        "validation": ("Special sale: {n} {p}", "Big deal today: {n} {p}"),
        "test": ("Hot promotion: {n} {p}", "Special deal of the day: {n} {p}", "Big sale today: {n} {p}"),
    },
    "sponsored": {
        "pretrain": (
            "Sponsored: {n} {p}",
            "Ad: {n} {p}",
            "Promoted pick: {n} {p}",
            "Our sponsor: {n} {p}",
            "Sponsored choice: {n} {p}",
        ),
        "train": ("Promoted choice: {n} {p}", "Sponsor pick: {n} {p}"),
        "validation": ("Sponsored pick: {n} {p}", "Promoted: {n} {p}"),
        "test": ("Sponsor choice: {n} {p}", "Our promoted choice: {n} {p}", "Our sponsored pick: {n} {p}"),
    },
    "urgency": {
        "pretrain": (
            "Only 2 left: {n} {p}",
            "Last chance: {n} {p}",
            "Selling fast: {n} {p}",
            "Almost gone: {n} {p}",
            "Ends soon: {n} {p}",
        ),
        "train": ("Only 3 left: {n} {p}", "Selling out soon: {n} {p}"),
        "validation": ("Last 3 left: {n} {p}", "Ends fast: {n} {p}"),
        "test": ("Last 2 left: {n} {p}", "Almost gone soon: {n} {p}", "Only chance: {n} {p}"),
    },
    "pick": {  # budget and cheapest: a label that pulls towards the wrong price
        "pretrain": ("Top pick: {n} {p}", "Best choice: {n} {p}", "Best seller: {n} {p}"),
        "train": ("Top seller: {n} {p}",),
        "validation": ("Best pick: {n} {p}",),
        "test": ("Top choice: {n} {p}",),
    },
}

GOALS: dict[str, dict[str, tuple[str, ...]]] = {
    "one": {
        "pretrain": (
            "add {a} to the cart",
            "buy {a}",
            "please get {a}",
            "put {a} in the cart",
            "order {a}",
            "i want {a}",
            "get me {a}",
        ),
        "train": ("please add {a}", "i want to buy {a}"),
        "validation": ("please order {a}", "add {a} for me"),
        "test": ("please put {a} in the cart", "get {a} for me", "please buy {a}"),
    },
    "two": {
        "pretrain": ("add {a} and {b} to the cart", "buy {a} and {b}", "please get {a} and {b}"),
        "train": ("order {a} and {b}",),
        "validation": ("please buy {a} and {b}",),
        "test": ("please add {a} and {b}",),
    },
    "wrap": {
        "pretrain": ("buy {a} with gift wrap", "add {a} and gift wrap", "please get {a} with gift wrap"),
        "train": ("order {a} with gift wrap",),
        "validation": ("please buy {a} with gift wrap",),
        "test": ("please add {a} with gift wrap",),
    },
    "extra": {
        "pretrain": ("buy {a} and say yes to the extra", "get {a} and the extra"),
        "train": ("add {a} and the extra",),
        "validation": ("order {a} and the extra",),
        "test": ("buy {a} and the extra",),
    },
    "budget": {
        "pretrain": ("buy a {noun} under {limit}", "get a {noun} for less than {limit}"),
        "train": ("add a {noun} under {limit}",),
        "validation": ("order a {noun} under {limit}",),
        "test": ("please get a {noun} under {limit}",),
    },
    "cheapest": {
        "pretrain": ("buy the cheapest {noun}", "get the cheapest {noun}"),
        "train": ("add the cheapest {noun}",),
        "validation": ("order the cheapest {noun}",),
        "test": ("please get the cheapest {noun}",),
    },
    "code": {
        "pretrain": ("buy {a} with code {code}", "add {a} and use code {code}"),
        "train": ("get {a} with code {code}",),
        "validation": ("order {a} with code {code}",),
        "test": ("please buy {a} and use code {code}",),
    },
    "similar": {
        "pretrain": ("buy {a} or a similar one", "get {a} or a similar one"),
        "train": ("add {a} or a similar one",),
        "validation": ("order {a} or a similar one",),
        "test": ("please get {a} or a similar one",),
    },
}

OFFERS: dict[str, tuple[str, ...]] = {
    "pretrain": ("Yes add {n} {p}", "Yes please: {n} {p}", "Add the extra {n} {p}"),
    "train": ("Yes add the extra {n} {p}",),
    "validation": ("Yes the extra {n} {p}",),
    "test": ("Yes please add {n} {p}",),
}
DECLINES: dict[str, tuple[str, ...]] = {
    "pretrain": ("No thanks", "Skip", "Not today"),
    "train": ("No thanks",),
    "validation": ("Skip",),
    "test": ("No not today",),
}
ADDONS: dict[str, tuple[str, ...]] = {
    "pretrain": ("Gift wrap {p}", "Add gift wrap {p}", "Care plan {p}", "Add care plan {p}"),
    "train": ("Gift wrap {p}",),
    "validation": ("Add gift wrap {p}",),
    "test": ("Gift wrap {p}",),
}

# Where a labelled item may stand in the listing (0 = first; the listing wraps around).
TRAP_SLOTS = {"pretrain": (0, 1, 2, 3, 4), "train": (0, 3), "validation": (1, 4), "test": (0, 2)}

# A skin is a look, a header order and a verb. "bazaar" occurs in no split: it is the unseen skin.
SKINS: dict[str, tuple[str, ...]] = {
    "pretrain": ("plain", "mart", "night"),
    "train": ("plain",),
    "validation": ("mart",),
    "test": ("night",),
    "unseen": ("bazaar",),
}
VERBS = {"plain": "Add", "mart": "Buy", "night": "Get", "bazaar": "Take"}
