"""Which kernels compute: our own instead of torch's for bfloat16 on CPUs that multiply it in hardware, and where
oneDNN's are not the best of torch's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diptych.core.precision import CPU_MULTIPLIES_BFLOAT16

_stands_for_this_machine = True


def is_ours(x: torch.Tensor) -> bool:
    """Whether a computation with x is one of those for which there are kernels here: attention, norms, activations, the
    loss, layers with what follows them, small convolutions."""
    return _stands_for_this_machine and x.dtype == torch.bfloat16 and x.device.type == "cpu" and CPU_MULTIPLIES_BFLOAT16


@contextmanager
def onednn(is_on: bool) -> Iterator[None]:
    """Whether oneDNN multiplies inside. Its product of one row of bfloat16 reads the weights at half the speed that
    torch's own does (28 and 58 GB/s on two cores); of more rows, and in batches, oneDNN's are the faster ones."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = is_on  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@contextmanager
def of_another_machine(is_another: bool = True) -> Iterator[None]:
    """What is computed inside stands for another device, as in a plan on fake tensors: torch's kernels are used."""
    global _stands_for_this_machine
    before = _stands_for_this_machine
    _stands_for_this_machine = before and not is_another
    try:
        yield
    finally:
        _stands_for_this_machine = before
