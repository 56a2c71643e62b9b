"""Outpainting: a picture with room around it, and the mask that opens the room. The rest is inpainting."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from diptych.core.checks import is_whole
from diptych.core.spelling import unknown
from diptych.image.photo import upright_on
from diptych.image.start import check_alike, fitted, fitting_size

SIDES = ("left", "top", "right", "bottom")
MOST = 4096  # pixels at one side


def widened(
    picture: Image.Image, margins: Mapping[str, int], *, area: int, step: int, mask: Image.Image | None = None
) -> tuple[Image.Image, Image.Image]:
    """The picture in the middle of a larger one, and the mask of what is new.

    What is new holds the picture's own mirror image, which nobody sees: it is painted over from static. It is there for
    the autoencoder, which looks a few pixels past the edge.

    Args:
        margins: pixels to add at `SIDES`, multiples of `step`; what is not named gets none.
        area, step: pixels that the model paints, and what sides must be multiples of; see `start.fitting_size`.
        mask: of the picture, what is to be painted in it besides.

    Raises:
        ValueError: a side that there is not, or a margin that the model cannot paint.
    """
    for side, pixels in margins.items():
        if side not in SIDES:
            raise unknown("side", side, SIDES)
        if not is_whole(pixels) or not 0 <= pixels <= MOST or pixels % step:
            raise ValueError(f"outpaint {side} must be a multiple of {step} from 0 to {MOST}, not {pixels!r}")
    left, top, right, bottom = (margins.get(side, 0) for side in SIDES)
    if not left + top + right + bottom:
        raise ValueError("outpaint adds nothing: name a side, like left=32")
    upright = upright_on(picture, "white")
    height, width = fitting_size(upright.size, area, step)
    inside = np.asarray(fitted(upright, width, height))
    wide = np.pad(inside, ((top, bottom), (left, right), (0, 0)), mode="symmetric")
    inner = Image.new("L", (width, height), 0)
    if mask is not None:
        over = upright_on(mask, "black")
        check_alike(over, upright)
        inner = fitted(over, width, height).convert("L")
    return Image.fromarray(wide), ImageOps.expand(inner, (left, top, right, bottom), fill=255)
