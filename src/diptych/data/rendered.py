"""Scenes composed once and kept: a training run reads pictures as fast as memory, not as fast as they are drawn.

The cache lies in the user's cache folder under a name made of what decides its content (seed, count, size and the text
of the code that draws), so a changed drawing never meets old pictures.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from diptych.core.files import atomic_file
from diptych.core.randomness import check_seed
from diptych.data import scenes

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class SceneData:
    """[data] of a recipe that trains on scenes: `scenes` of them are drawn with `seed`, `size` pixels a side; the last
    `held_out` validate.
    """

    scenes: int = 24000
    held_out: int = 256
    seed: int = 11
    size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.held_out < self.scenes:
            raise ValueError(f"data.held_out must be from 1 to below data.scenes ({self.scenes}), not {self.held_out}")
        check_seed(self.seed)


@dataclass(frozen=True)
class RenderedScenes:
    """`pictures` is (N, 3, size, size) uint8, mapped from disk; `truth[i]` is the scene of picture i."""

    pictures: np.ndarray
    truth: list[scenes.Scene]
    key: str


def _draw(task: tuple[int, int, int, int]) -> np.ndarray:
    seed, start, stop, size = task
    pictures = [scenes.compose(scenes.scene_at(seed, index), seed, index, size) for index in range(start, stop)]
    return np.stack([np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1) for picture in pictures])


def _key(seed: int, count: int, size: int) -> str:
    digest = hashlib.sha256(f"{seed} {count} {size}".encode())
    for name in ("scenes", "scenery", "sprites", "canvas"):
        digest.update(Path(scenes.__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def cache_directory() -> Path:
    folder = Path(os.environ.get("DIPTYCH_CACHE") or user_cache_path("diptych"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _drawn(tasks: list[tuple[int, int, int, int]]) -> Iterator[np.ndarray]:
    """The pictures of each task in turn. Fresh processes, not forks: torch may have threads by now."""
    processes = min(len(tasks), os.cpu_count() or 1)
    if processes == 1:
        yield from map(_draw, tasks)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_draw, tasks)


def render(seed: int, count: int, size: int = 128) -> RenderedScenes:
    """The training scenes 0..count-1 of a seed, from the cache or drawn now by all processors.

    Raises:
        ValueError: where the sprites are missing under DIPTYCH_DATA.
    """
    key = _key(seed, count, size)
    path = cache_directory() / f"scenes-{key}.npy"
    if not path.is_file():
        tasks = [(seed, start, min(start + CHUNK, count), size) for start in range(0, count, CHUNK)]
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
            np.lib.format.write_array_header_1_0(file, header)
            for pictures in _drawn(tasks):
                file.write(pictures.tobytes())
    pictures = np.load(path, mmap_mode="r", allow_pickle=False)
    return RenderedScenes(pictures, [scenes.scene_at(seed, index) for index in range(count)], key)
