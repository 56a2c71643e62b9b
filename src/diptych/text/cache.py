"""The key-value cache: what attention has read once is kept, so that each step reads one new token.

Two tensors a layer, in which each sequence has a row (slot), however long it is. New keys and values are written in
place; what lies past a sequence's length is never looked at, so a slot is freed by setting its length to 0. Slots grow
by doubling. Length grows in small steps up to the model's context, a layer at a time: what is kept lies close together,
and attention over a few new tokens reads all of it without a copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.core.attention import Store
from diptych.core.few_queries import FEW
from diptych.text.decoder import DecoderConfig

STEP = 256  # tokens that the cache grows by, at least


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
        shape = (slots, heads, length, config.head_dim)
        self._keys, self._values = (
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)] for _ in range(2)
        )
        self.lengths: list[int] = [0] * slots
        self._prompts: list[int] = [0] * slots
        self._free = list(range(slots))[::-1]

    @property
    def length(self) -> int:
        """Tokens that a slot can hold now."""
        return self._keys[0].shape[2]

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
        for kept in (*self._keys, *self._values):
            kept[slot, :, :length] = kept[source, :, :length]
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
        needed = max(longest, *(self._prompts[slot] for slot in slots))  # a prompt that comes in parts grows it once
        if needed > self.length:
            needed = max(needed, self.length + self.length // 16)
            self._grow(len(self.lengths), min(-(-needed // STEP) * STEP, self.config.context))
        starts = [self.lengths[slot] for slot in slots]
        for slot, end in zip(slots, ends, strict=True):
            self.lengths[slot] = end
        prompts = [self._prompts[slot] for slot in slots]
        return Appending(self._keys, self._values, slots, starts, counts, prompts, width)

    def _grow(self, slots: int, length: int) -> None:
        for tensors in (self._keys, self._values):
            for layer, kept in enumerate(tensors):
                old_slots, heads, old_length, head_dim = kept.shape
                tensors[layer] = kept.new_zeros((slots, heads, length, head_dim))
                tensors[layer][:old_slots, :, :old_length] = kept


class Appending:
    """One call's view of the cache: where its new tokens go, and what each of them may look at.

    `positions` is (B, T) int64; `lengths` is (B, T) int64, the tokens that a text has when each of its tokens is read;
    `mask` is (B, 1, T, S) bool, S what is read of each sequence, or None where nothing was kept before: then the new
    tokens look at each other alone.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        prompts: Sequence[int],
        width: int,
    ) -> None:
        device, room = keys[0].device, keys[0].shape[2]
        self._keys, self._values = keys, values
        longest = max(start + count for start, count in zip(starts, counts, strict=True))
        # All of the room is read without a copy; for many queries, or where it is much too large, a copy costs less.
        self._reach = room if width <= FEW and room <= max(STEP, 2 * longest) else longest
        self._slots = torch.tensor(slots, device=device)
        self._first, self._count = slots[0], len(slots)
        self._is_run = list(slots) == list(range(slots[0], slots[0] + len(slots)))  # read without a copy, too
        start = torch.tensor(starts, device=device)[:, None]
        place = torch.arange(width, device=device)[None]
        self.positions = (start + place).clamp(max=room - 1)  # (B, T); past a row's count they are padding
        self.lengths = (self.positions + 1).maximum(torch.tensor(prompts, device=device)[:, None])
        self.mask: Tensor | None = None
        if any(starts):
            self.mask = (torch.arange(self._reach, device=device) <= self.positions[..., None])[:, None]
        self._start, self._new = starts[0], counts[0]
        if self._count > 1:
            rows, columns = (place < torch.tensor(counts, device=device)[:, None]).nonzero(as_tuple=True)
            self._from = rows, columns
            self._to = self._slots[rows], self.positions[rows, columns]

    def store(self, layer: int) -> Store:
        """Writes new keys and values of a layer, (B, Hkv, T, D) each; gives all that may be looked at, (.., S, D)."""

        def write_and_read(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            both = (self._keys[layer], keys), (self._values[layer], values)
            for kept, new in both:
                self._write(kept, new)
            if self.mask is None:
                return keys, values
            seen_keys, seen_values = (self._read(kept).to(new.dtype) for kept, new in both)
            return seen_keys, seen_values

        return write_and_read

    def _write(self, kept: Tensor, new: Tensor) -> None:
        if self._count == 1:
            place = kept.narrow(0, self._first, 1).narrow(2, self._start, self._new)
            place.copy_(new.narrow(2, 0, self._new))
        else:
            (slots, places), (rows, columns) = self._to, self._from
            kept[slots, :, places] = new[rows, :, columns].to(kept.dtype)

    def _read(self, kept: Tensor) -> Tensor:
        if self._is_run:
            return kept.narrow(0, self._first, self._count).narrow(2, 0, self._reach)
        return kept[self._slots, :, : self._reach]
