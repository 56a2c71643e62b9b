"""Measuring a pairing: does it find the caption of a picture among many, and the picture of a caption?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diptych.core.share import Share
from diptych.image.pairing import PairingModel


@dataclass(frozen=True)
class Matching:
    """Shares of first choices that are right.

    Args:
        to_caption, to_picture: of all captions the one of a picture, of all pictures one of a caption.
        by_attribute: of the values of an attribute the one that a picture has, without having been trained to tell.
    """

    num_pictures: int
    to_caption: Share
    to_picture: Share
    by_attribute: dict[str, Share]

    def figures(self) -> dict[str, float]:
        parts = [self.to_caption.figures("to_caption"), self.to_picture.figures("to_picture")]
        parts += [share.figures(f"zero_shot/{name}") for name, share in self.by_attribute.items()]
        return {name: figure for part in parts for name, figure in part.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.num_pictures,
            "picture_to_caption": self.to_caption.to_dict(),
            "caption_to_picture": self.to_picture.to_dict(),
            "zero_shot": {name: share.to_dict() for name, share in self.by_attribute.items()},
        }


def measure_matching(
    model: PairingModel,
    pictures: np.ndarray,
    captions: Sequence[str],
    truth: Mapping[str, Sequence[str]] | None = None,
    prompts: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> Matching:
    """Retrieval among the pictures (N, 3, H, W), uint8, with a caption each, and zero-shot classification of them.

    Args:
        truth: attribute -> its value in each picture.
        prompts: attribute -> value -> what a caption of it may say; pictures with a value that has none are not asked.
    """
    seen, read = model.see(pictures), model.read(captions)
    shares = {
        name: zero_shot(seen, model.read_classes(classes), list(classes), (truth or {})[name])
        for name, classes in (prompts or {}).items()
    }
    return Matching(len(pictures), first_right(seen, read, captions), first_right(read, seen, captions), shares)


def first_right(queries: Tensor, answers: Tensor, captions: Sequence[str]) -> Share:
    """How often the answer nearest to query k, (N, D) both, is k or another with the same caption."""
    nearest = (queries @ answers.T).argmax(1).tolist()
    return Share(sum(captions[k] == captions[found] for k, found in enumerate(nearest)), len(nearest))


def zero_shot(pictures: Tensor, classes: Tensor, values: Sequence[str], truth: Sequence[str]) -> Share:
    """How often the class (C, D) nearest to a picture (N, D) is its own, of pictures that have one of `values`."""
    nearest = (pictures @ classes.T).argmax(1).tolist()
    asked = [(values[found], value) for found, value in zip(nearest, truth, strict=True) if value in values]
    return Share(sum(found == value for found, value in asked), len(asked))
