"""Text files of the user's own, read one document at a time: plain, JSON lines, Parquet, or a folder of them.

A corpus is named by its path; `#field` at the end names the field or column that holds the text ("tales.jsonl#story",
"text" unless said). Plain text is brought to the written style of stories; what comes in a field is kept as it is. A
broken line or row is left out and named; empty ones are left out in silence.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diptych.core.spelling import nearest, unknown
from diptych.data.hub_texts import is_saved, read_saved
from diptych.data.style import clean, is_whole, is_wrapped, unwrap
from diptych.data.text_values import FIELD, take
from diptych.data.trouble import Troubles

SEPARATOR = "<|endoftext|>"
BOM = b"\xef\xbb\xbf"
BLOCK = 2**20  # bytes of plain text read at once
ROWS = 1000  # of Parquet read at once


def looks_like_path(name: str) -> bool:
    """Whether a corpus is named by its path and not by the name of a known one."""
    path, _ = path_and_field(name)
    return "/" in name or path.is_dir() or _kind(path) is not None


def path_and_field(name: str) -> tuple[Path, str | None]:
    """ "tales.jsonl#story" -> the path and "story"; None where no field is named. An existing path may hold a `#`."""
    path, mark, field = name.rpartition("#")
    if not mark or Path(name).exists():
        return Path(name), None
    if not path or not field:
        raise ValueError(f"corpus '{name}' must be a path, '#' and the name of a field, like tales.jsonl#story")
    return Path(path), field


def read_path(path: Path, field: str | None, troubles: Troubles) -> Iterator[str]:
    """The documents of a file, or of the files below a folder in the order of their names.

    Raises:
        ValueError: nothing to read is there, it cannot be read, or it has no such column.
        TooManyBroken: see `troubles`.
    """
    if path.is_dir() and is_saved(path):
        yield from read_saved(path, None, field, str(path), troubles)
        return
    if not path.exists():
        raise ValueError(f"corpus file '{path}' is missing")
    files = files_below(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"folder '{path}' has no {', '.join(READERS)} file")
    for file in files:
        kind = _kind(file)
        if kind is None:
            raise ValueError(f"corpus file '{file}' must be one of {', '.join(READERS)}, or a folder of them")
        if kind == ".txt" and field and file == path:
            raise ValueError(f"'{file}' is plain text and has no field '{field}'")
        yield from READERS[kind](file, field or FIELD, troubles)


def files_below(folder: Path) -> list[Path]:
    """The files below a folder that can be read, by name; what is hidden is left alone."""
    return sorted(
        path
        for path in folder.rglob("*")
        if _kind(path) and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _kind(path: Path) -> str | None:
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)


def _plain(path: Path, field: str, troubles: Troubles) -> Iterator[str]:
    """Pieces between separators, or all of the file, in the written style; short ones and mojibake go in silence."""
    with path.open("rb") as opened:
        for number, piece in enumerate(_pieces(opened, SEPARATOR.encode()), 1):
            try:
                text = piece.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
            except UnicodeDecodeError as error:
                why = f"is not UTF-8 text: {error.reason} at byte {error.start}"
                troubles.skip(f"{path}, document {number}", why)
                continue
            troubles.saw()
            text = clean(unwrap(text) if is_wrapped(text) else text)
            if is_whole(text):
                yield text


def _pieces(opened: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """As `split`, without reading all of the file first."""
    waiting: list[bytes] = []  # of a piece whose end has not been read; joined once, as a piece may be very long
    tail, overlap = b"", len(separator) - 1
    while block := opened.read(BLOCK):
        if separator in tail + block:
            *whole, rest = b"".join([*waiting, block]).split(separator)
            yield from whole
            waiting, tail = [rest], rest[-overlap:]
        else:
            waiting.append(block)
            tail = (tail + block)[-overlap:]
    yield b"".join(waiting)


def _lines(path: Path, field: str, troubles: Troubles) -> Iterator[str]:
    """JSON lines: an object a line, UTF-8; blank lines are nothing."""
    is_packed = path.name.lower().endswith(".gz")
    number = 0
    try:
        with gzip.open(path) if is_packed else path.open("rb") as opened:
            for number, line in enumerate(opened, 1):
                if number == 1:
                    line = line.removeprefix(BOM)
                if line.strip():
                    yield from take(*_field_of(line, field), f"{path}, line {number}", troubles)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        if not number:
            raise ValueError(f"corpus file '{path}' cannot be read: {error}") from error
        troubles.skip(f"{path}, after line {number}", f"the rest cannot be unpacked: {error}")


def _field_of(line: bytes, field: str) -> tuple[object, str | None]:
    """What a line holds in the field, and what is wrong with the line."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 text: {error.reason} at byte {error.start}"
    except json.JSONDecodeError as error:
        return None, f"is not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        return None, f"is not JSON that can be read: {error}"
    if not isinstance(record, dict):
        return None, "is JSON but no object with fields"
    if field not in record:
        guess = nearest(field, record)
        return None, f"has no field '{field}'" + (f"; did you mean '{guess}'?" if guess else "")
    return record[field], None


def _parquet(path: Path, field: str, troubles: Troubles) -> Iterator[str]:
    """One column, a thousand rows at a time. Bytes are taken for UTF-8, as older writers do not mark text."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("Parquet needs the package 'pyarrow': pip install 'diptych[data]'") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as opened:
            schema = opened.schema_arrow
            if field not in schema.names:
                raise ValueError(f"'{path}': {unknown('column', field, schema.names)}")
            kind = schema.field(field).type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if str(kind) not in {"string", "large_string", "string_view", "binary", "large_binary", "binary_view"}:
                raise ValueError(f"'{path}': column '{field}' holds {kind}, not text")
            for group in range(opened.num_row_groups):
                for rows in opened.iter_batches(ROWS, row_groups=[group], columns=[field]):
                    for value in _bytes(rows.column(0), pyarrow):
                        number += 1
                        yield from take(value, None, f"{path}, row {number}", troubles)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"corpus file '{path}' cannot be read after row {number}: {_line(error)}") from error


def _bytes(column: Any, pyarrow: Any) -> list[bytes | None]:
    """Values as bytes: pyarrow gives a whole column up where one value is not UTF-8."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return values


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


READERS: dict[str, Callable[[Path, str, Troubles], Iterator[str]]] = {
    ".txt": _plain,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".parquet": _parquet,
}
