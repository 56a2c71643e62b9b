"""Latents of a set of pictures, encoded once by a frozen autoencoder and kept in the cache folder.

Their name is made of the pictures' key, the size they are cut to, and the weights of the autoencoder's first half: a
changed encoder never meets old latents, and a decoder that is trained on finds its own again.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.core.randomness import generator
from diptych.core.weights import digest
from diptych.data.buckets import Buckets, fit
from diptych.data.mirroring import mirrored_by_chance
from diptych.data.picture_source import CHANGED, Rows, Tokenize, tokenized
from diptych.data.pictures import PictureSet, digest_of
from diptych.data.stored import MappedArray, stored_arrays
from diptych.data.trouble import Trouble, Troubles
from diptych.image.autoencoder import Autoencoder

AT_ONCE = 64  # pictures that are encoded together
CHUNK = 16 * AT_ONCE
BROKEN = "it was broken when its latent was made"


class Latents(NamedTuple):
    """`values` (N, C, h, w) float16; `is_whole` (N,) bool, False where the picture is broken and its latent nothing."""

    values: MappedArray
    is_whole: MappedArray


def encoder_digest(autoencoder: Autoencoder) -> str:
    """A name for what makes latents: the encoder's weights, the shift and the scale."""
    state = autoencoder.state_dict()
    return digest({name: value for name, value in state.items() if not name.startswith("decoder.")})


def latents_of(
    autoencoder: Autoencoder,
    pictures: PictureSet,
    size: tuple[int, int],
    compute: torch.dtype,
    *,
    indices: np.ndarray | None = None,
    is_mirrored: bool = False,
    troubles: Troubles | None = None,
) -> Latents:
    """Latents of pictures cut to `size` (width, height) from their middle, from the cache or encoded now.

    Args:
        compute: dtype of the encoder's products, under autocast.
        indices: which of the pictures; all of them unless given.
        is_mirrored: of the mirrored pictures instead.
        troubles: counts the broken ones, whenever they were found.

    Raises:
        TooManyBroken: as `troubles` allows, as soon as it is clear.
    """
    troubles = troubles or Troubles()
    met = deepcopy(troubles)  # on the way; `troubles` itself is told of all, whether they are made now or were before
    indices = np.arange(len(pictures)) if indices is None else indices
    device = autoencoder.shift.device
    blank = np.zeros((size[1], size[0], 3), np.uint8)

    def read(index: int) -> np.ndarray | None:
        try:
            found = fit(pictures.read(index), size)
        except (ValueError, OSError) as error:
            met.skip(pictures.name(index), str(error))
            return None
        met.saw()
        return found

    def encode(part: Sequence[np.ndarray]) -> np.ndarray:
        values = torch.from_numpy(np.stack(part).transpose(0, 3, 1, 2).copy()).to(device).float() / 127.5 - 1
        values = values.flip(-1) if is_mirrored else values
        with torch.no_grad(), torch.autocast(device.type, compute, enabled=compute != torch.float32):
            latent = autoencoder.encode(values.contiguous(memory_format=torch.channels_last))
        return latent.half().cpu().numpy()

    def make(chunk: range) -> list[np.ndarray]:
        values, is_whole = [], []
        for start in range(chunk.start, chunk.stop, AT_ONCE):
            found = [read(int(index)) for index in indices[start : min(start + AT_ONCE, chunk.stop)]]
            is_whole += [one is not None for one in found]
            values.append(encode([blank if one is None else one for one in found]))
        return [np.concatenate(values), np.array(is_whole)]

    name = digest_of(
        [pictures.key, size, is_mirrored, indices.astype(np.int64).tobytes(), encoder_digest(autoencoder), compute]
    )
    latents = Latents(*stored_arrays(f"latents-{name}", ("values", "whole"), len(indices), CHUNK, make))
    _tell(pictures, indices, latents, troubles)
    return latents


def _tell(pictures: PictureSet, indices: np.ndarray, latents: Latents, troubles: Troubles) -> None:
    broken = np.flatnonzero(~latents.is_whole.array)
    troubles.saw(len(indices) - len(broken))
    for index in indices[broken]:
        try:
            pictures.read(int(index))
            why = BROKEN
        except (ValueError, OSError) as error:
            why = str(error)
        troubles.skip(pictures.name(int(index)), why)


@dataclass(frozen=True)
class BucketLatents:
    """The latents of each bucket's members, and those of the same pictures mirrored where they are wanted."""

    plain: tuple[Latents, ...]
    mirrored: tuple[Latents, ...]


def bucket_latents(
    autoencoder: Autoencoder,
    pictures: PictureSet,
    buckets: Buckets,
    compute: torch.dtype,
    *,
    has_mirrored: bool = False,
    troubles: Troubles | None = None,
) -> BucketLatents:
    """Latents of all pictures in buckets. Mirrored ones are of their own: an encoder does not commute with a mirror.

    Raises:
        TooManyBroken: as `troubles` allows.
    """
    pairs = list(zip(buckets.sizes, buckets.members, strict=True))
    troubles = troubles or Troubles()
    again = deepcopy(troubles)  # the same broken ones are not counted twice
    plain = [latents_of(autoencoder, pictures, s, compute, indices=i, troubles=troubles) for s, i in pairs]
    mirrored = [
        latents_of(autoencoder, pictures, s, compute, indices=i, is_mirrored=True, troubles=again)
        for s, i in (pairs if has_mirrored else [])
    ]
    return BucketLatents(tuple(plain), tuple(mirrored))


class LatentBatch(NamedTuple):
    """Latents (B, C, h, w) float32; the rest as in `PictureBatch`."""

    latents: Tensor
    indices: Tensor
    tokens: Tensor
    mask: Tensor


class LatentSource:
    """A `Source` of latents, in the order in which a `PictureSource` of the same seed has the pictures.

    Args:
        latents: of these buckets, with mirrored ones where `mirrors` wants them.
        mirrors, tokenize, caption_dropout: as in `PictureSource`.
    """

    def __init__(
        self,
        pictures: PictureSet,
        buckets: Buckets,
        latents: BucketLatents,
        *,
        batch: int,
        seed: int,
        mirrors: bool = False,
        tokenize: Tokenize | None = None,
        caption_dropout: float = 0.0,
    ) -> None:
        if mirrors and not latents.mirrored:
            raise ValueError("mirroring needs latents of the mirrored pictures, too")
        self.rows = Rows(pictures, buckets, batch=batch, seed=seed, caption_dropout=caption_dropout)
        self.latents, self.mirrors, self.tokenize = latents, mirrors, tokenize

    def batch(self, step: int, rows: range) -> LatentBatch:
        """These rows of the batch of `step` (from 0)."""
        bucket = self.rows.order.at(step)[0]
        values = []
        found = self.rows.read(step, rows, self._member)
        for row, (whole, member) in zip(rows, found, strict=True):
            draw = generator(seed=self.rows.order.seed, sample=row, step=step, stream=CHANGED)
            turns = self.mirrors and mirrored_by_chance(draw, whole.caption)
            latents = (self.latents.mirrored if turns else self.latents.plain)[bucket]
            values.append(latents.values.array[member])
        shape = self.latents.plain[bucket].values.array.shape[1:]
        return LatentBatch(
            torch.from_numpy(np.array(values, dtype=np.float16).reshape(-1, *shape)).float(),
            torch.tensor([whole.number for whole, _ in found], dtype=torch.int64),
            *tokenized(self.tokenize, [whole.caption for whole, _ in found]),
        )

    def captions(self, step: int, rows: range) -> list[str]:
        """The captions of these rows."""
        return [whole.caption for whole, _ in self.rows.read(step, rows, self._member)]

    def troubles(self) -> Sequence[Trouble]:
        """The broken pictures that this process has met since the last call, each told once."""
        return self.rows.troubles()

    def _member(self, bucket: int, member: int) -> int:
        if not self.latents.plain[bucket].is_whole.array[member]:
            raise ValueError(BROKEN)
        return member
