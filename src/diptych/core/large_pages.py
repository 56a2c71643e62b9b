"""Memory that is read again and again, in pages of 2 MB where the system has them.

A processor looks up where each page lies, and reads ahead no further than to its end: in pages of 4 kB it reads what
was written for many tokens at two thirds of the speed that memory has.
"""

import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

PAGE = 1 << 21  # bytes


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """As `torch.zeros`. What would leave most of a large page empty has small ones, as has the rest of it."""
    size = prod(shape) * dtype.itemsize
    large = (size + PAGE // 2) // PAGE * PAGE
    if not large or torch.device(device).type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, max(size, large) + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # which keeps the memory, and is 0
    begin = -whole.data_ptr() % PAGE
    with suppress(OSError):  # there may be none
        memory.madvise(mmap.MADV_HUGEPAGE, begin, large)
    return whole[begin : begin + size].view(dtype).view(shape)
