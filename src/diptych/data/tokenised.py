"""Vocabulary, tokens and rows of shelves, made once and mapped from disk.

Folders of the cache: a vocabulary, under a hash of the documents that it was learned from; the tokens of documents,
one document after another, under a hash of the documents and of the tokenizer; and which of them make up which row,
under that hash, the context and the seed. So another context lays the rows out anew without tokenising anew, and a
worker process maps what its parent has mapped.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diptych.core.tokenizer import SMALLEST_VOCABULARY, Tokenizer
from diptych.data.kept import kept
from diptych.data.mix import in_proportion
from diptych.data.packing import Layout, Packed, lay_out
from diptych.data.shelf import Shelf

FORM = "2"  # of what is kept: another number makes everything anew
BATCH = 2**20  # characters tokenised at a time: the engine needs over a hundred bytes for each
BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


def vocabulary(texts: Mapping[str, Shelf], weights: Mapping[str, float], vocab_size: int) -> Tokenizer:
    """A tokenizer learned from documents `in_proportion`, from the cache or learned now.

    Raises:
        ValueError: as `Tokenizer.train`.
    """
    what = [FORM, vocab_size, [[weight, texts[name].key()] for name, weight in weights.items()]]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]

    def learn(folder: Path) -> None:
        is_bytes = vocab_size == SMALLEST_VOCABULARY  # nothing to learn
        Tokenizer.train(() if is_bytes else in_proportion(texts, weights), vocab_size).save(folder / "tokenizer.json")

    return Tokenizer.load(kept(f"vocabulary-{key}", learn) / "tokenizer.json")


def packed(tokenizer: Tokenizer, texts: Shelf, context: int, seed: int) -> Packed:
    """The rows of `packing.pack(with_borders(tokenizer, texts), context, seed)`, from the cache or made now.

    Raises:
        ValueError: a context below 1.
    """
    key = hashlib.sha256(f"{FORM} {texts.key()} {tokenizer.to_json()} {tokenizer.bordered([])}".encode()).hexdigest()[
        :20
    ]
    tokens = kept(f"tokens-{key}", lambda folder: _tokenise(folder, tokenizer, texts))
    ends = _mapped(tokens / "ends.npy")
    rows = kept(f"rows-{key}-{context}-{seed}", lambda folder: _lay_out(folder, ends, context, seed))
    layout = Layout(*(_mapped(rows / f"{field}.npy") for field in Layout._fields))
    return Packed(_mapped(tokens / "tokens.npy"), layout, context)


def _tokenise(folder: Path, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)
    ends = array("q", [0])
    with (folder / "tokens.npy").open("wb") as opened:
        _write_header(opened, dtype, 0)
        for batch in _batches(texts):
            for ids in _encoded(tokenizer, batch):
                document = np.array(tokenizer.bordered(ids), dtype)
                opened.write(document.tobytes())
                ends.append(ends[-1] + len(document))
        opened.seek(0)
        _write_header(opened, dtype, ends[-1])
    np.save(folder / "ends.npy", np.array(ends, np.int64), allow_pickle=False)


def _lay_out(folder: Path, ends: np.ndarray, context: int, seed: int) -> None:
    for field, values in lay_out(np.asarray(ends), context, seed)._asdict().items():
        np.save(folder / f"{field}.npy", values, allow_pickle=False)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents in batches of about `BATCH` characters; one that is longer has its batch to itself."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _encoded(tokenizer: Tokenizer, batch: list[str]) -> list[list[int]]:
    if len(batch) > 1 or len(batch[0]) <= BATCH or not tokenizer.splits_at_spaces:
        return tokenizer.encode_batch(batch)
    return [[id for portion in _portions(batch[0]) for id in tokenizer.encode(portion)]]


def _portions(text: str) -> Iterator[str]:
    """A very long document in portions that are tokenised as the whole is: no token reaches over the space between
    two words, to which the second of them belongs."""
    start = 0
    while found := BETWEEN_WORDS.search(text, start + BATCH):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _write_header(opened: BinaryIO, dtype: np.dtype, count: int) -> None:
    """The header of an array whose length is known only in the end. numpy leaves room for the length to grow."""
    np.lib.format.write_array_header_1_0(opened, {"descr": dtype.str, "fortran_order": False, "shape": (count,)})


def _mapped(path: Path) -> np.ndarray:
    values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return values
