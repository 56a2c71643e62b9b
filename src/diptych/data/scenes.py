"""Scenes: captioned pictures with a known truth, as many as wanted.

A scene is five words: an animal, what it wears, a place, a time of day and a style. A picture of it is composed from
a sprite, drawn things and a drawn background, different for each (seed, index) and always the same for one. Because
the truth is known, what a model painted can be counted; because one combination in twenty is held out, it can be asked
for what it never saw.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image

from diptych.core import randomness
from diptych.data import scenery, sprites

ANIMALS = ("cat", "dog", "fox", "rabbit", "panda", "bear", "lion", "tiger", "frog", "koala", "mouse", "pig")
WORN = ("nothing", "sunglasses", "glasses", "top hat", "crown", "scarf", "headphones")
PLACES = ("beach", "forest", "desert", "city", "snow", "sea", "meadow", "mountains")
TIMES = ("day", "sunset", "night")
STYLES = ("3d", "flat")
ATTRIBUTES = {"animal": ANIMALS, "worn": WORN, "place": PLACES, "time": TIMES, "style": STYLES}

WORN_PHRASE = {
    "sunglasses": "sunglasses",
    "glasses": "glasses",
    "top hat": "a top hat",
    "crown": "a crown",
    "scarf": "a scarf",
    "headphones": "headphones",
}
PLACE_PHRASE = {
    "beach": "on a beach",
    "forest": "in a forest",
    "desert": "in a desert",
    "city": "in a city",
    "snow": "in the snow",
    "sea": "on the sea",
    "meadow": "in a meadow",
    "mountains": "in the mountains",
}
TIME_PHRASE = {"day": "by day", "sunset": "at sunset", "night": "at night"}

PLACE_WORDING = {
    "beach": ("on a beach", "on the beach", "at the beach"),
    "forest": ("in a forest", "in the forest"),
    "desert": ("in a desert", "in the desert"),
    "city": ("in a city", "in the city"),
    "snow": ("in the snow", "in snow"),
    "sea": ("on the sea", "at sea", "in a boat on the sea"),
    "meadow": ("in a meadow", "in the meadow", "on a meadow"),
    "mountains": ("in the mountains", "in mountains"),
}
TIME_WORDING = {
    "day": ("by day", "in the daytime", "on a sunny day", "during the day"),
    "sunset": ("at sunset", "during sunset", "in the evening sun"),
    "night": ("at night", "by night", "under the stars"),
}
STYLE_WORDING = {"3d": ("3d",), "flat": ("flat",)}

# What a prompt may say, and what it means. Longest first where one phrase lies in another.
_MEANING: dict[str, dict[str, str]] = {
    "animal": {animal: rf"{animal}s?" if animal != "mouse" else "mouse|mice" for animal in ANIMALS},
    "worn": {
        "sunglasses": "sunglasses",
        "glasses": "(?:eye)?glasses",
        "top hat": "top hats?|hat",
        "crown": "crowns?",
        "scarf": "scarf|scarves",
        "headphones": "headphones?",
    },
    "place": {
        "beach": "beach",
        "forest": "forest|woods",
        "desert": "desert",
        "city": "city",
        "snow": "snow|snowy",
        "sea": "sea|ocean",
        "meadow": "meadow",
        "mountains": "mountains?",
    },
    "time": {"day": "day|daytime|daylight|sunny", "sunset": "sunset|evening|dusk", "night": "night|stars"},
    "style": {"3d": "3d", "flat": "flat"},
}
_PATTERNS = {
    part: [(value, re.compile(rf"\b(?:{pattern})\b")) for value, pattern in meanings.items()]
    for part, meanings in _MEANING.items()
}


@dataclass(frozen=True, order=True)
class Scene:
    """What is to be seen: one value of each of `ATTRIBUTES`; `ValueError` for any other."""

    animal: str
    worn: str
    place: str
    time: str
    style: str

    def __post_init__(self) -> None:
        for part, known in ATTRIBUTES.items():
            if getattr(self, part) not in known:
                raise ValueError(f"{part} must be one of {', '.join(known)}, not {getattr(self, part)!r}")

    def caption(self) -> str:
        """The scene in words, all of it: "a 3d fox wearing glasses on a beach at sunset"."""
        worn = "" if self.worn == "nothing" else f" wearing {WORN_PHRASE[self.worn]}"
        return f"a {self.style} {self.animal}{worn} {PLACE_PHRASE[self.place]} {TIME_PHRASE[self.time]}"


def _held_out(share: float = 0.05) -> frozenset[tuple[str, str, str, str]]:
    """One combination in twenty, drawn once and for all, and the cat of the first example."""
    combinations = list(product(ANIMALS, WORN, PLACES, TIMES))
    first = ("cat", "sunglasses", "beach", "sunset")
    others = [combination for combination in combinations if combination != first]
    order = np.random.Generator(np.random.Philox(key=2026)).permutation(len(others))
    return frozenset([first, *(others[k] for k in order[: round(share * len(combinations)) - 1])])


HELD_OUT = _held_out()


def all_scenes() -> list[Scene]:
    """Every scene, in the order of the attributes."""
    return [Scene(*parts) for parts in product(ANIMALS, WORN, PLACES, TIMES, STYLES)]


def is_held_out(scene: Scene) -> bool:
    """Whether no training picture may show this scene (in either style)."""
    return (scene.animal, scene.worn, scene.place, scene.time) in HELD_OUT


def training_scenes() -> list[Scene]:
    """The scenes that `sample_scene` draws from."""
    return list(_training_scenes())


@lru_cache(maxsize=1)
def _training_scenes() -> tuple[Scene, ...]:
    return tuple(scene for scene in all_scenes() if not is_held_out(scene))


def held_out_scenes() -> list[Scene]:
    """The scenes that are never trained on."""
    return [scene for scene in all_scenes() if is_held_out(scene)]


# ---- pictures --------------------------------------------------------------------------------------------------

_DRAWN, _LAID_OUT, _CHOSEN, _WORDED = 1, 2, 3, 4  # streams of random numbers


def compose(scene: Scene, seed: int, index: int, size: int = 128) -> Image.Image:
    """A picture of a scene.

    Args:
        seed, index: which of the many pictures of the scene; the same two give the same picture.
        size: pixels a side; drawn for 128.

    Returns:
        an RGB picture, `size` x `size`.

    Raises:
        ValueError: where the sprites are missing under DIPTYCH_DATA.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    canvas = scenery.background(scene.place, scene.time, scene.style, _generator(seed, index, _DRAWN))
    rng = _generator(seed, index, _LAID_OUT)
    side = float(rng.uniform(61, 74)) * (1.07 if scene.style == "3d" else 1.0)  # the 3D sprites have a margin
    x, y = 64 + float(rng.uniform(-10, 10)), (73 if scene.worn == "scarf" else 76) + float(rng.uniform(-6, 5))
    is_mirrored = rng.random() < 0.5
    sprites.figure(canvas, scene.animal, scene.worn, x, y, side, has_boat=scene.place == "sea")
    image = canvas.image.reduce(2) if size == 128 else canvas.image.resize((size, size), Image.Resampling.LANCZOS)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_mirrored else image


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    return randomness.generator(seed=seed, sample=index, stream=stream)


def scene_at(seed: int, index: int) -> Scene:
    """The scene of training example number `index`, drawn evenly from those that are not held out."""
    scenes = _training_scenes()
    return scenes[int(_generator(seed, index, _CHOSEN).integers(len(scenes)))]


def sample_scene(seed: int, index: int) -> tuple[Scene, Image.Image, str]:
    """The training example number `index`: a scene, its picture (128 x 128) and one of its captions."""
    scene = scene_at(seed, index)
    return scene, compose(scene, seed, index), random_caption(scene, _generator(seed, index, _WORDED))


# ---- words -----------------------------------------------------------------------------------------------------


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in one of many wordings. What is named is true; three in four name all but, perhaps, the style."""

    def one(choices: tuple[str, ...]) -> str:
        return choices[0] if rng.random() < 0.5 else choices[int(rng.integers(len(choices)))]

    names_all = rng.random() < 0.75
    has_style = rng.random() < 0.6
    has_animal = names_all or rng.random() < 0.9
    has_worn = scene.worn != "nothing" and has_animal and (names_all or rng.random() < 0.6)
    has_place = names_all or rng.random() < 0.6 or not has_animal
    has_time = names_all or rng.random() < 0.5
    style = one(STYLE_WORDING[scene.style]) if has_style else ""
    place = one(PLACE_WORDING[scene.place]) if has_place else ""
    time = one(TIME_WORDING[scene.time]) if has_time else ""
    if not has_animal:
        article = "" if scene.place in ("snow", "mountains") and not style else "the " if scene.place == "sea" else "a "
        if style and scene.place in ("snow", "mountains", "sea"):
            style, article = "", "" if scene.place != "sea" else "the "
        return " ".join(f"{article}{style} {scene.place} {time}".split())
    article = "the" if rng.random() < 0.08 else "a"
    who = " ".join(f"{article} {style} {scene.animal}".split())
    worn = ""
    if has_worn:
        verb = ("wearing", "with", "in")[int(rng.choice(3, p=[0.6, 0.34, 0.06]))]
        worn = f"{verb} {WORN_PHRASE[scene.worn]}"
    order = rng.random()
    if time and order < 0.15:
        parts = [f"{time},", who, *([worn, place] if rng.random() < 0.5 else [place, worn])]
    elif place and order < 0.25:
        parts = [f"{place}{'' if time else ','}", f"{time}," if time else "", who, worn]
    elif order < 0.40:
        parts = [who, place, worn, time]
    else:
        parts = [who, worn, place, time]
    return " ".join(part for part in parts if part)


def parse(prompt: str) -> dict[str, str]:
    """The attributes that a prompt names: {"animal": "cat", "time": "night"}; "nothing" is never named.

    Where a prompt names two values of one attribute, the one named first counts.
    """
    words = prompt.lower()
    named: dict[str, str] = {}
    for part, patterns in _PATTERNS.items():
        found = [(match.start(), value) for value, pattern in patterns if (match := pattern.search(words))]
        if found:
            named[part] = min(found)[1]
    return named
