"""What the cache keeps of one layer: its keys, or its values, as they are, in 8 bits, or in 12.

In 8 bits each token of each head has a scale of its own, the largest of its numbers over 127 (as a row of activations
has in Dettmers et al. 2022): half the memory of bfloat16, a quarter of float32. They are turned back as they are read,
a layer at a time. In 12 bits bfloat16 are as good as they are (`core.short_bfloats`), for the compiled kernel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.core.large_pages import zeros
from diptych.core.machine_code import ROWS, compiled
from diptych.core.row_plan import SHORT_GROUP

LEVELS = 127


def follow_each_other(slots: Sequence[int]) -> bool:
    """Whether all of them are one piece of memory, in their order."""
    return slots[-1] - slots[0] == len(slots) - 1 and list(slots) == sorted(slots)


class Kept:
    """Vectors of heads at places of slots: (slots, heads, length, head_dim), as they are.

    Args:
        dtype: that they come in and are read in.

    Attributes:
        parts: all slots and places as they are kept, (slots, heads, length, ...) each.
    """

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device | str, dtype: torch.dtype) -> None:
        self.parts = [zeros(shape, dtype, device)]

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
        and they are kept as they are.

        Args:
            slots: None where only the tensor may be asked.
            rows: the slots as a tensor.
        """
        if slots is not None and follow_each_other(slots):
            return self._unpacked([part.narrow(0, slots[0], len(slots)).narrow(2, 0, reach) for part in self.parts])
        return self._unpacked([part[rows, :, :reach] for part in self.parts])

    def _packed(self, new: Tensor) -> list[Tensor]:
        return [new]

    def _unpacked(self, parts: list[Tensor]) -> Tensor:
        return parts[0]


class KeptInBytes(Kept):
    """The same in 8 bits; beside them their scales, (slots, heads, length, 1)."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device | str, dtype: torch.dtype) -> None:
        self.parts = [zeros(shape, torch.int8, device), zeros((*shape[:3], 1), dtype, device)]

    def _packed(self, new: Tensor) -> list[Tensor]:
        # A scale is rounded before it is divided by, so that its rounding is no error of what is read.
        largest = new.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-6)
        scales = (largest / LEVELS).to(self.parts[1].dtype)
        numbers = (new.float() / scales.float()).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        return [numbers, scales]

    def _unpacked(self, parts: list[Tensor]) -> Tensor:
        numbers, scales = parts
        return numbers.to(scales.dtype).mul_(scales)


def _in_groups(length: int) -> int:
    return -(-length // SHORT_GROUP) * SHORT_GROUP


class ShortKept(Kept):
    """The same of bfloat16 on a CPU, in 12 bits; beside them the largest exponents, (slots, heads, length, 1).

    `length` is a multiple of SHORT_GROUP, at least what was asked for.

    Args:
        shape: head_dim is a multiple of 64.
        are_values: they lie in another order than keys.
    """

    def __init__(self, shape: tuple[int, int, int, int], *, are_values: bool) -> None:
        slots, heads, length, width = shape
        self.parts = [
            zeros((slots, heads, _in_groups(length), last), torch.uint8, "cpu") for last in (width * 3 // 2, 1)
        ]
        self._width, self._are_values = width, are_values

    def grow(self, slots: int, length: int) -> None:
        super().grow(slots, _in_groups(length))

    def copy(self, source: int, slot: int, length: int) -> None:
        super().copy(source, slot, _in_groups(length))

    def write_run(self, slot: int, start: int, new: Tensor) -> None:
        count = new.shape[1]
        self.write_at(torch.full((count,), slot), torch.arange(start, start + count), new.transpose(0, 1))

    def write_at(self, slots: Tensor, places: Tensor, new: Tensor) -> None:
        new = new.to(torch.bfloat16)
        if new.stride(-1) != 1:
            new = new.contiguous()
        which = [one.contiguous() for one in (slots, places)]
        about = new.data_ptr(), *new.stride()[:2], *(one.data_ptr() for one in which), *new.shape
        compiled(ROWS)["keep_rows"](*about, *self._tables(), int(self._are_values))

    def read(self, slots: Sequence[int] | None, rows: Tensor, reach: int) -> Tensor:
        heads, rows = self.parts[0].shape[1], rows.contiguous()
        found = torch.empty((len(rows), heads, _in_groups(reach), self._width), dtype=torch.bfloat16)
        about = rows.data_ptr(), *found.shape
        compiled(ROWS)["read_rows"](*about, *self._tables(), found.data_ptr(), int(self._are_values))
        return found[:, :, :reach]

    def _tables(self) -> tuple[int, int, int]:
        return self.parts[0].data_ptr(), self.parts[1].data_ptr(), self.length
