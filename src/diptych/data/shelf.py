"""A shelf: the documents of a corpus on disk, in the order in which they were read.

Reading a corpus is slow (JSON, gzip, a download, the restoring of capitals), and ten gigabytes of text do not fit into
memory as Python strings. So it is read once and shelved in the cache: bytes of UTF-8 one after another, where each
document ends, two hashes of each, and the side it falls on. A shelf is kept under a name made of what decides its
content: the corpus, the size and time of its files, the split, and the code that reads. What is streamed from a hub
has no time of change: it is kept until the cache is emptied.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np

from diptych.data import casing, corpora, hub_texts, passkeys, repeats, style, text_files, text_values
from diptych.data.kept import kept
from diptych.data.rendered import cache_directory
from diptych.data.trouble import Trouble, Troubles

READING = (
    casing,
    corpora,
    hub_texts,
    passkeys,
    repeats,
    style,
    text_files,
    text_values,
)  # modules that decide what is read
BUFFER = 2**23  # bytes written at a time


@dataclass(frozen=True, eq=False)
class Shelf(Sequence[str]):
    """Documents `chosen` of a folder that `shelved` has filled; strings are made as they are asked for.

    Args:
        text: all documents' UTF-8, one after another, uint8, mapped from disk.
        ends: document d lies from `ends[d]` to `ends[d + 1]`, int64.
        digests: `repeats.digest` of each, (D, 16) uint8.
        words: `repeats.digest_of_words` of each, (D, 16) uint8.
        characters: of each, int64.
        chosen: indices of the documents that belong to this sequence, int64.
    """

    text: np.ndarray
    ends: np.ndarray
    digests: np.ndarray
    words: np.ndarray
    characters: np.ndarray
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._document(one) for one in self.chosen[index]]
        return self._document(self.chosen[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._document, self.chosen)

    def _document(self, index: int) -> str:
        return self.text[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8")

    def of(self, is_chosen: np.ndarray) -> "Shelf":
        """The documents of this sequence for which `is_chosen` (one bool each) holds."""
        return Shelf(self.text, self.ends, self.digests, self.words, self.characters, self.chosen[is_chosen])

    def hashes_of_words(self) -> Iterator[bytes]:
        return (one.tobytes() for one in self.words[self.chosen])

    def num_characters(self) -> int:
        return int(self.characters[self.chosen].sum())

    def key(self) -> str:
        """A hash of these documents in this order."""
        return hashlib.sha256(self.digests[self.chosen].tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Shelves:
    """The two sides of a corpus; `repeated` documents had been met before in it and were left out."""

    train: Shelf
    held_out: Shelf
    repeated: int


def shelved(name: str, seed: int, share: float, troubles: Troubles, *, holds_out_end: bool = False) -> Shelves:
    """A corpus on its shelf, read now if it was not before.

    Args:
        seed, share: of `corpora.split`.
        holds_out_end: the last `share` of the corpus's characters is held out instead; a document that the border
            falls into becomes two.

    Raises:
        ValueError: as `corpora.read` and `corpora.documents`, or there is no document in it.
        TooManyBroken: see `troubles`, which hears of what was broken also where it was read before.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be a number >= 0 and < 1, not {share}")
    before = Troubles(troubles.share, troubles.few)
    sides = partial(_ends, name, share) if holds_out_end else partial(_sides, name, seed, share)
    key = _key(name, "end" if holds_out_end else seed, share)
    folder = kept(f"texts-{key}", lambda path: _fill(path, name, sides(before), before))
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    _tell(troubles, **about["troubles"])
    arrays = {
        field: np.load(folder / f"{field}.npy", mmap_mode="r", allow_pickle=False)
        for field in ("ends", "digests", "words", "characters", "is_held_out")
    }
    is_held_out = arrays.pop("is_held_out")
    text = np.memmap(folder / "text", dtype=np.uint8, mode="r")
    train, held_out = (Shelf(text, **arrays, chosen=np.flatnonzero(side)) for side in (~is_held_out, is_held_out))
    return Shelves(train, held_out, about["repeated"])


def _fill(folder: Path, name: str, sides: Iterator[tuple[str, bool]], troubles: Troubles) -> None:
    ends, characters, is_held_out = array("q", [0]), array("q"), array("b")
    digests, words = bytearray(), bytearray()
    seen: set[bytes] = set()
    repeated = 0
    with (folder / "text").open("wb", buffering=BUFFER) as opened:
        for text, is_out in sides:
            of_words = repeats.digest_of_words(text)
            if of_words in seen:
                repeated += 1
                continue
            seen.add(of_words)
            ends.append(ends[-1] + opened.write(text.encode()))
            characters.append(len(text))
            is_held_out.append(is_out)
            digests += repeats.digest(text)
            words += of_words
    if not characters:
        raise ValueError(f"corpus '{name}' has no document that can be learned from. {troubles}".rstrip())
    arrays = {
        "ends": np.array(ends, np.int64),
        "characters": np.array(characters, np.int64),
        "is_held_out": np.array(is_held_out, np.int8).astype(bool),
        "digests": np.frombuffer(digests, np.uint8).reshape(-1, repeats.SIZE),
        "words": np.frombuffer(words, np.uint8).reshape(-1, repeats.SIZE),
    }
    for field, values in arrays.items():
        np.save(folder / f"{field}.npy", values, allow_pickle=False)
    told = {"seen": troubles.seen, "count": troubles.count, "named": [list(one) for one in troubles.named]}
    about = {"corpus": name, "repeated": repeated, "troubles": told}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _sides(name: str, seed: int, share: float, troubles: Troubles) -> Iterator[tuple[str, bool]]:
    """Each document, and whether it is held out."""
    if name in corpora.CORPORA:
        for is_out, texts in enumerate(corpora.train_and_validation(name, seed, share)):
            yield from ((text, bool(is_out)) for text in texts)
        return
    for text in corpora.read(name, troubles):
        yield text, corpora.is_held_out(text, seed, share)


def _ends(name: str, share: float, troubles: Troubles) -> Iterator[tuple[str, bool]]:
    """The same where the end of the corpus is held out. It is read twice, once to know how long it is."""
    is_known = name in corpora.CORPORA

    def texts(told: Troubles) -> Iterable[str]:
        return corpora.documents(name) if is_known else corpora.read(name, told)

    total = sum(map(len, texts(Troubles(troubles.share, troubles.few))))
    left = int(total * (1 - share))  # characters to learn from
    for text in texts(troubles):
        border = max(0, min(left, len(text)))
        left -= len(text)
        yield from ((part, is_out) for part, is_out in ((text[:border], False), (text[border:], True)) if part)


def _tell(troubles: Troubles, seen: int, count: int, named: list[list[str]]) -> None:
    """What was broken when the corpus was shelved, told to who reads it now."""
    troubles.seen += seen
    troubles.count += count - len(named)  # these have lost their names
    troubles.add(Trouble(*one) for one in named)


def is_shelved(name: str, seed: int, share: float, *, holds_out_end: bool = False) -> bool:
    """Whether `shelved` would find the corpus on its shelf, and so answer at once."""
    try:
        return (cache_directory() / f"texts-{_key(name, 'end' if holds_out_end else seed, share)}").is_dir()
    except (ValueError, OSError):  # there is no such corpus here
        return False


def _key(name: str, split: int | str, share: float) -> str:
    digest = hashlib.sha256(json.dumps([name, split, share]).encode())
    for module in READING:
        digest.update(Path(str(module.__file__)).read_bytes())
    place = corpora.origin(name)
    if place is not None:
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in filter(Path.is_file, files):
            about = path.stat()
            digest.update(f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]
