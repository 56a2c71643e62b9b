"""Aspect-ratio buckets: a few picture sizes of about one area, so that a batch has one size and no picture loses much.

Each picture goes to the bucket whose aspect is nearest (in the logarithm, so that wide and tall count alike), is scaled
until it covers the bucket, and what stands out is cut off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diptych.data.pictures import PictureSet
from diptych.data.stored import stored_arrays
from diptych.data.trouble import Troubles

SIZES_AT_ONCE = 4096
CENTRE = (0.5, 0.5)


@dataclass(frozen=True, eq=False)
class Buckets:
    """`sizes[b]` is (width, height) of bucket b, `members[b]` the numbers of its pictures, ascending, int64; no bucket
    is empty."""

    sizes: tuple[tuple[int, int], ...]
    members: tuple[np.ndarray, ...]


def bucket_sizes(pixels: int, multiple: int, widest: float = 2.0) -> list[tuple[int, int]]:
    """The sizes (width, height) of at most `pixels` pixels, from tall to wide.

    Both sides are multiples of `multiple`, neither could be one multiple longer, and neither is more than `widest`
    times the other; the largest square is always among them. For every size its transpose is one, too.

    Raises:
        ValueError: where not even one square of `multiple` fits.
    """
    if multiple < 1 or pixels < multiple**2:
        raise ValueError(f"a bucket of {pixels} pixels must hold a square of its multiple, {multiple}")
    if not widest >= 1:
        raise ValueError(f"the widest aspect must be at least 1, not {widest}")

    def longest(side: int) -> int:
        return pixels // side // multiple * multiple

    square = math.isqrt(pixels) // multiple * multiple
    sizes = {(square, square)}
    for width in range(multiple, pixels // multiple + 1, multiple):
        height = longest(width)
        if height and longest(height) == width and max(width, height) <= widest * min(width, height):
            sizes.add((width, height))
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def nearest(sizes: Sequence[tuple[int, int]], wanted: np.ndarray) -> np.ndarray:
    """For each row (width, height) of `wanted`, the number of the size whose aspect is nearest; the first of equals."""
    aspects = np.log([width / height for width, height in sizes])
    own = np.log(wanted[:, 0] / wanted[:, 1])
    number: np.ndarray = np.abs(own[:, None] - aspects).argmin(axis=1)
    return number


def fill_buckets(
    pictures: PictureSet, sizes: Sequence[tuple[int, int]], *, least: int = 1, troubles: Troubles | None = None
) -> Buckets:
    """Each picture in its bucket. With one size there is nothing to decide, and no picture is looked at.

    Args:
        least: a bucket with fewer pictures (the batch size, in training) gives them to the nearest other one.
        troubles: counts the pictures whose size cannot be read, which are in no bucket.
    """
    if not sizes or not len(pictures):
        raise ValueError("there must be at least one bucket and one picture")
    if len(sizes) == 1:
        return Buckets((sizes[0],), (np.arange(len(pictures)),))
    troubles = troubles or Troubles()
    found = picture_sizes(pictures)
    whole = np.flatnonzero(found.all(axis=1))
    troubles.saw(len(whole))
    for index in np.flatnonzero(~found.all(axis=1)):
        troubles.skip(pictures.name(int(index)), _trouble(pictures, int(index)))
    if not len(whole):
        raise ValueError("no picture of the set can be read")
    chosen = _merged(nearest(sizes, found[whole]), sizes, least)
    kept = [bucket for bucket in range(len(sizes)) if (chosen == bucket).any()]
    return Buckets(tuple(sizes[bucket] for bucket in kept), tuple(whole[chosen == bucket] for bucket in kept))


def _merged(chosen: np.ndarray, sizes: Sequence[tuple[int, int]], least: int) -> np.ndarray:
    """The smallest bucket that is too small moves into its neighbour, until none is or one is left."""
    chosen = chosen.copy()
    while True:
        counts = np.bincount(chosen, minlength=len(sizes))
        filled = np.flatnonzero(counts)
        small = int(filled[counts[filled].argmin()])
        if counts[small] >= least or len(filled) == 1:
            return chosen
        others = [int(bucket) for bucket in filled if bucket != small]
        chosen[chosen == small] = others[int(nearest([sizes[b] for b in others], np.array([sizes[small]]))[0])]


def picture_sizes(pictures: PictureSet) -> np.ndarray:
    """(N, 2) int32: width and height of each picture, (0, 0) where it is broken; from the cache or read now."""

    def read(part: range) -> list[np.ndarray]:
        return [np.array([_size(pictures, index) for index in part], dtype=np.int32)]

    name = f"sizes-{pictures.key}"
    return stored_arrays(name, ("pixels",), len(pictures), SIZES_AT_ONCE, read)[0].array


def _size(pictures: PictureSet, index: int) -> tuple[int, int]:
    try:
        return pictures.size(index)
    except (ValueError, OSError):
        return 0, 0


def _trouble(pictures: PictureSet, index: int) -> str:
    try:
        pictures.size(index)
    except (ValueError, OSError) as error:
        return str(error)
    return "it could not be read when its size was noted"


def fit(pixels: np.ndarray, size: tuple[int, int], place: tuple[float, float] = CENTRE) -> np.ndarray:
    """A picture (H, W, 3) uint8 scaled (Lanczos) to cover `size` (width, height), what stands out cut off.

    Args:
        place: where the cut lies, across and down, each from 0 to 1.

    A picture that has the size already comes back as it is.
    """
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    scale = max(size[0] / width, size[1] / height)
    across, down = min(width, size[0] / scale), min(height, size[1] / scale)
    left, top = (width - across) * place[0], (height - down) * place[1]
    box = (left, top, min(width, left + across), min(height, top + down))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=box))
