"""Pictures with captions to measure on: the scenes that validate the recipes here, or a folder of one's own."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from diptych.data import scenes
from diptych.data.rendered import SceneData
from diptych.data.trouble import Troubles
from diptych.image.photo import open_picture, to_pixels

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


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


def folder_pictures(folder: str | Path, size: int, troubles: Troubles) -> Captioned:
    """The pictures of a folder by name, the middle square of each at `size` pixels a side.

    A caption is the first line of the .txt file of the picture's name, "" where there is none.

    Raises:
        ValueError: no such folder, or no picture in it; `TooManyBroken` where too many cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'")
    found: list[Image.Image] = []
    captions = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS):
        beside = path.with_suffix(".txt")
        try:
            caption = beside.read_text(encoding="utf-8").strip().partition("\n")[0].strip() if beside.is_file() else ""
            found.append(ImageOps.fit(open_picture(path), (size, size), Image.Resampling.LANCZOS))
        except ValueError as error:
            troubles.skip(path.name, str(error))
            continue
        captions.append(caption)
        troubles.saw()
    if not found:
        raise ValueError(f"'{folder}' has no picture ({', '.join(ENDINGS)})")
    return Captioned(to_pixels(found), captions)
