"""The pieces in a SentencePiece file (Kudo & Richardson 2018), which T5's vocabulary is published in.

The file is one message of protocol buffers: fields, each a number and a kind of value in one varint, then the value.
Three fields are all that is needed here: the pieces, what is unknown, and the table that normalises characters.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # kinds of value
UNKNOWN = 2  # type of a piece


def read_pieces(path: Path) -> tuple[list[tuple[str, float]], int, bytes]:
    """The pieces with their log-probabilities, the place of the unknown one, and the table of characters.

    Raises:
        ValueError: a file that is no SentencePiece model of unigrams.
    """
    pieces: list[tuple[str, float]] = []
    unknown, charsmap = None, b""
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                entries = dict(_fields(value))
                name, score = entries[1], entries.get(2, b"\0\0\0\0")
                if not isinstance(name, bytes) or not isinstance(score, bytes):
                    raise IndexError
                if entries.get(3) == UNKNOWN:
                    unknown = len(pieces)
                pieces.append((name.decode(), struct.unpack("<f", score)[0]))
            elif number == 2 and isinstance(value, bytes) and dict(_fields(value)).get(3, 1) != 1:
                raise ValueError(f"'{path}' is no SentencePiece model of unigrams")
            elif number == 3 and isinstance(value, bytes):
                table = dict(_fields(value)).get(2, b"")
                charsmap = table if isinstance(table, bytes) else b""
    except (IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"'{path}' is damaged or no SentencePiece file") from error
    if not pieces or unknown is None:
        raise ValueError(f"'{path}' is no SentencePiece file: it has no pieces, or none for what is unknown")
    return pieces, unknown, charsmap


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number and value, whole numbers as such, everything else as its bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == BYTES:
            size, place = _varint(message, place)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if kind == EIGHT_BYTES else 4
        else:
            raise IndexError
        if place + size > len(message):
            raise IndexError
        yield number, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise IndexError
