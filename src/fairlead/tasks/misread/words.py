"""The closed vocabulary of the misreading grammar: classes of things, the places that call for them, ambiguous words.

Half of each class's places are *weak*: there a biased model was taught to take an ambiguous word in its dominant sense.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Class:
    """One class of things. `strong` and `weak` are its places, `verbs` what is literally done with its things."""

    name: str
    things: tuple[str, ...]
    verbs: tuple[str, ...]
    strong: tuple[str, ...]
    weak: tuple[str, ...]

    @property
    def terms(self) -> tuple[str, ...]:
        """Every word that tells this class."""
        return (self.name, *self.things, *self.verbs, *self.strong, *self.weak)


def _class(name: str, things: str, verbs: str, strong: str, weak: str) -> Class:
    return Class(name, *(tuple(words.split()) for words in (things, verbs, strong, weak)))


CLASSES = {
    c.name: c
    for c in (
        _class("animals", "owls wolves goats foxes hens otters", "fed tamed",
               "zoo farm barn jungle kennel", "stable pond savanna den pasture"),
        _class("tools", "hammers saws axes wrenches chisels shovels", "sharpened swung",
               "workshop shed forge garage mine", "sawmill factory hangar quarry smithy"),
        _class("foods", "pies cakes soups breads cheeses noodles", "devoured baked",
               "kitchen bakery cafe picnic diner", "pantry grocer canteen banquet buffet"),
        _class("plants", "roses tulips ferns oaks pines daisies", "watered pruned",
               "garden meadow forest greenhouse orchard", "nursery park hedge grove lawn"),
        _class("clothes", "shirts coats scarves gloves socks hats", "wore sewed",
               "tailor wardrobe boutique laundry closet", "mill loom catwalk hatter cobbler"),
        _class("funds", "coins pennies dollars loans rents wages", "spent earned",
               "bank market treasury casino vault", "exchange office counter lender till"),
        _class("instruments", "flutes harps violins trumpets pianos banjos", "played tuned",
               "concert opera recital theatre ballroom", "studio parade chapel festival rehearsal"),
        _class("vehicles", "trucks trains buses wagons canoes tractors", "drove parked",
               "station harbor airport depot highway", "pier dock crossing tunnel toll"),
    )
}  # fmt: skip

AMBIGUOUS = {  # word: (the class of its dominant sense, the class of its other sense)
    "bats": ("tools", "animals"),
    "pipes": ("tools", "instruments"),
    "bulbs": ("tools", "plants"),
    "jaguars": ("vehicles", "animals"),
    "planes": ("vehicles", "tools"),
    "ducks": ("animals", "clothes"),
    "beetles": ("animals", "vehicles"),
    "bucks": ("animals", "funds"),
    "bows": ("clothes", "instruments"),
    "stocks": ("funds", "plants"),
    "checks": ("funds", "clothes"),
    "mints": ("foods", "funds"),
    "squashes": ("plants", "foods"),
    "pods": ("plants", "vehicles"),
    "rolls": ("instruments", "foods"),
    "basses": ("instruments", "animals"),
}

NAMES = tuple("Ann Tom Eve Max Ida Ben Zoe Sam Lea Jon Mia Kim Ray Amy Leo Fay Gus Una Hal Joy".split())
FILLER = tuple(
    "read with care word by slowly twice before you answer think step take your time be careful the question is short "
    "look at every once more and then reply to it do not hurry check what it says first line follow ask only".split()
)

CLASS_OF = {thing: c.name for c in CLASSES.values() for thing in c.things}  # of unambiguous things
PLACES = {place: c.name for c in CLASSES.values() for place in (*c.strong, *c.weak)}
WEAK = frozenset(place for c in CLASSES.values() for place in c.weak)
CLASS_OF_VERB = {verb: c.name for c in CLASSES.values() for verb in c.verbs}
CLASS_OF_TERM = {term: c.name for c in CLASSES.values() for term in c.terms}
