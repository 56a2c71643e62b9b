"""What the C library does with memory that was freed.

glibc gives a large piece back to the system at once and asks for it anew in the next step, and the system hands it out
page by page, each one filled with zeros at its first touch: a fifth of a training step on a CPU goes into that. A
training process takes the same pieces again and again, and so does one that reads for it: they keep them. What is done
now and then beside the steps needs pieces of other sizes, which would come on top: before and after, all that is free
goes back (`State.averaged`).
"""

import ctypes
import os
import sys

# The names and numbers are those of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """From here on, this process keeps freed memory for itself: what it holds falls below its peak only where
    `give_back` says so.

    Returns:
        Whether the C library can do that: only glibc can.
    """
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
    except (AttributeError, ValueError):  # not Linux
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def give_back() -> None:
    """What was freed, and stayed with the C library, goes back to the system."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc has it
        trim(0)
