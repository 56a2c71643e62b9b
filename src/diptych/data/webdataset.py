"""WebDataset shards: plain `.tar` files in which the members of one sample share their name up to the first dot.

`000123.jpg` and `000123.txt` are a picture and its caption; `000123.json` may hold the caption, too. Shards are usually
read from front to back; here the places of all members are noted once (and kept in the cache folder), and then any
sample is one seek away.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.core.files import write_atomically
from diptych.data.pictures import SUFFIXES, captions_from, captions_of, digest_of, file_facts, in_turn
from diptych.data.rendered import cache_directory
from diptych.data.trouble import Trouble, Troubles
from diptych.image.photo import decode_picture, picture_size

WRITTEN = (".txt", ".caption", ".json")  # where captions are, the first that there is counts
INDEX_VERSION = 1


class Member(NamedTuple):
    """Bytes `start` to `start + length` of a shard; a sample without a caption has one of no suffix."""

    suffix: str
    start: int
    length: int


class Sample(NamedTuple):
    name: str
    picture: Member
    caption: Member


NOTHING = Member("", 0, 0)


@dataclass(frozen=True, eq=False)
class PictureShards:
    """`samples[i]` is (number of its shard, sample)."""

    shards: tuple[Path, ...]
    samples: tuple[tuple[int, Sample], ...]
    caption_key: str | None
    key: str

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        shard, sample = self.samples[index]
        return f"{self.shards[shard]}, sample {sample.name}"

    def _bytes(self, index: int, member: Member) -> bytes:
        with self.shards[self.samples[index][0]].open("rb") as file:
            file.seek(member.start)
            return file.read(member.length)

    def size(self, index: int) -> tuple[int, int]:
        member = self.samples[index][1].picture
        with self.shards[self.samples[index][0]].open("rb") as file:
            return picture_size(_Part(file, member))  # type: ignore[arg-type]

    def read(self, index: int) -> np.ndarray:
        return np.asarray(decode_picture(BytesIO(self._bytes(index, self.samples[index][1].picture))))

    def caption(self, index: int, sight: int = 0) -> str:
        member = self.samples[index][1].caption
        if not member.suffix:
            return ""
        try:
            text = self._bytes(index, member).decode("utf-8-sig")
            record = json.loads(text) if member.suffix == ".json" else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its {member.suffix} is not UTF-8 text or not JSON") from error
        if member.suffix != ".json":
            return in_turn(captions_from(text), index, sight)
        if not isinstance(record, dict):
            raise ValueError("its .json is not a JSON object")
        return in_turn(captions_of(record, self.caption_key), index, sight)


def picture_shards(shards: list[Path], caption_key: str | None, troubles: Troubles) -> PictureShards:
    """The samples of these shards, in their order. A sample without a picture is skipped and counted, and so is the
    rest of a shard that is cut off.

    Args:
        caption_key: of the captions in `.json` members; "text" or "caption" unless named.

    Raises:
        ValueError: a compressed shard, which cannot be read at any place; no sample at all.
    """
    samples: list[tuple[int, Sample]] = []
    for number, shard in enumerate(shards):
        found, broken = _indexed(shard)
        troubles.saw(len(found))
        for where, why in broken:
            troubles.skip(f"{shard}, {where}" if where else str(shard), why)
        samples += [(number, sample) for sample in found]
    if not samples:
        raise ValueError(f"there is no sample with a picture in {', '.join(map(str, shards[:3]))}")
    key = digest_of((shard.name, *file_facts(shard)) for shard in shards)
    return PictureShards(tuple(shards), tuple(samples), caption_key, key)


def _indexed(shard: Path) -> tuple[list[Sample], list[Trouble]]:
    """The samples of a shard and what is broken in it, from the cache or read now."""
    name = digest_of([INDEX_VERSION, shard.resolve(), *file_facts(shard)])
    kept = cache_directory() / f"webdataset-{name}.json"
    if kept.is_file():
        index: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        samples = [Sample(name, Member(*picture), Member(*caption)) for name, picture, caption in index["samples"]]
        return samples, [Trouble(*one) for one in index["broken"]]
    samples, broken = _index(shard)
    write_atomically(kept, json.dumps({"samples": samples, "broken": broken}).encode())
    return samples, broken


def _index(shard: Path) -> tuple[list[Sample], list[Trouble]]:
    broken: list[Trouble] = []
    groups: dict[str, dict[str, Member]] = {}
    for name, member in _members(shard, broken):
        folder, slash, file = name.rpartition("/")
        base, _, suffix = file.partition(".")
        if not base:
            continue  # a hidden file
        group = groups.setdefault(f"{folder}{slash}{base}", {})
        if group.setdefault(f".{suffix.lower()}", member) is not member:
            broken.append(Trouble(f"member {name}", "its name comes twice"))
    samples = []
    for name, group in groups.items():
        picture = next((group[suffix] for suffix in SUFFIXES if suffix in group), None)
        if picture is None:
            broken.append(Trouble(f"sample {name}", "it has no picture"))
        else:
            samples.append(Sample(name, picture, next((group[one] for one in WRITTEN if one in group), NOTHING)))
    return samples, broken


def _members(shard: Path, broken: list[Trouble]) -> Iterator[tuple[str, Member]]:
    """Name and place of each file in a shard, up to where it is damaged."""
    total = shard.stat().st_size
    with shard.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError(f"'{shard}' is compressed, so that no sample can be found without reading all before it")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as opened:
                for info in opened:
                    start = info.offset_data
                    if info.isreg() and not info.sparse and start + info.size <= total:
                        yield info.name, Member("." + info.name.rpartition(".")[2].lower(), start, info.size)
                end = opened.offset
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a broken head for the end
                broken.append(Trouble("", f"damaged from byte {end} on: the rest of it is not read"))
        except (tarfile.TarError, EOFError, OSError) as error:
            broken.append(Trouble("", f"damaged: {error}"))


class _Part:
    """A stretch of a file as a file of its own: a picture's head is read without the rest."""

    def __init__(self, file: Any, member: Member) -> None:
        self.file, self.member, self.place = file, member, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.member.length)[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.member.length - self.place)
        self.file.seek(self.member.start + self.place)
        data: bytes = self.file.read(left if count < 0 else min(count, left))
        self.place += len(data)
        return data
