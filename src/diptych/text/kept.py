"""What the cache keeps of one layer: its keys, or its values, as they are or in 8 bits.

In 8 bits each token of each head has a scale of its own, the largest of its numbers over 127 (as a row of activations
has in Dettmers et al. 2022): half the memory of bfloat16, a quarter of float32. They are turned back as they are read,
a layer at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.core.large_pages import zeros

LEVELS = 127


def follow_each_other(slots: Sequence[int]) -> bool:
    """Whether all of them are one piece of memory, in their order."""
    return slots[-1] - slots[0] == len(slots) - 1 and list(slots) == sorted(slots)


class Kept:
    """Vectors of heads at places of slots: (slots, heads, length, head_dim).

    Args:
        dtype: that they come in and are read in.
        is_int8: whether they are kept in 8 bits.

    Attributes:
        parts: all slots and places as they are kept: (slots, heads, length, head_dim), and in 8 bits their scales
            (slots, heads, length, 1).
    """

    def __init__(
        self, shape: tuple[int, int, int, int], device: torch.device | str, dtype: torch.dtype, *, is_int8: bool = False
    ) -> None:
        self.parts = [zeros(shape, torch.int8 if is_int8 else dtype, device)]
        if is_int8:
            self.parts.append(zeros((*shape[:3], 1), dtype, device))

    @property
    def is_packed(self) -> bool:
        return len(self.parts) > 1

    @property
    def length(self) -> int:
        return self.parts[0].shape[2]

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def grow(self, slots: int, length: int) -> None:
        """Make room. It is filled with 0."""
        for index, part in enumerate(self.parts):
            old_slots, heads, old_length, last = part.shape
            self.parts[index] = zeros((slots, heads, max(length, old_length), last), part.dtype, part.device)
            self.parts[index][:old_slots, :, :old_length] = part

    def copy(self, source: int, slot: int, length: int) -> None:
        """The first `length` places of one slot into another."""
        for part in self.parts:
            part[slot, :, :length] = part[source, :, :length]

    def write_run(self, slot: int, start: int, new: Tensor) -> None:
        """new (heads, N, head_dim) at places that follow each other."""
        for part, values in zip(self.parts, self._packed(new), strict=True):
            part.select(0, slot).narrow(1, start, new.shape[1]).copy_(values)

    def write_at(self, slots: Tensor, places: Tensor, new: Tensor) -> None:
        """new (N, heads, head_dim) at a slot and a place each."""
        for part, values in zip(self.parts, self._packed(new), strict=True):
            part[slots, :, places] = values.to(part.dtype)

    def read(self, slots: Sequence[int] | None, rows: Tensor, reach: int) -> Tensor:
        """The first `reach` places of some slots: (B, heads, reach, head_dim). No copy where slots follow each other
        and nothing is packed.

        Args:
            slots: None where only the tensor may be asked.
            rows: the slots as a tensor.
        """
        if slots is not None and follow_each_other(slots):
            found = [part.narrow(0, slots[0], len(slots)).narrow(2, 0, reach) for part in self.parts]
        else:
            found = [part[rows, :, :reach] for part in self.parts]
        if not self.is_packed:
            return found[0]
        numbers, scales = found
        return numbers.to(scales.dtype).mul_(scales)

    def _packed(self, new: Tensor) -> list[Tensor]:
        if not self.is_packed:
            return [new]
        # A scale is rounded before it is divided by, so that its rounding is no error of what is read.
        largest = new.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-6)
        scales = (largest / LEVELS).to(self.parts[1].dtype)
        numbers = (new.float() / scales.float()).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        return [numbers, scales]
