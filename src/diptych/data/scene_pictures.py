"""Composed scenes as a set of pictures like any other, with a fresh wording every time that one is seen."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.randomness import generator
from diptych.data import scenes
from diptych.data.rendered import render
from diptych.data.stored import MappedArray

WORDS = 4  # stream of randomness


@dataclass(frozen=True, eq=False)
class ScenePictures:
    """Scenes 0, 1, ... of a seed; `pixels` is (N, 3, size, size) uint8."""

    seed: int
    pixels: MappedArray
    key: str

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return f"scene {index} of seed {self.seed}"

    def size(self, index: int) -> tuple[int, int]:
        side: int = self.pixels.array.shape[-1]
        return side, side

    def read(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.pixels.read(index, index + 1)[0].transpose(1, 2, 0))

    def scene(self, index: int) -> scenes.Scene:
        """What the picture shows."""
        return scenes.scene_at(self.seed, index)

    def caption(self, index: int, sight: int = 0) -> str:
        return scenes.random_caption(
            self.scene(index), generator(seed=self.seed, sample=index, step=sight, stream=WORDS)
        )


def scene_pictures(seed: int, count: int, size: int = 128) -> ScenePictures:
    """The scenes 0..count-1 of a seed, from the cache or drawn now.

    Raises:
        ValueError: where the sprites are missing under DIPTYCH_DATA.
    """
    rendered = render(seed, count, size)
    assert isinstance(rendered.pictures, np.memmap)
    return ScenePictures(seed, MappedArray(Path(str(rendered.pictures.filename))), rendered.key)
