"""Fresh scenes: real ones of a seed that no recipe trains with, to measure on."""

from collections.abc import Iterator

from PIL import Image

from diptych.core.randomness import generator
from diptych.data import scenes

FRESH = 902_100  # a seed that no recipe here trains with


def fresh_scenes(count: int, seed: int = FRESH) -> Iterator[tuple[scenes.Scene, Image.Image]]:
    """Real scenes that no training saw, every second one a combination that no training saw either.

    Raises:
        ValueError: where the sprites are missing under DIPTYCH_DATA.
    """
    known, held_out = scenes.training_scenes(), scenes.held_out_scenes()
    for index in range(count):
        among = held_out if index % 2 else known
        scene = among[int(generator(seed=seed, sample=index, stream=9).integers(len(among)))]
        yield scene, scenes.compose(scene, seed, index)
