"""Texts from Hugging Face `datasets`: streamed from the hub, saved by `save_to_disk`, or any folder it can build from.

A data set is named `hf:owner/name:config:split#field`. What is left out at the end falls away: the default
configuration, the split "train", the field "text"; `hf:owner/name::validation` names a split alone. `[:N]` after the
split, as `datasets` itself writes it, takes the first N rows of what may have no end. In place of `owner/name` may
stand the path of a folder.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from diptych.core.spelling import unknown
from diptych.data.text_values import FIELD, take
from diptych.data.trouble import Troubles

PREFIX = "hf:"
ROWS = 1000  # read at once
NAME = re.compile(
    r"(?P<path>[^:#\[\]]+)(?::(?P<config>[^:#\[\]]*))?(?::(?P<split>[^:#\[\]]+))?(?:\[:(?P<first>\d+)\])?"
)


class DataSet(NamedTuple):
    """A name taken apart; None is what was not said."""

    path: str
    config: str | None
    split: str | None
    first: int | None
    field: str | None


def parse(name: str) -> DataSet:
    """`hf:owner/name:config:split[:N]#field`.

    Raises:
        ValueError: another form.
    """
    described, mark, field = name.removeprefix(PREFIX).partition("#")
    found = NAME.fullmatch(described)
    if found is None or (mark and not field):
        raise ValueError(f"'{name}' must have the form hf:owner/name:config:split[:N]#field")
    first = int(found["first"]) if found["first"] else None
    return DataSet(found["path"], found["config"] or None, found["split"], first, field or None)


def local_folder(name: str) -> Path | None:
    """The folder that a data set is read from; None where it is streamed from the hub."""
    path = Path(parse(name).path)
    return path if path.is_dir() else None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` has written a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_data_set(name: str, troubles: Troubles) -> Iterator[str]:
    """The documents of a data set named as above, as they come.

    Raises:
        ValueError: it is not there, cannot be read, or has no such configuration, split or column.
        TooManyBroken: see `troubles`.
    """
    source = parse(name)
    folder = local_folder(name)
    if folder is not None and is_saved(folder):
        yield from read_saved(folder, source.split, source.field, name, troubles, source.first)
        return
    datasets = _datasets()
    with _one_line(f"'{name}' cannot be read"):
        rows = datasets.load_dataset(source.path, source.config, split=source.split or "train", streaming=True)
    yield from _documents(rows, source.field, name, troubles, source.first)


def read_saved(
    folder: Path, split: str | None, field: str | None, name: str, troubles: Troubles, first: int | None = None
) -> Iterator[str]:
    """The documents of a folder that `save_to_disk` has written; `name` is what messages call it."""
    datasets = _datasets()
    with _one_line(f"'{name}' cannot be read"):
        saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, dict):
        if (split or "train") not in saved:
            raise ValueError(f"'{name}': {unknown('split', split or 'train', saved)}")
        saved = saved[split or "train"]
    elif split:
        raise ValueError(f"'{name}' is one data set without splits; leave '{split}' out")
    yield from _documents(saved, field, name, troubles, first)


def _documents(rows: Any, field: str | None, name: str, troubles: Troubles, first: int | None) -> Iterator[str]:
    field = field or FIELD
    for number, value in enumerate(islice(_values(rows, field, name), first), 1):
        yield from take(value, None, f"{name}, row {number}", troubles)


def _values(rows: Any, field: str, name: str) -> Iterator[object]:
    """One column; the others are not even decoded where the names of columns are known beforehand."""
    known = rows.column_names
    if known is not None and field in known:
        rows = rows.select_columns([field])
    batches = rows.iter(batch_size=ROWS)
    while True:
        with _one_line(f"'{name}' cannot be read on"):
            batch = next(batches, None)
        if batch is None:
            return
        if field not in batch:
            raise ValueError(f"'{name}': {unknown('column', field, batch)}")
        yield from batch[field]


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What the library below raises, of many types and many lines, as one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {' '.join(str(error).split())}") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("data sets need the package 'datasets': pip install 'diptych[data]'") from error
    return datasets
