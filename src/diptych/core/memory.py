"""Memory that a process has no more use for, given back to the system: on Linux; elsewhere nothing is done.

What was freed stays with the C library, which keeps it for later. And what was read of a file stays while the file is
mapped: code that a library ran as it was imported, weights that were copied into another dtype. A page of a file that
nobody wrote to can leave at any time: whoever looks there again gets it from the file, in microseconds.
"""

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diptych.core.allocator import give_back

DONT_NEED = 4  # of madvise, on Linux
MAPS = Path("/proc/self/smaps")
MAPPING = re.compile(r"^(\w+)-(\w+) (\S{4}) \w+ \S+ [1-9]\d* +(.+)$((?:\n[A-Z]\w+:.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class MappedFile:
    """A part of a file in memory.

    Args:
        place: its addresses.
        rights: "r-xp" is code; a "p" at the end is a copy that is the process's own.
        path: of the file.
        is_clean: no page of it was written to, so that the file has all of it.
    """

    place: range
    rights: str
    path: str
    is_clean: bool


def mapped_files() -> list[MappedFile]:
    """All that are in this process's memory; none where that is not known."""
    with suppress(OSError):
        return list(_files(MAPS.read_text()))
    return []


def _files(maps: str) -> Iterator[MappedFile]:
    for start, end, rights, path, facts in MAPPING.findall(maps):
        yield MappedFile(range(int(start, 16), int(end, 16)), rights, path, "\nAnonymous:             0 kB" in facts)


def forget(place: range) -> None:
    """Take the whole pages among these addresses out of memory. They must be a file's, and not have been written to."""
    start = -(-place.start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = place.stop // mmap.PAGESIZE * mmap.PAGESIZE - start
    if sys.platform == "linux" and length > 0:
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        advise(start, length, DONT_NEED)


def forget_library(name: str) -> None:
    """Code and constants of libraries whose files' names begin so, which have done most of their work."""
    for file in mapped_files():
        if file.rights in ("r-xp", "r--p") and file.is_clean and Path(file.path).name.startswith(name):
            forget(file.place)


def settle() -> None:
    """After a model was opened: what was freed on the way, and the code of torch, of which its import ran more than a
    model will (41 of 62 MB)."""
    give_back()
    forget_library("libtorch")
