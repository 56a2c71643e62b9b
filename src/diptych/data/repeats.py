"""Documents that were met before: told by a hash, so that a set of a hundred million of them fits into memory.

Two documents are the same where they differ in nothing but white space and the way Unicode composes a letter. 128 bits
of BLAKE2 (Aumasson et al. 2013): for a billion documents the odds of a false repeat are below 10^-20.
"""

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

SIZE = 16  # bytes of a digest


def digest(text: str) -> bytes:
    """Of the text as it is written."""
    return hashlib.blake2b(text.encode(), digest_size=SIZE).digest()


def digest_of_words(text: str) -> bytes:
    """Of its words alone: NFC, one space between them."""
    return digest(" ".join(unicodedata.normalize("NFC", text).split()))


def first_met(digests: Iterable[bytes], seen: set[bytes]) -> np.ndarray:
    """Which of the digests were not in `seen` nor earlier among them, bool; `seen` then holds them all."""
    is_new = []
    for one in digests:
        is_new.append(one not in seen)
        seen.add(one)
    return np.array(is_new, dtype=bool)
