"""Folders of picture files: captions lie beside them, or a `metadata.jsonl` names each file and its caption.

Beside `cat.jpg`, `cat.txt` or `cat.caption` holds one caption a line; a picture without such a file has none. A
`metadata.jsonl` has one JSON object a line, with `file_name` relative to its folder (the layout of image folders on the
Hugging Face hub), and pictures that it does not name are not read.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from diptych.data.pictures import SUFFIXES, captions_from, captions_of, digest_of, file_facts, in_turn
from diptych.data.trouble import Troubles
from diptych.image.photo import decode_picture, picture_size

BESIDE = (".txt", ".caption")


@dataclass(frozen=True, eq=False)
class PictureFolder:
    """`names` are paths below `root`; `captions` holds those of each picture, or None where they lie beside it."""

    root: Path
    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...] | None
    key: str

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.root / self.names[index])

    def size(self, index: int) -> tuple[int, int]:
        with (self.root / self.names[index]).open("rb") as file:
            return picture_size(file)

    def read(self, index: int) -> np.ndarray:
        with (self.root / self.names[index]).open("rb") as file:
            return np.asarray(decode_picture(file))

    def caption(self, index: int, sight: int = 0) -> str:
        if self.captions is not None:
            return in_turn(self.captions[index], index, sight)
        picture = self.root / self.names[index]
        for suffix in BESIDE:
            beside = picture.with_suffix(suffix)
            if beside.is_file():
                try:
                    return in_turn(captions_from(beside.read_text(encoding="utf-8-sig")), index, sight)
                except UnicodeDecodeError as error:
                    raise ValueError(f"its caption {beside.name} is not UTF-8 text") from error
        return ""


def picture_folder(root: Path) -> PictureFolder:
    """The picture files in a folder and in those below it, in the order of their paths; hidden ones are left out.

    Raises:
        ValueError: there are none.
    """
    names = sorted(_below(root))
    if not names:
        raise ValueError(f"folder '{root}' has no pictures ({', '.join(SUFFIXES)})")
    return PictureFolder(root, tuple(names), None, _key(root, names))


def _below(root: Path) -> Iterator[str]:
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _key(root: Path, names: list[str]) -> str:
    return digest_of((name, *file_facts(root / name)) for name in names)


def listed_pictures(listing: Path, caption: str | None, troubles: Troubles) -> PictureFolder:
    """The pictures that a `metadata.jsonl` names, in its order. A broken line, and one whose picture is missing, is
    skipped and counted.

    Args:
        caption: the key of the captions; "text" or "caption" unless named.

    Raises:
        ValueError: no picture is left, or no line has `caption`.
    """
    names: list[str] = []
    captions: list[tuple[str, ...]] = []
    has_caption = caption is None
    with listing.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = _record(line)
                words = captions_of(record, caption)
                name = _file_name(listing.parent, record)
            except ValueError as error:
                troubles.skip(f"{listing}, line {number}", str(error))
                continue
            troubles.saw()
            has_caption = has_caption or caption in record
            names.append(name)
            captions.append(words)
    if not names:
        raise ValueError(f"'{listing}' names no picture")
    if not has_caption:
        raise ValueError(f"no line of '{listing}' has the key '{caption}'")
    return PictureFolder(listing.parent, tuple(names), tuple(captions), _key(listing.parent, names))


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def _file_name(root: Path, record: dict[str, Any]) -> str:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError("it has no file_name")
    if PurePosixPath(name).is_absolute() or Path(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"its file_name must lie below the folder, not '{name}'")
    if "\0" in name or not (root / name).is_file():
        raise ValueError(f"there is no picture '{name}'")
    return name
