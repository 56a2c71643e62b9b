"""Corpora: where texts come from, one document a string.

A corpus is a folder under `$DIPTYCH_DATA` that one function here knows how to read and brings to one written style
(`data.style`), or files of the user's own, named by their path (`data.text_files`) or as a data set of Hugging Face
(`data.hub_texts`).
"""

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from diptych.core.spelling import unknown
from diptych.data import passkeys
from diptych.data.casing import Casing, Openings
from diptych.data.folders import folder
from diptych.data.hub_texts import PREFIX, local_folder, read_data_set
from diptych.data.style import clean, is_whole, unwrap
from diptych.data.text_files import SEPARATOR, looks_like_path, path_and_field, read_path
from diptych.data.trouble import Troubles

Part = Literal["train", "validation", "all"]
CHAPTER = re.compile(r"^(?:CHAPTER|BOOK|PART|STORY)\s+(?:[IVXLC]+|\d+)\b.*$", re.MULTILINE)


def documents(name: str, part: Part = "all") -> list[str]:
    """The documents of a corpus, in a fixed order, without repetitions. Nothing in it may be broken.

    Args:
        name: a corpus's folder name (see CORPORA), or what `read` takes.
        part: "train" leaves out what the corpus itself holds out for evaluation, "validation" is only that (empty for
            a corpus that holds nothing out), "all" is both.

    Raises:
        ValueError: for an unknown name, or a folder that is missing or without documents.
    """
    if name in CORPORA:
        train, held_out = _read_corpus(name, folder(name))
        chosen = {"train": train, "validation": held_out, "all": [*train, *held_out]}[part]
        kept = list(dict.fromkeys(text for text in map(clean, chosen) if is_whole(text)))
    else:
        texts = read(name, Troubles(share=0, few=0))
        kept = [] if part == "validation" else list(dict.fromkeys(texts))
    if not kept and part != "validation":
        raise ValueError(f"corpus '{name}' has no document that is long enough")
    return kept


def read(name: str, troubles: Troubles) -> Iterator[str]:
    """The documents of a corpus that is no folder of `$DIPTYCH_DATA`, one after another as they lie there.

    Args:
        name: the path of a `.txt`, `.jsonl`, `.jsonl.gz` or `.parquet` file, of a folder of them, or of a data set
            that `datasets` has saved; or `hf:` and the name of a data set. `#field` at its end names the field or
            column that holds the text, "text" unless said. "passkey:512" is made here (`data.passkeys`).
        troubles: is told of every document, whole or broken.

    Raises:
        ValueError: nothing is there, it cannot be read, or it has no such column.
        TooManyBroken: see `troubles`.
    """
    if name.startswith(PREFIX):
        return read_data_set(name, troubles)
    if name.startswith(passkeys.PREFIX):
        return passkeys.documents(name)
    if looks_like_path(name):
        return read_path(*path_and_field(name), troubles)
    raise unknown("corpus", name, CORPORA)


def origin(name: str) -> Path | None:
    """The file or folder that a corpus is read from; None for a data set that is streamed, or made here."""
    if name in CORPORA:
        return folder(name)
    if name.startswith(PREFIX):
        return local_folder(name)
    if name.startswith(passkeys.PREFIX):
        return None
    return path_and_field(name)[0]


def train_and_validation(name: str, seed: int, share: float = 0.02) -> tuple[list[str], list[str]]:
    """What the corpus holds out where it does; else `split` of all its documents."""
    held_out = documents(name, "validation") if name in CORPORA else []
    if not held_out:
        return split(documents(name), seed, share)
    seen = {_key(text) for text in held_out}
    return [text for text in documents(name, "train") if _key(text) not in seen], held_out


def split(documents: Iterable[str], seed: int, share: float = 0.02) -> tuple[list[str], list[str]]:
    """(train, validation): each document goes by a hash of its own letters, whatever the order of the others.

    Copies that differ only in spacing or case hash alike, so none is on both sides.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be a number >= 0 and < 1, not {share}")
    sides: tuple[list[str], list[str]] = ([], [])
    for text in documents:
        sides[is_held_out(text, seed, share)].append(text)
    return sides


def is_held_out(text: str, seed: int, share: float) -> bool:
    """The side of `split` that a document falls on."""
    digest = hashlib.blake2b(_key(text).encode(), key=seed.to_bytes(8, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


@lru_cache(maxsize=2)
def _read_corpus(name: str, root: Path) -> tuple[list[str], list[str]]:
    return CORPORA[name](root)


def _key(text: str) -> str:
    return re.sub(r"\W+", "", text.lower())


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"corpus file '{path}' is missing")
    try:
        return path.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus file '{path}' is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _tinystories(root: Path) -> tuple[list[str], list[str]]:
    """Stories with capitals and borders, and those of a lower-cased file, whose capitals and borders are restored.

    In the lower-cased file a blank line separates paragraphs and a single line break nearly always stories; in the
    validation file a blank line separates both. `Openings` decides, and what it leaves in doubt is dropped.
    """
    cased = [clean(piece) for piece in _read(root / "train_cased.txt").split(SEPARATOR)[:-1]]
    cased = [story for story in cased if story]
    openings = Openings(story.split("\n") for story in cased)
    casing = Casing(cased)
    seen = set(map(_key, cased))

    lower = re.sub(r"[^\S\n]*\n[^\S\n]*", "\n", _read(root / "train_lower.txt"))
    pieces = [clean(piece) for piece in re.split(r"(?<!\n)\n(?!\n)", lower)]
    found = _stories(pieces, openings, sure=0.0, unsure=-8.0)
    restored = [casing.restore(story) for story in found if _key(story) not in seen]
    paragraphs = clean(_read(root / "valid_cased.txt")).split("\n")
    return [*cased, *restored], list(_stories(paragraphs, openings, sure=0.0, unsure=-4.0))


def _stories(pieces: Iterable[str], openings: Openings, sure: float, unsure: float) -> Iterable[str]:
    """Join pieces to stories; a piece opens a story when its score is above `sure`.

    A piece that scores between `unsure` and `sure` may be either: the story it touches is dropped. So are the first
    and the last story, which may be cut, and stories that do not end like a sentence.
    """
    story: list[str] = []
    is_doubtful = True
    for piece in pieces:
        score = openings.score(piece.split("\n")[0])
        if score > sure:
            if not is_doubtful and story[-1][-1:] in '.!?"':
                yield "\n".join(story)
            story, is_doubtful = [piece], False
        elif piece:
            is_doubtful = is_doubtful or score > unsure
            story.append(piece)


def _african_storybook(root: Path) -> tuple[list[str], list[str]]:
    """Pages of a picture book, under a title and above lines that name authors and licence; NC ones are left out."""
    stories = []
    for path in sorted(root.glob("[0-9]*.md")):
        text = _read(path)
        licence = re.search(r"^\* License: *(.*)$", text, re.MULTILINE)
        if licence is None or re.search(r"\bNC\b", licence.group(1), re.IGNORECASE):
            continue
        body = re.sub(r"^(?:\* .*|# .*)$", "", text, flags=re.MULTILINE)
        stories.append(unwrap(re.sub(r"^##.*$", "\n", body, flags=re.MULTILINE)))
    return stories, []


def _fairytales(root: Path) -> tuple[list[str], list[str]]:
    """Fairy tales in sections; the tales of the questions' test and validation sides are held out."""
    sides: tuple[list[str], list[str]] = ([], [])
    train = {path.name.removesuffix("-questions.csv") for path in (root / "questions" / "train").glob("*.csv")}
    for path in sorted((root / "section-stories").rglob("*-story.csv")):
        with path.open(encoding="utf-8", newline="") as opened:
            text = "\n".join(row["text"].strip("\n") for row in csv.DictReader(opened) if row.get("text"))
        sides[path.name.removesuffix("-story.csv") not in train].append(_rejoin(text))
    return sides


def _rejoin(text: str) -> str:
    """Undo hard line breaks where no blank line marks a paragraph.

    A line was broken when it stops inside a sentence (verse, whose lines are short, is left alone), or when all lines
    are narrow and the next word would not have fitted.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    width = max(map(len, lines), default=0)
    joined = lines[:1]
    for line, following in pairwise(lines):
        is_inside = len(line) >= 50 and line[-1] not in ".!?:'\"*-_)"
        is_full = width <= 100 and width - 6 < len(line) + 1 + len(following.split(" ")[0])
        if is_inside or is_full:
            joined[-1] += " " + following
        else:
            joined.append(following)
    return "\n".join(joined)


def _books(root: Path) -> tuple[list[str], list[str]]:
    """Books of the 19th century by chapter; what stands before the first chapter, headings and captions go."""
    chapters = []
    for path in sorted(root.glob("*.txt")):
        if path.name == "NOTE.txt":
            continue
        for chapter in CHAPTER.split(_read(path))[1:] or [_read(path)]:
            lines = (_paragraph(line) for line in unwrap(chapter).split("\n"))
            chapters.append("\n".join(line for line in lines if line))
    return chapters, []


def _paragraph(line: str) -> str:
    """A paragraph of a book without the marks of the transcriber; "" for a heading, a caption or a row of stars."""
    line = re.sub(r"\[(?:Illustration|Footnote|Picture)[^\]]*\]", "", line).replace("_", "").strip()
    if not re.search(r"[a-z]", line) or re.fullmatch(r"\[.*\]", line):
        return ""
    shouted = re.match(r"(['\"“‘]?)([A-Z][A-Z']+)(?= )", line)
    if shouted:
        line = shouted.group(1) + shouted.group(2).capitalize() + line[shouted.end() :]
    return line


def _speeches(root: Path, speeches_a_document: int = 24) -> tuple[list[str], list[str]]:
    """A play: speaker and verse keep their lines; a document is a run of speeches."""
    speeches = _read(root / "input.txt").split("\n\n")
    starts = range(0, len(speeches), speeches_a_document)
    return ["\n".join(speeches[start : start + speeches_a_document]) for start in starts], []


CORPORA: dict[str, Callable[[Path], tuple[list[str], list[str]]]] = {
    "tinystories": _tinystories,
    "african_storybook_en": _african_storybook,
    "fairytaleqa": _fairytales,
    "chilit": _books,
    "tinyshakespeare": _speeches,
}
