"""Corpora: where texts come from, each brought to one written style, one document a string.

The style: ASCII quotes, spaced dashes, Unicode NFC, one space between words, paragraphs separated by one line break.
A corpus is a folder under `$DIPTYCH_DATA` that one function here knows how to read, or any `.txt` file or folder of
`.txt` files named by its path.
"""

import csv
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from diptych.core.spelling import unknown
from diptych.data.casing import Casing, Openings
from diptych.data.folders import folder

Part = Literal["train", "validation", "all"]
SEPARATOR = "<|endoftext|>"
SHORTEST = 200  # characters of a document worth keeping

MOJIBAKE = {
    "â€œ": '"', "â€\x9d": '"', "â€™": "'", "â€˜": "'", "â€“": "-", "â€”": "-", "â€¦": "...", "â€": '"',
    "ã©": "é", "ã±": "ñ", "ã³": "ó", "ã¡": "á", "Ã©": "é", "Ã±": "ñ", "Ã³": "ó", "Ã¡": "á",
}  # fmt: skip
BROKEN = re.compile(r"\ufffd|[ÃÂ][\x80-\xff€™œ]|â[€\x80-\xff ,.]|\bâ\b")
STYLE = str.maketrans(
    {**dict.fromkeys("“”„‟«»″", '"'), **dict.fromkeys("‘’‚‛′`´", "'"), "…": "...", "\u00ad": None, "\ufeff": None}
)
CHAPTER = re.compile(r"^(?:CHAPTER|BOOK|PART|STORY)\s+(?:[IVXLC]+|\d+)\b.*$", re.MULTILINE)


def documents(name: str, part: Part = "all") -> list[str]:
    """The cleaned documents of a corpus, in a fixed order, without repetitions.

    Args:
        name: a corpus's folder name (see CORPORA), or the path of a `.txt` file or of a folder of them (documents are
            separated by `<|endoftext|>` where a file has it, else each file is one).
        part: "train" leaves out what the corpus itself holds out for evaluation, "validation" is only that (empty for
            a corpus that holds nothing out), "all" is both.

    Raises:
        ValueError: for an unknown name, or a folder that is missing or without documents.
    """
    if name in CORPORA:
        train, held_out = _read_corpus(name, folder(name))
    elif name.endswith(".txt") or "/" in name or Path(name).is_dir():
        train, held_out = _plain(Path(name)), []
    else:
        raise unknown("corpus", name, CORPORA)
    chosen = {"train": train, "validation": held_out, "all": [*train, *held_out]}[part]
    kept = list(dict.fromkeys(text for text in map(clean, chosen) if is_whole(text)))
    if not kept and part != "validation":
        raise ValueError(f"corpus '{name}' has no document of at least {SHORTEST} characters")
    return kept


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
        digest = hashlib.blake2b(_key(text).encode(), key=seed.to_bytes(8, "big"), digest_size=8).digest()
        sides[int.from_bytes(digest, "big") < share * 2**64].append(text)
    return sides


def clean(text: str) -> str:
    """One written style (see the top of this file); paragraphs are lines of the result, blank lines go."""
    for broken, right in MOJIBAKE.items():
        if broken in text:
            text = text.replace(broken, right)
    text = unicodedata.normalize("NFC", text).translate(STYLE)
    text = re.sub(r"''(?=\w)|(?<=[\w.,!?])''", '"', text)
    text = re.sub(r"(?<=\d)[–-](?=\d)", "-", text)
    text = re.sub(r"[^\S\n]*(?:--+|[–—―]+)[^\S\n]*", " - ", text)
    text = re.sub(r"\.(?: ?\.){2,}", "...", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def is_whole(text: str) -> bool:
    """Long enough, and free of bytes that were decoded wrongly."""
    return len(text) >= SHORTEST and not BROKEN.search(text)


def unwrap(text: str) -> str:
    """Text with hard line breaks -> one paragraph a line; blank lines mark the paragraphs."""
    return "\n".join(" ".join(block.split()) for block in re.split(r"\n\s*\n", text))


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


def _plain(path: Path) -> list[str]:
    """A `.txt` file, or the `.txt` files below a folder."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"folder '{path}' has no .txt file")
    pieces = [piece for file in files for piece in _read(file).split(SEPARATOR)]
    return [unwrap(piece) if _is_wrapped(piece) else piece for piece in pieces]


def _is_wrapped(text: str) -> bool:
    """Whether lines were broken by width: blank lines between blocks, and no line longer than a page is wide."""
    lines = text.strip().split("\n")
    return "\n\n" in text and max(map(len, lines)) <= 100


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
