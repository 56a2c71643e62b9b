"""Batches of captioned pictures for training: which pictures, how they are cut and what is done to them follows from
the seed and the step.

A picture that turns out to be broken is replaced by the next whole one of its bucket's order, so a row is the same
whoever reads it, and is told once by each process that meets it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from diptych.core.randomness import generator
from diptych.data.bucket_order import BucketOrder
from diptych.data.buckets import CENTRE, Buckets, fit
from diptych.data.mirroring import mirrored_by_chance
from diptych.data.pictures import PictureSet
from diptych.data.trouble import Trouble

DROPPED, CHANGED, CUT = 5, 6, 7  # streams of randomness
IN_A_ROW = 1000  # broken pictures, and it is not the pictures but the disk

FoundT = TypeVar("FoundT")
Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]


class PictureBatch(NamedTuple):
    """Pictures (B, 3, H, W) float32, -1..1; which of the set they are, (B,) int64; tokens (B, S) int64 and mask (B, S)
    bool of their captions, S = 0 without a tokenizer."""

    pictures: Tensor
    indices: Tensor
    tokens: Tensor
    mask: Tensor


class Row(NamedTuple):
    """A row whose picture is whole: its number in the set, how often it was seen before, the caption that is due."""

    number: int
    sight: int
    caption: str


class Rows:
    """The rows of any step, over broken pictures: what every source of pictures shares."""

    def __init__(
        self, pictures: PictureSet, buckets: Buckets, *, batch: int, seed: int, caption_dropout: float = 0.0
    ) -> None:
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout must be from 0 to 1, not {caption_dropout}")
        self.pictures, self.buckets, self.caption_dropout = pictures, buckets, caption_dropout
        self.order = BucketOrder(tuple(map(len, buckets.members)), batch, seed)
        self._broken: dict[int, str] = {}
        self._untold: list[Trouble] = []

    def read(self, step: int, rows: range, read: Callable[[int, int], FoundT]) -> list[tuple[Row, FoundT]]:
        """These rows of a step, each with what `read(bucket, member)` found.

        Raises:
            ValueError: all pictures of the bucket or IN_A_ROW in a row are broken, or a row that the batch has not.
        """
        batch, seed = self.order.batch, self.order.seed
        if rows and not 0 <= min(rows) <= max(rows) < batch:
            raise ValueError(f"a batch of {batch} rows has no rows {min(rows)} to {max(rows)}")
        bucket, first = self.order.at(step)
        dropped = generator(seed=seed, step=step, stream=DROPPED).random(batch) < self.caption_dropout
        found = [self._first_whole(bucket, first + row, read) for row in rows]
        return [
            (whole._replace(caption="") if dropped[row] else whole, item)
            for row, (whole, item) in zip(rows, found, strict=True)
        ]

    def _first_whole(self, bucket: int, place: int, read: Callable[[int, int], FoundT]) -> tuple[Row, FoundT]:
        members = self.buckets.members[bucket]
        for further in range(min(2 * len(members), IN_A_ROW)):  # from the middle of an epoch, one may come twice
            member, sight = self.order.member(bucket, place + further)
            index = int(members[member])
            if index in self._broken:
                continue
            try:
                return Row(index, sight, self.pictures.caption(index, sight)), read(bucket, member)
            except (ValueError, OSError) as error:
                self._broken[index] = str(error)
                self._untold.append(Trouble(self.pictures.name(index), str(error)))
        raise ValueError(
            f"{min(len(members), IN_A_ROW)} pictures in a row are broken, the last of them "
            f"{self.pictures.name(index)}: {self._broken[index]}"
        )

    def troubles(self) -> Sequence[Trouble]:
        """The broken pictures that this process has met since the last call, each told once."""
        untold, self._untold = self._untold, []
        return untold


class PictureSource:
    """A `Source` of pictures.

    Args:
        buckets: of `buckets.fill_buckets`; a batch has the size of one of them.
        batch: rows of a step.
        mirrors: whether half of the pictures are mirrored, where no caption names a side.
        cuts: "centre", or "anywhere" for a place drawn anew at each sight.
        tokenize: captions -> tokens and mask, such as `partial(encode_prompts, tokenizer, length=48, cuts=True)`.
        caption_dropout: the share of captions left out, for guidance.
    """

    def __init__(
        self,
        pictures: PictureSet,
        buckets: Buckets,
        *,
        batch: int,
        seed: int,
        mirrors: bool = False,
        cuts: str = "centre",
        tokenize: Tokenize | None = None,
        caption_dropout: float = 0.0,
    ) -> None:
        if cuts not in ("centre", "anywhere"):
            raise ValueError(f"cuts must be centre or anywhere, not '{cuts}'")
        self.rows = Rows(pictures, buckets, batch=batch, seed=seed, caption_dropout=caption_dropout)
        self.mirrors, self.cuts, self.tokenize = mirrors, cuts, tokenize

    def batch(self, step: int, rows: range) -> PictureBatch:
        """These rows of the batch of `step` (from 0)."""
        found = self.rows.read(step, rows, self._pixels)
        size = self.rows.buckets.sizes[self.rows.order.at(step)[0]]
        pictures = []
        for row, (whole, pixels) in zip(rows, found, strict=True):
            cut = fit(pixels, size, self._place(step, row))
            picture = torch.from_numpy(cut.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)
            draw = generator(seed=self.rows.order.seed, sample=row, step=step, stream=CHANGED)
            pictures.append(picture.flip(-1) if self.mirrors and mirrored_by_chance(draw, whole.caption) else picture)
        return PictureBatch(
            torch.stack(pictures) if pictures else torch.empty(0, 3, size[1], size[0]),
            torch.tensor([whole.number for whole, _ in found], dtype=torch.int64),
            *tokenized(self.tokenize, [whole.caption for whole, _ in found]),
        )

    def captions(self, step: int, rows: range) -> list[str]:
        """The captions of these rows. The pictures are read for it, as only whole ones have a row."""
        return [whole.caption for whole, _ in self.rows.read(step, rows, self._pixels)]

    def troubles(self) -> Sequence[Trouble]:
        """The broken pictures that this process has met since the last call, each told once."""
        return self.rows.troubles()

    def _pixels(self, bucket: int, member: int) -> np.ndarray:
        return self.rows.pictures.read(int(self.rows.buckets.members[bucket][member]))

    def _place(self, step: int, row: int) -> tuple[float, float]:
        if self.cuts == "centre":
            return CENTRE
        across, down = generator(seed=self.rows.order.seed, sample=row, step=step, stream=CUT).random(2)
        return float(across), float(down)


def tokenized(tokenize: Tokenize | None, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens and mask of captions, without columns where there is no tokenizer."""
    if tokenize is None:
        return torch.empty(len(captions), 0, dtype=torch.int64), torch.empty(len(captions), 0, dtype=torch.bool)
    return tokenize(captions)
