"""Messages for a word that is not known: what was said, what was probably meant, what is allowed."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None when nothing is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(kind: str, word: str, known: Iterable[str], *, guess: str | None = None) -> ValueError:
    """The error for an unknown word of a kind ("sampler", "model", "key"), with the nearest right one, or with `guess`
    of somebody who knows better."""
    known = list(known)
    guess = guess or nearest(word, known)
    hint = f"; did you mean '{guess}'? Known" if guess else "; known"
    return ValueError(f"unknown {kind} '{word}'{hint}: {', '.join(known)}")
