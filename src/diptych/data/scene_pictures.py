"""Composed scenes as a set of pictures like any other, with a fresh wording every time that one is seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.randomness import generator
from diptych.data import scenes
from diptych.data.rendered import render
from diptych.data.stored import MappedArray

WORDS = 4  # stream of randomness
BLANK = 129  # pictures, one of them to hold out
AT_ONCE = 8  # pictures: what is made of them on the way stays in the processor's cache


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


def averaged(pictures: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, size, size) float32 in -1..1."""
    return F.adaptive_avg_pool2d(pictures.float().div_(127.5).sub_(1), size)


def some_averaged(pixels: MappedArray, rows: Sequence[int], size: int) -> Tensor:
    """The same of pictures that lie apart, few at a time."""
    made = torch.empty(len(rows), 3, size, size)
    for first in range(0, len(rows), AT_ONCE):
        few = slice(first, first + AT_ONCE)
        made[few] = averaged(torch.from_numpy(pixels.some(rows[few])), size)
    return made


def scene_pictures(seed: int, count: int, size: int = 128) -> ScenePictures:
    """The scenes 0..count-1 of a seed, from the cache or drawn now.

    Raises:
        ValueError: where the sprites are missing under DIPTYCH_DATA.
    """
    rendered = render(seed, count, size)
    assert isinstance(rendered.pictures, np.memmap)
    return ScenePictures(seed, MappedArray(Path(str(rendered.pictures.filename))), rendered.key)


def blank_pictures(seed: int, size: int, folder: Path) -> ScenePictures:
    """Some scenes, all black, in a folder: they are read as others are, and nothing is drawn."""
    path = folder / "blank.npy"
    np.save(path, np.zeros((BLANK, 3, size, size), np.uint8), allow_pickle=False)
    return ScenePictures(seed, MappedArray(path), "blank")
