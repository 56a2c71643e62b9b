"""Parquet tables of pictures: a column of encoded pictures and one of captions, as image data sets are published.

The column of pictures holds bytes, or a struct with the field `bytes` (the `Image` feature of Hugging Face's datasets).
The smallest part of such a file that can be read alone is a row group; a few of them stay in memory. Tables whose row
groups are small (some hundred pictures) are read fast in any order, others should be read in turn, as a cache of
latents does.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.spelling import unknown
from diptych.data.pictures import CAPTION_KEYS, captions_in, digest_of, file_facts, in_turn
from diptych.data.trouble import Troubles
from diptych.image.photo import decode_picture, picture_size


@dataclass(frozen=True, eq=False)
class PictureTable:
    """`groups[i]` is (file, number of the row group in it); picture numbers `starts[i]` on lie there. `text` is the
    column of captions, "" for none."""

    files: tuple[Path, ...]
    groups: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]
    count: int
    image: str
    text: str
    key: str

    def __len__(self) -> int:
        return self.count

    def _place(self, index: int) -> tuple[Path, int, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        place = bisect_right(self.starts, index) - 1
        file, group = self.groups[place]
        return self.files[file], group, index - self.starts[place]

    def name(self, index: int) -> str:
        path, group, row = self._place(index)
        return f"{path}, row {row} of row group {group}"

    def _encoded(self, index: int) -> BytesIO:
        path, group, row = self._place(index)
        value = _pictures(path, group, self.image)[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise ValueError(f"its column '{self.image}' holds no bytes")
        return BytesIO(value)

    def size(self, index: int) -> tuple[int, int]:
        return picture_size(self._encoded(index))

    def read(self, index: int) -> np.ndarray:
        return np.asarray(decode_picture(self._encoded(index)))

    def caption(self, index: int, sight: int = 0) -> str:
        if not self.text:
            return ""
        path, group, row = self._place(index)
        return in_turn(captions_in(_texts(path, group, self.text)[row].as_py()), index, sight)


def picture_table(files: list[Path], image: str, caption: str | None, troubles: Troubles) -> PictureTable:
    """The rows of these files, in their order. A file that cannot be opened is skipped and counted.

    Args:
        image: the column of pictures.
        caption: the column of captions; "text" or "caption" unless named, and none where there is neither.

    Raises:
        ValueError: pyarrow is not installed, a column is missing, or there is no row.
    """
    groups: list[tuple[int, int]] = []
    rows: list[int] = []
    text: str | None = caption
    parquet = _parquet()
    for number, path in enumerate(files):
        try:
            metadata = parquet.read_metadata(path)
        except (ValueError, OSError) as error:
            troubles.skip(str(path), f"not a Parquet file that can be read: {str(error).splitlines()[0]}")
            continue
        troubles.saw(metadata.num_rows)
        columns = metadata.schema.to_arrow_schema().names
        if text is None:
            text = next((key for key in CAPTION_KEYS if key in columns), "")
        for column in filter(None, (image, text)):
            if column not in columns:
                raise unknown(f"column of '{path}'", column, columns)
        for group in range(metadata.num_row_groups):
            groups.append((number, group))
            rows.append(metadata.row_group(group).num_rows)
    if not sum(rows):
        raise ValueError(f"there is no picture in {', '.join(map(str, files[:3]))}")
    starts = tuple(accumulate(rows[:-1], initial=0))
    key = digest_of([image, *((path.name, *file_facts(path)) for path in files)])
    return PictureTable(tuple(files), tuple(groups), starts, sum(rows), image, text or "", key)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ValueError(
            "reading Parquet needs the package pyarrow, which is not installed: pip install pyarrow"
        ) from error
    return parquet


def _column(path: Path, group: int, name: str) -> Any:
    with _parquet().ParquetFile(path) as opened:
        return opened.read_row_group(group, columns=[name], use_threads=False).column(0)


@lru_cache(maxsize=4)
def _pictures(path: Path, group: int, name: str) -> Any:
    return _column(path, group, name)


@lru_cache(maxsize=256)
def _texts(path: Path, group: int, name: str) -> Any:
    return _column(path, group, name)
