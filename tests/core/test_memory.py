"""What a process has no more use for leaves its memory; what it has written stays, and what it reads again is the same.

How much of a file is in memory is asked of Linux itself, by its table of mappings.
"""

import ctypes
import mmap
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diptych.core import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what lies where in memory")
READ, WRITE, PRIVATE = 1, 2, 2  # of mmap and mprotect
PAGES = 64


def resident(path: str) -> int:
    """Kilobytes of files whose path has this in it that are in this process's memory."""
    maps = Path("/proc/self/smaps").read_text()
    return sum(map(int, re.findall(rf"/\S*{re.escape(path)}\S*\n(?:[A-Z]\w+:.*\n)*?Rss: +(\d+) kB", maps)))


@pytest.fixture
def constants(tmp_path: Path) -> Iterator[ctypes.Array]:
    """A library's constants: a file in memory as the loader of programs puts it there, filled in where addresses go."""
    path = tmp_path / "libtale.so.1"
    path.write_bytes(b"once" * (PAGES * mmap.PAGESIZE // 4))
    system = ctypes.CDLL(None)
    system.mmap.restype, system.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 4]
    system.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    system.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size = PAGES * mmap.PAGESIZE
    with path.open("rb") as file:
        address = system.mmap(None, size, READ | WRITE, PRIVATE, file.fileno(), 0)
    yield (ctypes.c_char * size).from_address(address)
    system.munmap(address, size)


def seal(constants: ctypes.Array) -> None:
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(ctypes.addressof(constants)), len(constants), READ) == 0


def test_a_librarys_pages_leave_and_are_read_again(constants: ctypes.Array) -> None:
    seal(constants)
    whole = bytes(constants)
    assert resident("libtale") == PAGES * mmap.PAGESIZE // 1024
    memory.forget_library("libtale")
    assert resident("libtale") == 0
    assert bytes(constants) == whole


def test_what_was_written_into_a_library_stays(constants: ctypes.Array) -> None:
    """As the loader does with addresses: the file does not have them, so its pages must not be taken for the file's."""
    constants[5 * mmap.PAGESIZE] = b"T"
    seal(constants)
    memory.forget_library("libtale")
    assert constants[5 * mmap.PAGESIZE] == b"T"
    assert [file.is_clean for file in memory.mapped_files() if "libtale" in file.path] == [False]


def test_only_whole_pages_are_forgotten(constants: ctypes.Array) -> None:
    """What shares a page with something else may be in use there."""
    bytes(constants)
    begin = ctypes.addressof(constants)
    memory.forget(range(begin + 1, begin + 3 * mmap.PAGESIZE + 9))
    assert resident("libtale") == (PAGES - 2) * mmap.PAGESIZE // 1024
    memory.forget(range(begin + 1, begin + 9))
    assert resident("libtale") == (PAGES - 2) * mmap.PAGESIZE // 1024


def test_another_librarys_pages_stay(constants: ctypes.Array) -> None:
    seal(constants)
    bytes(constants)
    memory.forget_library("tale")
    memory.forget_library("libtales")
    assert resident("libtale") == PAGES * mmap.PAGESIZE // 1024


def test_torch_computes_the_same_after_its_code_has_left() -> None:
    numbers = torch.arange(64.0).reshape(8, 8).sin()
    before, code = numbers @ numbers, resident("libtorch_cpu")
    memory.settle()
    assert resident("libtorch_cpu") < code / 2
    assert torch.equal(numbers @ numbers, before)


def test_where_nothing_is_told_of_memory_nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "MAPS", tmp_path / "smaps")
    assert memory.mapped_files() == []
    memory.settle()


@pytest.mark.parametrize("name", ["quill", "brush"])
def test_opening_a_model_needs_no_compiler_of_torchs(name: str) -> None:
    """Numbers drawn for weights that are not there would import it, 42 MB and half a second."""
    unwanted = {"torch._dynamo", "sympy", "numba"}
    code = f"import sys, diptych; diptych.load({name!r}); print({unwanted} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
