"""Pictures with captions to measure on: the scenes that validate the recipes here, or a set of one's own."""

from typing import NamedTuple

import numpy as np

from diptych.data import scenes
from diptych.data.buckets import fit
from diptych.data.pictures import PictureSet
from diptych.data.rendered import SceneData
from diptych.data.trouble import Troubles
from diptych.image.photo import to_pixels


class Captioned(NamedTuple):
    """Pictures (N, 3, size, size), uint8, and a caption for each."""

    pictures: np.ndarray
    captions: list[str]


def validation_scenes(data: SceneData) -> tuple[Captioned, list[scenes.Scene]]:
    """The scenes that a recipe with this [data] validates on, drawn anew, with their truth.

    Raises:
        ValueError: where the sprites are missing under DIPTYCH_DATA.
    """
    indices = range(data.scenes - data.held_out, data.scenes)
    truth = [scenes.scene_at(data.seed, index) for index in indices]
    drawn = [scenes.compose(scene, data.seed, index, data.size) for scene, index in zip(truth, indices, strict=True)]
    return Captioned(to_pixels(drawn), [scene.caption() for scene in truth]), truth


def captioned(pictures: PictureSet, size: int, troubles: Troubles) -> Captioned:
    """A set's pictures, the middle square of each at `size` pixels a side, each with the caption
    of its first sight.

    Raises:
        ValueError: none of them can be read.
        TooManyBroken: as `troubles` allows.
    """
    found, captions = [], []
    for index in range(len(pictures)):
        try:
            pixels, caption = fit(pictures.read(index), (size, size)), pictures.caption(index)
        except (ValueError, OSError) as error:
            troubles.skip(pictures.name(index), str(error))
            continue
        found.append(pixels.transpose(2, 0, 1))
        captions.append(caption)
        troubles.saw()
    if not found:
        raise ValueError("none of the pictures can be read")
    return Captioned(np.stack(found), captions)
