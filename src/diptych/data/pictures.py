"""Sets of captioned pictures: wherever they lie, any one of them is read by its number.

`open_pictures` looks at what a path holds and opens the reader for it. A reader knows every picture's place before the
first is read, so nothing is ever replayed; it pickles, because training reads in other processes; and what is broken
comes out as a `ValueError` of that picture alone.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diptych.core.randomness import generator
from diptych.data import folders
from diptych.data.trouble import Troubles

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CAPTION_KEYS = ("text", "caption")  # under which a caption is looked for unless one is named
SPLIT = 20  # stream of randomness


class PictureSet(Protocol):
    """Captioned pictures, numbered from 0.

    `size`, `read` and `caption` raise `ValueError` or `OSError` where that one picture is broken.
    """

    @property
    def key(self) -> str:
        """16 hexadecimal digits that change when a picture does (captions do not count)."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The picture as its owner would find it, for messages."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels, upright, without decoding the picture."""
        ...

    def read(self, index: int) -> np.ndarray:
        """RGB, (H, W, 3), uint8."""
        ...

    def caption(self, index: int, sight: int = 0) -> str:
        """What is to be read with the picture when it is seen for the `sight`-th time (from 0); "" for nothing."""
        ...


def open_pictures(
    where: str | Path,
    *,
    caption: str | None = None,
    image: str = "image",
    wording: str = "a picture of {name}",
    troubles: Troubles | None = None,
) -> PictureSet:
    """The pictures under a path.

    Args:
        where: a folder of pictures with captions beside them, or with a `metadata.jsonl`; a `.tar`, a `.parquet`, an
            IDX file of images, or a folder of them; a pattern such as `shards/*.tar`. What does not exist is looked
            for under DIPTYCH_DATA, too.
        caption: key or column that holds the captions, for metadata, tars with JSON and Parquet; "text" or "caption"
            unless named.
        image: column of Parquet that holds the pictures.
        wording: of IDX, whose labels are numbers: `{name}` becomes the name of the class.
        troubles: counts what is found broken on opening.

    Raises:
        ValueError: nothing there, nothing in it, or several kinds of pictures side by side.
        TooManyBroken: as `troubles` allows.
    """
    from diptych.data import idx, picture_folder, picture_parquet, webdataset

    troubles = troubles or Troubles()
    found = _found(str(where))
    folder = found[0] if len(found) == 1 and found[0].is_dir() else None
    files = sorted(entry for entry in folder.iterdir() if entry.is_file()) if folder else found
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(_kind(file), []).append(file)
    kinds.pop("", None)
    if "metadata" in kinds:
        kinds.pop("picture", None)  # which it names
    if len(kinds) > 1:
        raise ValueError(f"'{where}' holds more than one kind of pictures ({', '.join(sorted(kinds))}); name the files")
    kind = next(iter(kinds), "picture" if folder else "")
    if kind == "metadata":
        return picture_folder.listed_pictures(kinds[kind][0], caption, troubles)
    if kind == "tar":
        return webdataset.picture_shards(kinds[kind], caption, troubles)
    if kind == "parquet":
        return picture_parquet.picture_table(kinds[kind], image, caption, troubles)
    if kind == "idx":
        images = [file for file in kinds[kind] if idx.holds_images(file)]
        if len(images) != 1:
            raise ValueError(f"'{where}' must hold one IDX file of images, not {len(images)}; name the file")
        return idx.idx_pictures(images[0], wording)
    if folder:
        return picture_folder.picture_folder(folder)
    raise ValueError(f"'{where}' must be a folder, a .tar, a .parquet, a metadata.jsonl or an IDX file")


def _found(where: str) -> list[Path]:
    """The folder or the files that a path or a pattern names, as it stands or under DIPTYCH_DATA."""
    path = Path(where)
    for root in (Path(), *([] if path.is_absolute() else _data_root())):
        if (root / path).exists():
            return [root / path]
        if "*" in where:
            start = Path(path.anchor) if path.is_absolute() else root
            if matches := sorted(start.glob(str(path.relative_to(path.anchor)))):
                return matches
    raise ValueError(f"there are no pictures at '{where}'")


def _data_root() -> list[Path]:
    try:
        return [folders.root()]
    except ValueError:
        return []


def _kind(file: Path) -> str:
    name = file.name.lower()
    if name == "metadata.jsonl":
        return "metadata"
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    if name.endswith(".parquet"):
        return "parquet"
    if "-ubyte" in name and "idx" in name:
        return "idx"
    return "picture" if name.endswith(SUFFIXES) and not name.startswith(".") else ""


# ---- what the readers share ------------------------------------------------------------------------------------


def digest_of(parts: Iterable[object]) -> str:
    """16 hexadecimal digits of these things in this order, each as its bytes or as its text."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part if isinstance(part, bytes) else str(part).encode("utf-8", errors="surrogateescape"))
        hashed.update(b"\0")
    return hashed.hexdigest()[:16]


def file_facts(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns): what a key knows of a file without reading it."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def captions_in(value: Any) -> tuple[str, ...]:
    """The captions that a cell or a JSON value holds: a text, a list of texts, or nothing.

    Raises:
        ValueError: anything else.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (value.strip(),)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(one.strip() for one in value)
    raise ValueError(f"its caption must be a text or a list of texts, not {str(value)[:40]!r}")


def captions_of(record: dict[str, Any], key: str | None) -> tuple[str, ...]:
    """The captions of a JSON object: under `key`, or under the first of `CAPTION_KEYS` that it has."""
    keys = CAPTION_KEYS if key is None else (key,)
    return captions_in(next((record[one] for one in keys if one in record), None))


def captions_from(text: str) -> tuple[str, ...]:
    """The captions of a text file: one a line."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def in_turn(captions: Sequence[str], index: int, sight: int) -> str:
    """One of a picture's captions: each comes once before one comes again, and pictures begin with different ones."""
    return captions[(index + sight) % len(captions)] if captions else ""


# ---- parts of a set --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Subset:
    """Some pictures of a set, numbered anew."""

    whole: PictureSet
    indices: np.ndarray

    @property
    def key(self) -> str:
        return digest_of([self.whole.key, self.indices.tobytes()])

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.whole.name(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        return self.whole.size(int(self.indices[index]))

    def read(self, index: int) -> np.ndarray:
        return self.whole.read(int(self.indices[index]))

    def caption(self, index: int, sight: int = 0) -> str:
        return self.whole.caption(int(self.indices[index]), sight)


def hold_out(pictures: PictureSet, count: int, seed: int) -> tuple[Subset, Subset]:
    """(all but `count` pictures, `count` pictures drawn evenly from the whole set), each in the set's own order.

    Raises:
        ValueError: where nothing would be left.
    """
    if not 0 <= count < len(pictures):
        raise ValueError(f"held_out must be from 0 to below the number of pictures ({len(pictures)}), not {count}")
    order = generator(seed=seed, stream=SPLIT).permutation(len(pictures))
    return Subset(pictures, np.sort(order[count:])), Subset(pictures, np.sort(order[:count]))
