"""The pictures that a recipe trains on and those that validate it: composed scenes, or whatever a path holds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.data.buckets import Buckets, bucket_sizes, fill_buckets
from diptych.data.captioned import Captioned, captioned
from diptych.data.licences import SCENES
from diptych.data.pictures import PictureSet, Subset, hold_out, open_pictures
from diptych.data.rendered import SceneData
from diptych.data.scene_pictures import scene_pictures
from diptych.data.scenes import Scene
from diptych.data.trouble import Troubles


@dataclass(frozen=True, kw_only=True)
class PictureData(SceneData):
    """[data] of a recipe that trains on pictures.

    Args:
        pictures: a path, as `open_pictures` reads it (under DIPTYCH_DATA, too); "" composes `scenes` of them.
        caption: key or column of the captions, where a path's captions have several.
        buckets: whether pictures keep about their aspect (a batch has one size of about `size` x `size` pixels);
            without, each is cut to the square.
    """

    pictures: str = ""
    caption: str = ""
    buckets: bool = False


@dataclass(frozen=True)
class TrainingPictures:
    """Args:
    held_out: what validates, at `size` x `size` pixels.
    truth: of the held-out scenes; None for pictures from a path.
    about: where all of them come from, for the card; sources: names in `licences`, or the path.
    """

    train: PictureSet
    buckets: Buckets
    held_out: Captioned
    truth: list[Scene] | None
    about: str
    sources: tuple[str, ...]


def training_pictures(data: PictureData, *, multiple: int, batch: int, troubles: Troubles) -> TrainingPictures:
    """The pictures of a recipe's [data].

    Args:
        multiple: of pixels that both sides must be.
        batch: a bucket with fewer pictures than this is merged into another.

    Raises:
        ValueError: nothing there, or fewer pictures than are held out and one batch.
        TooManyBroken: as `troubles` allows.
    """
    square = (data.size, data.size)
    if not data.pictures:
        drawn = scene_pictures(data.seed, data.scenes, data.size)
        train = Subset(drawn, np.arange(data.scenes - data.held_out))
        truth = [drawn.scene(index) for index in range(len(train), len(drawn))]
        held_out = Captioned(drawn.pixels.read(len(train), len(drawn)), [scene.caption() for scene in truth])
        about = (
            f"{len(train):,} scenes composed by `diptych.data.scenes` (seed {data.seed}), none of them a held-out "
            f"combination; {data.held_out:,} more of the same kind validate."
        )
        return TrainingPictures(train, fill_buckets(train, [square]), held_out, truth, about, SCENES)
    found = open_pictures(data.pictures, caption=data.caption or None, troubles=troubles)
    train, kept = hold_out(found, data.held_out, data.seed)
    if len(train) < batch:
        raise ValueError(f"'{data.pictures}' has {len(found)} pictures: fewer than data.held_out and one batch")
    sizes = bucket_sizes(data.size**2, multiple) if data.buckets else [square]
    buckets = fill_buckets(train, sizes, least=batch, troubles=troubles)
    held_out = captioned(kept, data.size, troubles)
    about = f"{len(train):,} pictures of `{Path(data.pictures).name}`; {len(held_out.captions):,} more validate."
    return TrainingPictures(train, buckets, held_out, None, about, (data.pictures,))
