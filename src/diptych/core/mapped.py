"""Weights that are mapped from files, in another form: what was only copied from is given back.

A weight that is read from a mapped file stays in memory as a page of that file. Where a network needs it in another
dtype or order of axes, the copy is what counts, and the pages that it was made from would be there a second time until
the system is short of memory.
"""

import ctypes
import mmap
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

DONT_NEED = 4  # of madvise, on Linux
MAPS = Path("/proc/self/maps")


def recast(module: nn.Module, *, dtype: torch.dtype | None = None, channels_last: bool = False) -> nn.Module:
    """The module with its parameters in `dtype`, those of convolutions with their channels last: one after the other,
    so that no more than one is there twice. None keeps the dtype; nothing is copied that is as it should be."""
    files = mapped_files()
    for parameter in module.parameters():
        before = parameter.data
        after = before.to(dtype or before.dtype)
        if channels_last and after.ndim == 4:
            after = after.contiguous(memory_format=torch.channels_last)
        if after.data_ptr() != before.data_ptr():
            parameter.data = after
            _give_back(before, files)
    return module


def mapped_files() -> list[range]:
    """The addresses of files in memory, of a copy that is the process's own; none where that is not known."""
    found: list[range] = []
    with suppress(OSError, ValueError):
        for line in MAPS.read_text().splitlines():
            where, rights, _, _, inode, *path = line.split(maxsplit=5)
            if inode != "0" and path and rights.endswith("p"):
                start, end = (int(part, 16) for part in where.split("-"))
                found.append(range(start, end))
    return found


def _give_back(tensor: Tensor, files: list[range]) -> None:
    """The whole pages of a tensor that lies in a mapped file. Whoever reads them again reads the file."""
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if sys.platform == "linux" and start < end and any(start in file and end - 1 in file for file in files):
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        advise(start, end - start, DONT_NEED)
