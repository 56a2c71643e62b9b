"""Text embeddings of captions, made once by a frozen text encoder and kept in the cache folder.

Vectors are kept for tokens only, not for padding, one caption after the other. Their name is made of the encoder's
weights, what cuts captions into tokens, and the captions themselves.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diptych.data.pictures import digest_of
from diptych.data.stored import MappedArray, stored_arrays

AT_ONCE = 64  # captions that are encoded together
CHUNK = 16 * AT_ONCE

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Embeddings:
    """`vectors` (all tokens, width) float16; caption `rows[caption]` has those from `ends[row - 1]` to `ends[row]`.
    `length` is what every caption is padded to."""

    vectors: MappedArray
    lengths: MappedArray
    ends: np.ndarray
    rows: dict[str, int]
    length: int

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context (B, length, width) float32, zero on padding, and mask (B, length) bool.

        Raises:
            ValueError: a caption that was not among those encoded.
        """
        context = torch.zeros(len(captions), self.length, self.vectors.array.shape[1])
        mask = torch.zeros(len(captions), self.length, dtype=torch.bool)
        for place, caption in enumerate(captions):
            if caption not in self.rows:
                raise ValueError(f"there is no embedding of the caption '{caption[:60]}'")
            row = self.rows[caption]
            end, count = int(self.ends[row]), int(self.lengths.array[row])
            context[place, :count] = torch.from_numpy(self.vectors.array[end - count : end].astype(np.float32))
            mask[place, :count] = True
        return context, mask


def embeddings_of(encode: Encode, key: str, captions: Iterable[str]) -> Embeddings:
    """Embeddings of these captions and of "" (what guidance moves away from), from the cache or made now.

    Args:
        encode: captions -> context (B, S, width) and mask (B, S), True on tokens, which come before the padding.
        key: changes when what `encode` computes does: `core.weights.digest` of the encoder's weights, and a word for
            its tokenizer and its length.
    """
    wanted = list(dict.fromkeys(["", *captions]))

    def make(chunk: range) -> list[np.ndarray]:
        vectors, lengths, padded = [], [], 0
        for start in range(chunk.start, chunk.stop, AT_ONCE):
            with torch.no_grad():
                context, mask = encode(wanted[start : min(start + AT_ONCE, chunk.stop)])
            if (mask[:, 1:] & ~mask[:, :-1]).any():
                raise ValueError("padding must come after the tokens of a caption, not between them")
            vectors.append(context[mask].half().cpu().numpy())
            lengths.append(mask.sum(1).cpu().numpy())
            padded = max(padded, mask.shape[1])
        return [np.concatenate(vectors), np.concatenate(lengths), np.array([padded])]

    name = digest_of([key, *wanted])
    vectors, lengths, widths = stored_arrays(
        f"embeddings-{name}", ("vectors", "lengths", "padded"), len(wanted), CHUNK, make
    )
    ends = np.cumsum(lengths.array, dtype=np.int64)
    rows = {caption: row for row, caption in enumerate(wanted)}
    return Embeddings(vectors, lengths, ends, rows, int(widths.array.max()))
