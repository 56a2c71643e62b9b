"""Enlargement in two passes: a picture is painted, enlarged, and painted over from there.

The first pass settles what is where, at a size that the model knows; the second, at a low strength, has only to draw
the edges and the details that an enlarged picture lacks (the "hires fix" of the field).
"""

from typing import TYPE_CHECKING, Any

from PIL import Image

from diptych.core.checks import is_number
from diptych.image.start import fitted

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.image.model import ImageModel
    from diptych.image.record import ImageResult, ImageStep

STRENGTH = 0.3  # of the second pass
MOST = 8  # times as wide


def enlarge(
    model: "ImageModel",
    picture: Image.Image,
    factor: float = 2.0,
    *,
    strength: float = STRENGTH,
    mask: Image.Image | None = None,
    **settings: Any,
) -> "Generation[ImageStep, ImageResult]":
    """The second pass.

    Args:
        factor: how many times as wide and as high, to the nearest size that the model paints.
        mask: of the first pass, enlarged with the picture: what it kept is enlarged and not painted over.
        settings: of the first pass, prompt and seed among them; see `ImageModel.generate`.

    Raises:
        ValueError: a factor that does not enlarge, or what `generate` refuses.
    """
    check(factor)
    step = model.autoencoder.config.downsampling * model.multiple
    height, width = (max(step, round(side * factor / step) * step) for side in (picture.height, picture.width))
    changes = {"picture": picture, "mask": mask and fitted(mask.convert("RGB"), width, height)}
    return model.generate(**settings | changes | {"height": height, "width": width, "strength": strength})


def check(factor: float) -> None:
    if not is_number(factor) or not 1 < factor <= MOST:
        raise ValueError(f"enlarge must be a number above 1 and up to {MOST}, not {factor!r}")
