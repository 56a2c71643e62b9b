"""Weights that are mapped from files, in another form: what was only copied from is given back.

A weight that is read from a mapped file stays in memory as a page of that file. Where a network needs it in another
dtype or order of axes, the copy is what counts, and the pages that it was made from would be there a second time until
the system is short of memory.
"""

import torch
from torch import nn

from diptych.core.memory import forget, mapped_files


def recast(module: nn.Module, *, dtype: torch.dtype | None = None, channels_last: bool = False) -> nn.Module:
    """The module with its parameters in `dtype`, those of convolutions with their channels last: one after the other,
    so that no more than one is there twice. None keeps the dtype; nothing is copied that is as it should be."""
    files = [file.place for file in mapped_files() if file.rights.endswith("p")]
    for parameter in module.parameters():
        before = parameter.data
        after = before.to(dtype or before.dtype)
        if channels_last and after.ndim == 4:
            after = after.contiguous(memory_format=torch.channels_last)
        if after.data_ptr() != before.data_ptr():
            parameter.data = after
            place = range(before.data_ptr(), before.data_ptr() + before.nbytes)
            if any(place.start in file and place.stop <= file.stop for file in files):
                forget(place)
    return module
