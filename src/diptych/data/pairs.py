"""Batches of scenes with captions, for learning which belong together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.core.randomness import generator
from diptych.core.tokenizer import Tokenizer
from diptych.data import scenes
from diptych.data.rendered import SceneData
from diptych.data.scene_pictures import ScenePictures, some_averaged
from diptych.data.trouble import Trouble
from diptych.image.encoders import encode_prompts

CHOICE, WORDS, MIRRORED = 1, 4, 6  # streams of randomness


class PairBatch(NamedTuple):
    """pictures (B, 3, size, size) in -1..1, float32; tokens and mask of their captions (B, S)."""

    pictures: Tensor
    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class ScenePairs:
    """Training scenes in an order of its own for each epoch, in a fresh wording each time one is seen.

    Args:
        scenes: all of them, those held out at the end.
        tokenizer, length: of the captions.
        size: pixels a side that pictures are averaged to.
        seed: of the order.
        batch_size: rows of a whole step.
    """

    data: SceneData
    scenes: ScenePictures
    tokenizer: Tokenizer
    length: int
    size: int
    seed: int
    batch_size: int

    def batch(self, step: int, rows: range) -> PairBatch:
        total = self.data.scenes - self.data.held_out
        places = [step * self.batch_size + row for row in rows]
        chosen = [(int(_order(total, self.seed, place // total)[place % total]), place // total) for place in places]
        pictures = some_averaged(self.scenes.pixels, [index for index, _ in chosen], self.size)
        is_mirrored = generator(seed=self.seed, step=step, stream=MIRRORED).random(self.batch_size)[list(rows)] < 0.5
        pictures = torch.where(torch.from_numpy(is_mirrored)[:, None, None, None], pictures.flip(-1), pictures)
        captions = [caption(self.data, self.scenes.scene(index), index, epoch) for index, epoch in chosen]
        return PairBatch(pictures, *encode_prompts(self.tokenizer, captions, self.length))

    def troubles(self) -> Sequence[Trouble]:
        """None: scenes are drawn here."""
        return ()


@lru_cache(maxsize=2)
def _order(total: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed=seed, step=epoch, stream=CHOICE).permutation(total)


def caption(data: SceneData, scene: scenes.Scene, index: int, epoch: int) -> str:
    """The words for scene number `index` in an epoch."""
    return scenes.random_caption(scene, generator(seed=data.seed, sample=index, step=epoch, stream=WORDS))


Values = dict[str, list[str]]  # attribute -> its value in each picture
Prompts = dict[str, dict[str, list[str]]]  # attribute -> value -> captions that name it


def scene_questions(truth: Sequence[scenes.Scene]) -> tuple[Values, Prompts]:
    """What a pairing that was never trained to classify is asked of scenes: by attribute, the words for each value,
    and which is true.

    Words for what is not the animal name an animal, too, each of them once. Wearing nothing cannot be said in so many
    words, so it is left out.
    """
    named = {
        "worn": {worn: f"a {{}} wearing {phrase}" for worn, phrase in scenes.WORN_PHRASE.items()},
        "place": {place: f"a {{}} {phrase}" for place, phrase in scenes.PLACE_PHRASE.items()},
        "time": {time: f"a {{}} {phrase}" for time, phrase in scenes.TIME_PHRASE.items()},
        "style": {style: f"a {style} {{}}" for style in scenes.STYLES},
    }
    prompts = {"animal": {animal: [f"a {animal}"] for animal in scenes.ANIMALS}}
    for attribute, words in named.items():
        prompts[attribute] = {value: [said.format(one) for one in scenes.ANIMALS] for value, said in words.items()}
    return {name: [getattr(scene, name) for scene in truth] for name in prompts}, prompts
