"""The key-value cache: what attention has read once is kept, so that each step reads one new token.

One tensor for all sequences, a row (slot) each, however long each is. New keys and values are written in place; what
lies past a sequence's length is never looked at, so a slot is freed by setting its length to 0. The tensor grows by
doubling, in slots and in length, up to the model's context.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.core.attention import Store
from diptych.text.decoder import DecoderConfig


class KeyValueCache:
    """Keys and values of many sequences of different lengths.

    Args:
        slots: sequences to hold at first.
        length: tokens of each to hold at first, at most the context.
        dtype: of keys and values, that of the decoder's computation.
        num_kv_heads: heads here; fewer than config's where they are divided over processes.
    """

    def __init__(
        self,
        config: DecoderConfig,
        slots: int,
        length: int,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        num_kv_heads: int | None = None,
    ) -> None:
        self.config = config
        length = min(length, config.context)
        heads = config.num_kv_heads if num_kv_heads is None else num_kv_heads
        shape = (config.num_layers, 2, slots, heads, length, config.head_dim)
        self._kept = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths: list[int] = [0] * slots
        self._prompts: list[int] = [0] * slots
        self._free = list(range(slots))[::-1]

    @property
    def length(self) -> int:
        """Tokens that a slot can hold now."""
        return int(self._kept.shape[4])

    def reserve(self, prompt: int = 0) -> int:
        """A free slot, empty, for a text whose first `prompt` tokens are known at once; the cache grows if there is
        none."""
        if not self._free:
            slots = len(self.lengths)
            self._grow(2 * slots, self.length)
            self.lengths += [0] * slots
            self._prompts += [0] * slots
            self._free = list(range(slots, 2 * slots))[::-1]
        slot = self._free.pop()
        self._prompts[slot] = prompt
        return slot

    def release(self, slot: int) -> None:
        self.lengths[slot] = 0
        self._free.append(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a sequence; what lies past them is written over."""
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"a sequence of {self.lengths[slot]} tokens cannot be cut to {length}")
        self.lengths[slot] = length

    def fork(self, source: int, slot: int) -> None:
        """Make the sequence in `slot` the same as the one in `source`; from here on each goes its own way."""
        length = self.lengths[source]
        self._kept[:, :, slot, :, :length] = self._kept[:, :, source, :, :length]
        self.lengths[slot], self._prompts[slot] = length, self._prompts[source]

    def append(self, slots: Sequence[int], counts: Sequence[int], width: int) -> "Appending":
        """Make room for `counts[i]` new tokens in `slots[i]`, handed over as rows padded at the end to `width`.

        The result is the `cache` of one call of the decoder, and holds the `positions` and the `mask` of that call.
        The lengths count the new tokens at once.
        """
        ends = [self.lengths[slot] + count for slot, count in zip(slots, counts, strict=True)]
        longest = max(ends)
        if longest > self.config.context:
            raise ValueError(f"a sequence of {longest} tokens does not fit the context of {self.config.context}")
        if longest > self.length:
            doubled = max(1, self.length)
            while doubled < longest:
                doubled *= 2
            self._grow(len(self.lengths), min(doubled, self.config.context))
        starts = [self.lengths[slot] for slot in slots]
        for slot, end in zip(slots, ends, strict=True):
            self.lengths[slot] = end
        return Appending(self._kept, slots, starts, counts, [self._prompts[slot] for slot in slots], width, longest)

    def _grow(self, slots: int, length: int) -> None:
        layers, two, old_slots, heads, old_length, head_dim = self._kept.shape
        grown = self._kept.new_zeros((layers, two, slots, heads, length, head_dim))
        grown[:, :, :old_slots, :, :old_length] = self._kept
        self._kept = grown


class Appending:
    """One call's view of the cache: where its new tokens go, and what each of them may look at.

    `positions` is (B, T) int64; `mask` is (B, 1, T, S) bool, S the longest of the B sequences with its new tokens;
    `lengths` is (B, T) int64, the tokens that a text has when each of its tokens is read.
    """

    def __init__(
        self,
        kept: Tensor,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        prompts: Sequence[int],
        width: int,
        longest: int,
    ) -> None:
        device = kept.device
        self._kept, self._longest = kept, longest
        self._slots = torch.tensor(slots, device=device)
        # Slots in a row are read without a copy.
        is_run = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        self._read: slice | Tensor = slice(slots[0], slots[0] + len(slots)) if is_run else self._slots
        start = torch.tensor(starts, device=device)[:, None]
        place = torch.arange(width, device=device)[None]
        self.positions = (start + place).clamp(max=kept.shape[4] - 1)  # (B, T); past a row's count they are padding
        self.lengths = (self.positions + 1).maximum(torch.tensor(prompts, device=device)[:, None])
        self.mask = (torch.arange(longest, device=device) <= self.positions[..., None])[:, None]  # (B, 1, T, S)
        self._rows, self._columns = (place < torch.tensor(counts, device=device)[:, None]).nonzero(as_tuple=True)

    def store(self, layer: int) -> Store:
        """Writes the new keys and values of a layer, (B, Hkv, T, D) each; gives all up to the longest, (.., S, D)."""

        def write_and_read(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            both = self._kept[layer]  # (2, slots, Hkv, length, D)
            slots, places = self._slots[self._rows], self.positions[self._rows, self._columns]
            for kept, new in zip(both, (keys, values), strict=True):
                kept[slots, :, places] = new[self._rows, :, self._columns].to(kept.dtype)
            seen = both[:, self._read, :, : self._longest].to(keys.dtype)
            return seen[0], seen[1]

        return write_and_read
