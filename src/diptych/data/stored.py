"""Arrays made once and kept in the cache folder: mapped from disk, made a chunk at a time, taken up where it stopped.

An array's name has to say all that decides its numbers. While it is made, each finished chunk is a file of its own, so
a process that is killed loses one chunk, and two that make the same array at once write the same bytes.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from diptych.core.files import atomic_file
from diptych.data.rendered import cache_directory


@dataclass(frozen=True)
class MappedArray:
    """A `.npy` file that goes to another process as its path, and is mapped there when it is first read."""

    path: Path

    @property
    def array(self) -> np.ndarray:
        """The whole array, read-only; rows come from disk as they are touched."""
        return _mapped(self.path)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of some rows, from the file and not from the mapping: no page of it stays in this process's memory."""
        whole = self.array
        assert isinstance(whole, np.memmap)
        each = whole.dtype.itemsize * int(np.prod(whole.shape[1:]))
        count = (stop - start) * int(np.prod(whole.shape[1:]))
        rows = np.fromfile(self.path, whole.dtype, count, offset=whole.offset + start * each)
        return rows.reshape(stop - start, *whole.shape[1:])

    def some(self, rows: Iterable[int]) -> np.ndarray:
        """The same of rows that lie apart."""
        return np.concatenate([self.read(row, row + 1) for row in rows])

    def __len__(self) -> int:
        return len(self.array)


@lru_cache(maxsize=256)
def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def stored_arrays(
    name: str, fields: Sequence[str], count: int, chunk: int, make: Callable[[range], Sequence[np.ndarray]]
) -> tuple[MappedArray, ...]:
    """The arrays `NAME-FIELD.npy` of the cache folder, made now where one is missing.

    Args:
        name: a name for everything that decides the numbers.
        fields: a word for each array.
        count: items in all, 1 or more.
        chunk: items made, and lost at most, at once.
        make: items -> one array for each field; chunks are joined along the first axis, in which they may differ.
    """
    if count < 1:
        raise ValueError(f"there is nothing to store as '{name}'")
    folder = cache_directory()
    paths = [folder / f"{name}-{field}.npy" for field in fields]
    if not all(path.is_file() for path in paths):
        try:
            _make(paths, folder / f".{name}-{chunk}.parts", count, chunk, make)
        except FileNotFoundError:  # another process was faster, and has cleared the chunks away
            if not all(path.is_file() for path in paths):
                raise
    return tuple(MappedArray(path) for path in paths)


def _make(
    paths: list[Path], waiting: Path, count: int, chunk: int, make: Callable[[range], Sequence[np.ndarray]]
) -> None:
    files = [[waiting / f"{start}-{path.name}" for path in paths] for start in range(0, count, chunk)]
    for start, parts in zip(range(0, count, chunk), files, strict=True):
        if all(part.is_file() for part in parts):
            continue
        waiting.mkdir(exist_ok=True)
        arrays = make(range(start, min(start + chunk, count)))
        for part, array in zip(parts, arrays, strict=True):
            with atomic_file(part) as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
    for path, column in zip(paths, zip(*files, strict=True), strict=True):
        _join(path, column)
    shutil.rmtree(waiting, ignore_errors=True)


def _join(path: Path, parts: Sequence[Path]) -> None:
    arrays = [np.load(part, mmap_mode="r", allow_pickle=False) for part in parts]
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(arrays[0].dtype), "fortran_order": False, "shape": shape}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
