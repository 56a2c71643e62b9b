"""A picture to begin from, in a size that the model paints, and as its latent; with a mask, part of it stays."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.image.photo import to_tensor

if TYPE_CHECKING:
    from diptych.image.model import ImageModel

MOST_AREA = 2.5  # times the model's own, up to which a picture keeps its size


@dataclass(frozen=True)
class Start:
    """Args:
    height, width: pixels of what will be painted; None is the model's own.
    latent: (1, C, h, w); pixels: (1, 3, H, W), float32, -1..1; mask: (1, 1, H, W), 1 where it is painted anew.
    """

    height: int | None
    width: int | None
    latent: Tensor | None = None
    pixels: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(
        cls,
        picture: Image.Image | None,
        mask: Image.Image | None,
        height: int | None,
        width: int | None,
        model: "ImageModel",
    ) -> "Start":
        """Raises: ValueError for a mask without a picture, or one that leaves nothing to paint."""
        if picture is None:
            if mask is not None:
                raise ValueError("a mask needs a picture that it lies over")
            return cls(height, width)
        step = model.autoencoder.config.downsampling * model.multiple
        own = fitting_size(picture.size, model.height * model.width, step)
        height, width = height or own[0], width or own[1]
        if height % step or width % step:
            raise ValueError(f"height and width must be multiples of {step}, not {height} and {width}")
        pixels = to_tensor(resized(picture.convert("RGB"), width, height))[None]
        area = None if mask is None else mask_of(resized(mask, width, height))
        with torch.inference_mode():
            device = next(model.autoencoder.parameters()).device
            latent = model.autoencoder.encode(pixels.to(device)).cpu()
        return cls(height, width, latent, pixels, area)


def fitting_size(size: tuple[int, int], area: int, step: int) -> tuple[int, int]:
    """(height, width) for a picture of `size` (width, height): multiples of `step`, its aspect kept. It is shrunk or
    enlarged to `area` where it is larger than `MOST_AREA` of that or smaller than one part in `MOST_AREA`."""
    width, height = size
    share = width * height / area
    factor = 1.0 if 1 / MOST_AREA <= share <= MOST_AREA else 1 / math.sqrt(share)
    return max(step, round(height * factor / step) * step), max(step, round(width * factor / step) * step)


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    same = picture.size == (width, height)
    return picture if same else picture.resize((width, height), Image.Resampling.LANCZOS)


def mask_of(picture: Image.Image) -> Tensor:
    """(1, 1, H, W), 0..1: white is 1, transparent is 0. Raises: ValueError for one that is black all over."""
    grey = picture.convert("RGBA")
    backed = Image.alpha_composite(Image.new("RGBA", grey.size, "black"), grey).convert("L")
    mask = torch.from_numpy(np.asarray(backed, dtype=np.float32) / 255)[None, None]
    if not bool(mask.any()):
        raise ValueError("the mask is black all over: it leaves nothing to paint; white is painted, black stays")
    return mask
