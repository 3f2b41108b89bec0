"""What the demo encoder can be told: captions, and of which things of the demo's world each of them is true.

A *thing* is a kind with a colour (``mug``, ``red``), a part of the room, or a hand. A picture is described by
the share of its pixels that each thing takes; a caption is then true of the picture to the share of the things that it
is true of. Pictures come with things, never with captions, so that every pair has a known truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

IMAGE_NEGATIVES = ("object", "things", "stuff", "hands")
VIDEO_NEGATIVES = ("general task", "undistic movement", "unclear action", "background")

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "blue": ("blue",),
    "green": ("green",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
    "black": ("black", "dark"),
    "brown": ("brown",),
    "grey": ("grey", "gray", "silver"),
    "turquoise": ("turquoise", "teal"),
}
"""What a colour is called."""

OBJECTS: dict[str, tuple[str, ...]] = {
    "mug": ("mug", "cup", "coffee mug", "tea cup", "coffee cup"),
    "bowl": ("bowl", "dish", "mixing bowl", "salad bowl"),
    "colander": ("colander", "strainer", "sieve"),
    "plate": ("plate", "dinner plate", "dish", "saucer"),
    "pan": ("pan", "frying pan", "skillet"),
    "pot": ("pot", "saucepan", "cooking pot", "stockpot"),
    "bottle": ("bottle", "oil bottle", "wine bottle", "flask"),
    "knife": ("knife", "kitchen knife", "chef's knife", "blade"),
    "cutting board": ("cutting board", "chopping board", "wooden board", "board"),
    "carrot": ("carrot",),
    "banana": ("banana",),
    "apple": ("apple",),
    "lemon": ("lemon",),
    "sponge": ("sponge", "dish sponge", "scouring pad"),
    "cereal box": ("cereal box", "box of cereal", "cereal", "packet", "carton of cereal"),
    "milk carton": ("milk carton", "milk", "carton of milk", "box of milk"),
    "jar": ("jar", "jam jar", "honey jar"),
    "can": ("can", "tin", "tin can", "soup can"),
    "kettle": ("kettle", "water kettle"),
    "spoon": ("spoon", "wooden spoon", "ladle"),
    "glass": ("glass", "drinking glass", "tumbler"),
    "whisk": ("whisk", "egg beater"),
    "teapot": ("teapot", "tea pot"),
    "rolling pin": ("rolling pin", "dough roller"),
    "towel": ("towel", "dish towel", "tea towel", "cloth"),
}
"""Kinds that can be picked up, and their names."""

ROOM: dict[str, tuple[str, ...]] = {
    "floor": ("floor", "floor tiles", "ground"),
    "wall": ("wall", "kitchen wall"),
    "splashback": ("splashback", "wall tiles", "tiles"),
    "window": ("window", "window frame"),
    "counter": ("counter", "countertop", "worktop", "table", "work surface"),
    "sink": ("sink", "basin", "kitchen sink"),
    "tap": ("tap", "faucet", "water tap"),
    "hob": ("hob", "stove", "cooker", "stovetop", "cooktop"),
    "cupboard": ("cupboard", "cabinet", "wall cupboard", "cupboard door", "kitchen cabinet"),
    "drawers": ("drawers", "drawer", "base cabinet"),
    "extractor hood": ("extractor hood", "cooker hood", "hood"),
    "fridge": ("fridge", "refrigerator", "freezer"),
    "picture": ("picture", "painting", "poster"),
    "shelf": ("shelf", "rack"),
    "ceiling": ("ceiling",),
    "oven": ("oven", "oven door", "baking oven"),
    "plant": ("plant", "pot plant", "herbs", "houseplant"),
    "rail": ("rail", "kitchen tools", "hanging utensils"),
}
"""Parts of the room, and their names."""

PERSON: tuple[str, ...] = ("hand", "hands", "arm", "arms", "sleeve", "fingers", "person")

GROUPS: dict[str, tuple[str, ...]] = {
    "fruit": ("banana", "apple", "lemon"),
    "vegetable": ("carrot",),
    "food": ("banana", "apple", "lemon", "carrot", "cereal box", "milk carton"),
    "cookware": ("pan", "pot"),
    "tableware": ("mug", "bowl", "plate", "glass", "teapot"),
    "crockery": ("mug", "bowl", "plate", "teapot"),
    "kitchen utensil": ("knife", "spoon", "whisk", "rolling pin", "colander"),
    "tool": ("knife", "spoon", "whisk", "rolling pin"),
    "cutlery": ("knife", "spoon"),
    "container": ("bottle", "jar", "can", "milk carton", "cereal box"),
    "vessel": ("mug", "bowl", "pot", "glass", "jar"),
    "drink": ("bottle", "milk carton"),
    "cardboard box": ("cereal box", "milk carton"),
    "something to drink from": ("mug", "glass"),
    "something to eat": ("banana", "apple", "lemon", "carrot"),
    "something sharp": ("knife",),
    "something round": ("plate", "apple", "lemon", "bowl", "pan", "pot", "colander"),
}
"""Words for several kinds at once."""

PLACES: dict[str, tuple[str, ...]] = {
    "cut": ("cutting board", "knife"),
    "wash": ("sink", "tap"),
    "cook": ("hob", "pan", "pot"),
    "open": ("cupboard", "drawers", "fridge"),
}
"""Where something can be done: by which parts of the room, and with which things at work there."""

WORK: dict[str, tuple[str, ...]] = {
    "cut": (
        "cut the {vegetable}", "chop the {vegetable}", "slice the {vegetable}", "cut", "chop",
        "prepare the {vegetable}", "use the cutting board", "cut on the cutting board", "chop on the board",
    ),
    "wash": (
        "wash the {dish}", "rinse the {dish}", "clean the {dish}", "wash", "rinse", "wash up", "do the dishes",
        "wash in the sink", "fill the {vessel} with water", "turn on the tap", "open the tap", "drain the water",
        "wash the {vegetable}", "rinse the {vegetable}", "wash hands",
    ),
    "cook": (
        "cook", "cook the {food}", "fry the {food}", "heat the {cookware}", "boil the {food}",
        "cook with the {cookware}", "put the {cookware} on the hob", "put the {cookware} on the stove",
        "turn on the hob", "turn on the stove",
        "stir the {cookware}", "shake the {cookware}", "cook on the hob", "cook on the stove", "cook a meal",
        "use the hob", "use the stove",
    ),
    "open": ("put away the {dish}", "store the {dish}", "put things away"),
}  # fmt: skip
"""Phrases for work; the words in braces are any of `FILLINGS`."""

OPENED: dict[str, tuple[str, ...]] = {
    "cupboard": ("open the cupboard", "close the cupboard", "open the cabinet", "open the door", "close the cabinet"),
    "drawers": ("open the drawer", "close the drawer", "pull the drawer", "open the drawers"),
    "oven": ("open the oven", "close the oven", "bake", "bake in the oven"),
    "plant": ("water the plant", "water the plants"),
    "fridge": ("open the fridge", "close the fridge", "open the refrigerator"),
    "tap": ("turn on the tap", "open the tap", "turn the faucet", "close the tap"),
    "window": ("open the window", "close the window", "look out of the window"),
    "hob": ("turn on the hob", "turn on the stove", "turn off the hob", "light the stove"),
    "extractor hood": ("switch on the extractor hood", "turn on the hood"),
}
"""What is done to parts of the room."""

USES: dict[str, tuple[str, ...]] = {
    "mug": ("drink from the {}", "drink coffee", "drink tea", "fill the {}"),
    "glass": ("drink from the {}", "drink water", "fill the {}"),
    "bottle": ("pour from the {}", "pour the oil", "pour oil", "open the {}", "pour the wine"),
    "milk carton": ("pour the milk", "pour milk", "open the {}"),
    "cereal box": ("pour the cereal", "open the {}", "eat cereal"),
    "jar": ("open the {}", "close the {}"),
    "can": ("open the {}",),
    "knife": ("cut with the {}", "hold the {}", "slice with the {}"),
    "carrot": ("cut the {}", "peel the {}", "chop the {}", "slice the {}", "eat the {}"),
    "banana": ("cut the {}", "slice the {}", "peel the {}", "eat the {}"),
    "apple": ("cut the {}", "slice the {}", "eat the {}", "peel the {}"),
    "lemon": ("cut the {}", "slice the {}", "squeeze the {}"),
    "sponge": ("wipe with the {}", "squeeze the {}", "scrub with the {}"),
    "towel": ("dry with the {}", "dry hands", "wipe with the {}"),
    "colander": ("drain with the {}", "drain the pasta"),
    "plate": ("put food on the {}", "serve on the {}", "eat from the {}"),
    "bowl": ("mix in the {}", "eat from the {}", "fill the {}"),
    "pan": ("cook with the {}", "shake the {}", "fry in the {}", "stir the {}"),
    "pot": ("boil in the {}", "stir the {}", "cook in the {}"),
    "kettle": ("boil water", "pour from the {}", "fill the {}"),
    "teapot": ("pour tea", "pour the tea", "pour from the {}"),
    "spoon": ("stir with the {}", "eat with the {}"),
    "whisk": ("whisk the eggs", "beat the eggs", "mix with the {}"),
    "rolling pin": ("roll the dough", "roll out the dough"),
}
"""What is done with objects; their names stand for the braces."""

TAKE = (
    "take the {}", "pick up the {}", "grab the {}", "get the {}", "lift the {}", "hold the {}", "put down the {}",
    "move the {}", "place the {}", "carry the {}", "reach for the {}",
)  # fmt: skip

FILLINGS: dict[str, tuple[str, ...]] = {
    "vegetable": ("vegetables", "vegetable", "food", "onion", "tomato", "fruit", "ingredients", "bread", "carrot",
                  "banana", "apple", "lemon"),
    "dish": ("dishes", "plates", "cups", "glasses", "pots", "cutlery", "crockery", "colander", "mug", "bowl", "plate",
             "pan", "pot", "glass", "spoon", "knife"),
    "vessel": ("pot", "kettle", "glass", "bowl"),
    "food": ("food", "dinner", "eggs", "pasta", "meat", "soup", "vegetables", "rice"),
    "cookware": ("pan", "pot", "frying pan", "saucepan"),
}  # fmt: skip

_THIRD_PERSON = {"wash": "washes", "do": "does", "fry": "fries", "dry": "dries", "switch": "switches", "mix": "mixes",
                 "reach": "reaches", "get": "gets", "carry": "carries", "squeeze": "squeezes"}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """What a pixel may show."""

    kind: str
    """Of `OBJECTS` or `ROOM`, or "hand", or "arm"."""
    colour: str | None = None
    """Of `COLOURS`; None where nobody says."""


def things() -> tuple[Thing, ...]:
    """All that there are."""
    objects = [Thing(kind, colour) for kind in OBJECTS for colour in (*COLOURS, None)]
    return (*objects, *(Thing(kind) for kind in ROOM), Thing("hand"), Thing("arm"))


@dataclass(frozen=True)
class Captions:
    """Captions and their truth."""

    texts: tuple[str, ...]
    """Each once."""
    true: Bool[np.ndarray, "things texts"]
    """Of which things each is true."""
    unknown: Bool[np.ndarray, "things texts"]
    """For which things nobody knows (a colour that nobody says)."""
    groups: Sequence[str]
    """What each is about: "kind", "colour", "both", "group", "room", "person", "take", "use", "work"."""


def image_captions(everything: Sequence[Thing]) -> Captions:
    """What is it?"""
    rows: list[tuple[str, str, Iterable[str], str | None]] = []
    for kind, names in OBJECTS.items():
        for name in names:
            rows += [("kind", text, (kind,), None) for text in _articles(name)]
            for colour, words in COLOURS.items():
                rows += [("both", text, (kind,), colour) for word in words for text in _articles(f"{word} {name}")]
    for colour, words in COLOURS.items():
        for word in words:
            for text in ("{} thing", "something {}", "a {} object", "{}", "the {} one", "{} colour"):
                rows.append(("colour", text.format(word), tuple(OBJECTS), colour))
    for name, kinds in GROUPS.items():
        rows += [("group", text, kinds, None) for text in _articles(name)]
    for kind, names in ROOM.items():
        rows += [("room", text, (kind,), None) for name in names for text in _articles(name)]
    rows += [("person", text, ("hand", "arm"), None) for name in PERSON for text in _articles(name)]
    return _tabulate(everything, rows)


def video_captions(everything: Sequence[Thing]) -> Captions:
    """What is, or can be, done here?"""
    rows: list[tuple[str, str, Iterable[str], str | None]] = []
    for kind, names in OBJECTS.items():
        for name, phrase in itertools.product(names, TAKE):
            rows += [("take", text, (kind,), None) for text in _persons(phrase.format(name))]
        for name, phrase in itertools.product(names, USES.get(kind, ())):
            rows += [("use", text, (kind,), None) for text in _persons(phrase.format(name))]
        for (colour, words), phrase in itertools.product(COLOURS.items(), TAKE[:4]):
            rows += [("take", phrase.format(f"{words[0]} {names[0]}"), (kind,), colour)]
    for kind, phrases in OPENED.items():
        rows += [("use", text, (kind,), None) for phrase in phrases for text in _persons(phrase)]
    for work, phrases in WORK.items():
        for phrase in phrases:
            word = phrase.partition("{")[2].partition("}")[0]
            for filling in FILLINGS.get(word, ("",)):
                filled = phrase.format(**{word: filling}) if word else phrase
                rows += [("work", text, PLACES[work], None) for text in _persons(filled)]
    return _tabulate(everything, rows)


def _articles(name: str) -> tuple[str, ...]:
    return name, f"a {name}", f"the {name}", f"a photo of a {name}"


def _persons(phrase: str) -> tuple[str, ...]:
    """A phrase as a person might say it, and as narrations of egocentric video do."""
    verb, _, rest = phrase.partition(" ")
    third = f"{_THIRD_PERSON.get(verb, verb + 's')} {rest}".strip()
    return phrase, f"#C C {third}", third, f"where can I {phrase}"


def _tabulate(everything: Sequence[Thing], rows: Iterable[tuple[str, str, Iterable[str], str | None]]) -> Captions:
    texts: dict[str, int] = {}
    groups, true, unknown = [], [], []
    kinds = np.array([thing.kind for thing in everything])
    colours = np.array([thing.colour or "" for thing in everything])
    movable = np.isin(kinds, list(OBJECTS))
    loose = movable & (colours == "")
    for group, text, wanted, colour in rows:
        right = np.isin(kinds, list(wanted))
        holds = right if colour is None else right & (colours == colour)
        open_ = np.zeros_like(right) if colour is None else right & loose
        if group == "colour":
            open_ = ~movable | loose
        if text in texts:
            true[texts[text]] |= holds
            unknown[texts[text]] |= open_
            continue
        texts[text] = len(texts)
        groups.append(group)
        true.append(holds)
        unknown.append(open_)
    columns = np.stack(true, axis=1)
    return Captions(tuple(texts), columns, np.stack(unknown, axis=1) & ~columns, groups)
