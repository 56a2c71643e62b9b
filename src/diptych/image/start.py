"""A picture to begin from, in a size that the model paints; with a mask, part of it stays."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from diptych.core.checks import is_whole
from diptych.image.photo import to_tensor, upright_on

if TYPE_CHECKING:
    from diptych.image.model import ImageModel

MOST_AREA = 2.5  # times the model's own, up to which a picture keeps its size
STRENGTH = 0.6  # of painting over a picture, where nothing is said
ALIKE = 1.05  # ratio of two aspects, up to which a mask belongs to a picture


def usual_strength(*, has_mask: bool) -> float:
    """What a mask opens is painted from static, a whole picture is painted over."""
    return 1.0 if has_mask else STRENGTH


@dataclass(frozen=True)
class Start:
    """Args:
    height, width: pixels of what will be painted; None is the model's own.
    pixels: (1, 3, H, W), float32, -1..1; mask: (1, 1, H, W), 1 where it is painted anew.
    """

    height: int | None
    width: int | None
    pixels: Tensor | None = None
    mask: Tensor | None = None

    @property
    def strength(self) -> float:
        """Where nothing is said; all of it where there is no picture."""
        return 1.0 if self.pixels is None else usual_strength(has_mask=self.mask is not None)

    @classmethod
    def of(
        cls,
        picture: Image.Image | None,
        mask: Image.Image | None,
        height: int | None,
        width: int | None,
        model: "ImageModel",
    ) -> "Start":
        """A picture keeps its size where the model can paint that, see `fitting_size`; it is cut at two sides where
        `height` and `width` want another shape.

        Raises:
            ValueError: a mask without a picture, of another shape, or one that leaves nothing to paint.
        """
        if picture is None:
            if mask is not None:
                raise ValueError("a mask needs a picture that it lies over")
            return cls(height, width)
        upright = upright_on(picture, "white")
        for name, side in (("height", height), ("width", width)):
            if side is not None and (not is_whole(side) or side < 1):
                raise ValueError(f"{name} must be a whole number of pixels, not {side!r}")
        step = model.autoencoder.config.downsampling * model.multiple
        height, width = fitting_size(upright.size, model.height * model.width, step, height, width)
        area = None
        if mask is not None:
            over = upright_on(mask, "black")
            check_alike(over, upright)
            area = mask_of(fitted(over, width, height))
        return cls(height, width, to_tensor(fitted(upright, width, height))[None], area)


def fitting_size(
    size: tuple[int, int], area: int, step: int, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(height, width) for a picture of `size` (width, height): its own, in the nearest multiples of `step`.

    It is shrunk or enlarged to `area` where it is larger than `MOST_AREA` of that or smaller than one part in
    `MOST_AREA`. Where one side is said the other follows from the picture's shape; where both are, they are taken.
    """
    across, down = size
    share = across * down / area
    factor = 1.0 if 1 / MOST_AREA <= share <= MOST_AREA else 1 / math.sqrt(share)
    if height is not None or width is not None:
        factor = height / down if height is not None else (width or 0) / across
    return height or _nearest(down * factor, step), width or _nearest(across * factor, step)


def _nearest(side: float, step: int) -> int:
    return max(step, round(side / step) * step)


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in this size: the middle of it where that has another shape; itself where it has this size."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def check_alike(mask: Image.Image, picture: Image.Image) -> None:
    """Raises: ValueError for a mask of another shape than its picture."""
    ratio = mask.width * picture.height / (mask.height * picture.width)
    if not 1 / ALIKE <= ratio <= ALIKE:
        sizes = f"{mask.width} x {mask.height} pixels, the picture {picture.width} x {picture.height}"
        raise ValueError(f"the mask has {sizes}: they must have the same shape")


def mask_of(picture: Image.Image) -> Tensor:
    """(1, 1, H, W), 0..1: white is 1. Raises: ValueError for one that is black all over."""
    mask = torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.float32) / 255)[None, None]
    if not bool(mask.any()):
        raise ValueError("the mask is black all over: it leaves nothing to paint; white is painted, black stays")
    return mask
