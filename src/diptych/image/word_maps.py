"""Maps of words: what a watched generation kept of the attention to each word, and the numbers that sum them up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diptych.core.spelling import unknown
from diptych.core.trace import Trace


@dataclass(frozen=True)
class WordMaps:
    """For each step, picture and word, how much of each place's attention to the prompt the word had.

    Args:
        words: in the order of the prompt, one for each time that it stands there.
        maps: (steps, count, words, h, w), float16, 0..1. Over all words they add up to less than 1: the beginning and
            the end of the prompt, and its punctuation, are looked at, too.
    """

    words: tuple[str, ...]
    maps: Tensor

    @classmethod
    def of(cls, trace: Trace) -> "WordMaps":
        """The maps of a recorded generation.

        Raises:
            ValueError: a trace without them, or with what cannot be such; the message goes after the trace's name.
        """
        words, maps = trace.settings.get("words"), trace.arrays.get("words")
        if trace.panel != "image":
            raise ValueError("is a text trace; words are looked at in an image trace")
        if not len(trace) or words is None or maps is None:
            raise ValueError("holds no maps of words: its network looks at none, or nobody asked for them (words=True)")
        is_list = isinstance(words, list) and all(isinstance(word, str) for word in words)
        if not is_list or not maps.is_floating_point() or maps.ndim != 5 or maps.shape[2] != len(words):
            raise ValueError("is not a whole trace: its words and their maps do not match")
        if not maps.numel() or not bool(((maps >= 0) & (maps <= 1.01)).all()):
            raise ValueError("is not a whole trace: its maps of words are not shares of attention")
        return cls(tuple(words), maps)

    @property
    def names(self) -> list[str]:
        """The words, told apart: a second "cat" is "cat (2)"."""
        earlier = [self.words[:place].count(word) for place, word in enumerate(self.words)]
        return [f"{word} ({count + 1})" if count else word for word, count in zip(self.words, earlier, strict=True)]

    def places(self, wanted: Sequence[str]) -> list[int]:
        """Where these words stand among `words`, each as often as it does; all of them where none is wanted.

        Raises:
            ValueError: for a word that is not in the prompt.
        """
        lowered = [word.lower() for word in self.words]
        for word in wanted:
            if word.lower() not in lowered:
                raise unknown("word", word, dict.fromkeys(self.words))
        kept = {word.lower() for word in wanted}
        return [place for place, word in enumerate(lowered) if not wanted or word in kept]

    def map(self, word: str, sample: int = 0) -> Tensor:
        """(h, w), float32: the mean over all steps, of one picture, for a word; summed where it stands several times.

        Raises:
            ValueError: for a word that is not in the prompt.
        """
        return self.maps[:, sample, self.places([word])].float().sum(1).mean(0)

    def shares(self) -> Tensor:
        """(steps, count, words), float32: the mean over all places of the share of attention that each word had."""
        return self.maps.float().mean((-2, -1))

    def centres(self) -> Tensor:
        """(steps, count, words, 2), float32: see `centre`."""
        return centre(self.maps)


def centre(maps: Tensor) -> Tensor:
    """The centre of mass (..., 2) of what stands out of maps (..., h, w): x from the left, y from the top, 0..1.

    Every place looks a little at every word. What lies above a map's mean is weighed, else all centres were in the
    middle; a flat map has its centre there.
    """
    maps = maps.float()
    height, width = maps.shape[-2:]
    above = (maps - maps.mean((-2, -1), keepdim=True)).clamp(min=0)
    above = above + 1e-9
    across = (torch.arange(width, device=maps.device) + 0.5) / width
    down = (torch.arange(height, device=maps.device) + 0.5) / height
    whole = above.sum((-2, -1))
    return torch.stack(((above.sum(-2) * across).sum(-1) / whole, (above.sum(-1) * down).sum(-1) / whole), dim=-1)


def figures(maps: WordMaps, place: int, sample: int, steps: range) -> list[dict[str, Any]]:
    """One dict of JSON values for each step, and one for their mean, of one word."""
    name, own = maps.names[place], maps.maps[steps.start : steps.stop, sample, place].float()
    rows = [{"type": "step", "word": name, "index": index} for index in steps] + [{"type": "mean", "word": name}]
    return [
        {**row, "share": round(float(one.mean()), 5), "centre": [round(float(part), 4) for part in centre(one)]}
        for row, one in zip(rows, [*own, own.mean(0)], strict=True)
    ]
