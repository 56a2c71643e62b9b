"""The written style that stories are brought to: ASCII quotes, spaced dashes, Unicode NFC, one space between words,
paragraphs separated by one line break."""

import re
import unicodedata

SHORTEST = 200  # characters of a document worth keeping

MOJIBAKE = {
    "â€œ": '"', "â€\x9d": '"', "â€™": "'", "â€˜": "'", "â€“": "-", "â€”": "-", "â€¦": "...", "â€": '"',
    "ã©": "é", "ã±": "ñ", "ã³": "ó", "ã¡": "á", "Ã©": "é", "Ã±": "ñ", "Ã³": "ó", "Ã¡": "á",
}  # fmt: skip
BROKEN = re.compile(r"\ufffd|[ÃÂ][\x80-\xff€™œ]|â[€\x80-\xff ,.]|\bâ\b")
STYLE = str.maketrans(
    {**dict.fromkeys("“”„‟«»″", '"'), **dict.fromkeys("‘’‚‛′`´", "'"), "…": "...", "\u00ad": None, "\ufeff": None}
)


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


def is_wrapped(text: str) -> bool:
    """Whether lines were broken by width: blank lines between blocks, and no line longer than a page is wide."""
    lines = text.strip().split("\n")
    return "\n\n" in text and max(map(len, lines)) <= 100
