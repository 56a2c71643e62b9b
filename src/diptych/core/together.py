"""Compiled code for many rows at once, run by the threads that torch has.

It is one call: each thread enters it once, and takes shares until there are none (`lanes.add_shared`). Threads of its
own would be in the way of torch's, which go on looking for work for a while after each operation.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.core import machine_code
from diptych.core.share_plan import LINE, SCRATCH, SCRATCH_BYTES


def _torch_threads() -> Callable[..., None] | None:
    """GNU OpenMP's call that has (a function, its argument, so many threads, 0) run by a team of threads, by the
    library that torch uses; None where that has none."""
    try:
        call = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    call.argtypes, call.restype = [function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    found: Callable[..., None] = call
    return found


_team = _torch_threads()
# Asked once, since what torch compiles cannot ask: whether this machine can, and multiplies pairs of bfloat16.
IS_HERE = (
    torch.cpu._is_avx512_bf16_supported()
    and machine_code.is_here()
    and _team is not None
    and machine_code.multiplies_bfloats()
    and (not machine_code.multiplies_tiles() or torch.cpu._init_amx())  # a process has to ask the system for them
)

_is_left_out = False


def is_used() -> bool:
    """Whether compiled code is used."""
    return IS_HERE and not _is_left_out


@contextmanager
def left_out(is_so: bool = True) -> Iterator[None]:
    """What is computed inside does without compiled code, and waits for none."""
    global _is_left_out
    before = _is_left_out
    _is_left_out = before or is_so
    try:
        yield
    finally:
        _is_left_out = before


def libraries(device: torch.device, dtype: torch.dtype, *, learns: bool = False) -> list[machine_code.Library]:
    """What computations in a dtype on a device need compiled, and a training beside. It takes seconds if that was never
    done on this machine, which are better told before a run than in its middle."""
    if not is_used() or device.type != "cpu" or dtype != torch.bfloat16:
        return []
    return machine_code.of_many(learns)


def new_table(columns: int) -> NDArray[np.int64]:
    """A table of 64-bit integers, all 0, which begins with a line of memory."""
    table = np.zeros(columns + LINE // 8, np.int64)
    begin = -table.ctypes.data % LINE // 8
    return table[begin : begin + columns]


def run_together(function: str, table: NDArray[np.int64], threads: int, scratch_bytes: int = 0) -> None:
    """Call a compiled function with the address of a table, in so many threads, each of which works in so many bytes of
    its own: whole lines."""
    assert _team is not None
    if scratch_bytes:
        scratch = torch.empty(threads * scratch_bytes + LINE, dtype=torch.uint8)
        table[SCRATCH], table[SCRATCH_BYTES] = scratch.data_ptr() + -scratch.data_ptr() % LINE, scratch_bytes
    _team(machine_code.function_of(function), table.ctypes.data, threads, 0)


def bits_of(fraction: float) -> int:
    """A float32's bits, as a table holds it."""
    return int(np.float32(fraction).view(np.uint32))
