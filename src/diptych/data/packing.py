"""Packing: documents of any length into rows of one length, with nothing leaking from one document to the next.

A row holds whole documents, best-fit packed, and so little padding. Each token carries the number of its document in
the row (`segments`) and its place in it (`positions`), so that attention can stay inside a document and the loss never
asks for a token of the next. What a training step sees is a pure function of the step: to resume is to ask for the
next batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.core.likelihood import IGNORED
from diptych.core.randomness import generator
from diptych.core.tokenizer import Tokenizer
from diptych.data.trouble import Trouble

ORDER, SCHEDULE, LAYOUT, SHIFT = 1, 2, 3, 4  # streams of randomness
PERIOD = 1024  # rows after which a mixture has kept its shares exactly


class Batch(NamedTuple):
    """Four tensors (B, T), int64. `segments` is 0 on padding and counts documents from 1; `targets` is -100 where the
    next token belongs to another document or is padding. Where every row is one document without padding, `segments`
    may be (1, 1): attention then needs no mask."""

    tokens: Tensor
    targets: Tensor
    segments: Tensor
    positions: Tensor


def with_borders(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Each text as tokens between begin and end."""
    return [tokenizer.bordered(tokenizer.encode(text)) for text in texts]


def pack(token_documents: Sequence[Sequence[int]], context: int, seed: int) -> "Packed":
    """Documents into rows of `context + 1` tokens (one more than the network sees, for the last target).

    A document longer than a row is cut into chunks that share one token, so that every token but a document's first
    is predicted once. Chunks go, longest first, into the row with the least space that still holds them.
    """
    lengths = np.fromiter(map(len, token_documents), np.int64, len(token_documents))
    ends = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.fromiter((token for document in token_documents for token in document), np.int64, int(ends[-1]))
    return Packed(tokens, lay_out(ends, context, seed), context)


class Layout(NamedTuple):
    """Which chunks of a flat array of tokens make up which row: row r is the chunks `rows[r]` to `rows[r + 1]`, each
    `lengths[c]` tokens from `starts[c]` on, after which its document has `rooms[c]` more. Integers: `rows` (R + 1), the
    others as many as there are chunks."""

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    rooms: np.ndarray


def lay_out(ends: np.ndarray, context: int, seed: int) -> Layout:
    """The rows of documents that lie one after another, document d from `ends[d]` to `ends[d + 1]` of the tokens.

    Raises:
        ValueError: a context below 1, or no document with two tokens.
    """
    if context < 1:
        raise ValueError(f"context must be a whole number >= 1, not {context}")
    width = context + 1
    targets = np.maximum(np.diff(ends) - 1, 0)
    counts = -(-targets // context)  # chunks of each document
    if not counts.any():
        raise ValueError("there is nothing to pack: no document has two tokens or more")
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a chunk in its document
    starts = np.repeat(ends[:-1], counts) + place * context
    left = np.repeat(targets, counts) - place * context + 1  # tokens of the document from here on
    lengths = np.minimum(left, width)

    order = np.arange(len(starts))
    generator(seed=seed, stream=LAYOUT).shuffle(order)
    order = order[np.argsort(-lengths[order], kind="stable")]
    row = _best_fit(lengths[order], width)
    by_row = np.argsort(row, kind="stable")
    order = order[by_row]
    rows = np.concatenate(([0], np.cumsum(np.bincount(row))))
    return Layout(rows, starts[order], lengths[order].astype(np.int32), (left - lengths)[order])


def _best_fit(lengths: np.ndarray, width: int) -> np.ndarray:
    """The row of each chunk, chunks in falling length. What rows have `space` left is one bit of a whole number, so
    the least space that suffices is found without a search: a million chunks take seconds."""
    full = int((lengths == width).sum())  # they come first and have their rows to themselves
    chosen = list(range(full))
    by_space: list[list[int]] = [[] for _ in range(width + 1)]
    spaces = 0  # bit s is set where by_space[s] has a row
    num_rows = full
    for length in lengths[full:].tolist():
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1
            rows = by_space[space]
            row = rows.pop()
            if not rows:
                spaces ^= 1 << space
        else:
            space, row = width, num_rows
            num_rows += 1
        chosen.append(row)
        left = space - length
        if left:
            by_space[left].append(row)
            spaces |= 1 << left
    return np.array(chosen)


class Packed:
    """Rows of one corpus, cut from its tokens as they are asked for. `num_targets` positions have a target."""

    def __init__(self, tokens: np.ndarray, layout: Layout, context: int) -> None:
        """`tokens` (N,) of any integer type. Arrays that are mapped from `.npy` files pickle as the files' names."""
        self.tokens, self.layout, self.context = tokens, layout, context
        self.num_rows = len(layout.rows) - 1
        self.num_targets = int(layout.lengths.sum(dtype=np.int64)) - len(layout.lengths)

    def rows(self, indices: np.ndarray, shifts: np.ndarray | None = None) -> Batch:
        """The rows as a batch of (len(indices), context).

        Args:
            shifts: tokens by which the rows inside a longer document are moved on, where it reaches so far.
        """
        shape = (len(indices), self.context + 1)
        tokens, segments, positions = (np.zeros(shape, np.int64) for _ in range(3))
        for row, index in enumerate(indices):
            end = 0
            chunks = slice(self.layout.rows[index], self.layout.rows[index + 1])
            starts, lengths = self.layout.starts[chunks].tolist(), self.layout.lengths[chunks].tolist()
            if shifts is not None and self.layout.rooms[chunks][0] >= shifts[row]:
                starts[0] += int(shifts[row])  # it fills its row, as all do but the last of a document
            for number, (start, length) in enumerate(zip(starts, lengths, strict=True), start=1):
                here = slice(end, end + length)
                tokens[row, here] = self.tokens[start : start + length]
                segments[row, here] = number
                positions[row, here] = np.arange(length)
                end += length
        is_real = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        targets = np.where(is_real, tokens[:, 1:], IGNORED)
        arrays = (tokens[:, :-1], targets, segments[:, :-1], positions[:, :-1])
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker process goes the name of a mapped file, not a copy of what is in it."""
        arrays = (self.tokens, *self.layout)
        return _reopened, (self.context, *(_named(array) for array in arrays))

    def at(self, places: np.ndarray, seed: int, corpus: int = 0) -> Batch:
        """The rows at `places` of an endless reading, each epoch in an order of its own. From the second on, the rows
        of a long document are cut at other places than before, so that what begins a row does not always begin one."""
        epochs = places // self.num_rows
        indices, shifts = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = _permutation(self.num_rows, seed, corpus, int(epoch))[places[here] % self.num_rows]
            shifts[here] = _shift(self.context, seed, corpus, int(epoch))
        return self.rows(indices, shifts)

    def batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """The batch of a step (from 0): a pure function of its arguments."""
        return self.at(np.arange(step * batch_size, (step + 1) * batch_size), seed)


def _named(array: np.ndarray) -> np.ndarray | Path:
    """The file that an array was mapped from, where it is all of it."""
    if isinstance(array, np.memmap) and isinstance(array.base, mmap) and array.filename is not None:
        return Path(array.filename)
    return array


def _reopened(context: int, *arrays: np.ndarray | Path) -> Packed:
    tokens, *layout = (
        np.load(array, mmap_mode="r", allow_pickle=False) if isinstance(array, Path) else array for array in arrays
    )
    return Packed(tokens, Layout(*layout), context)


class Mixture:
    """Several corpora read side by side, each at its own pace.

    Args:
        corpora: with the same context.
        weights: positive; a corpus's share of the targets is its weight over the sum of the weights.
    """

    def __init__(self, corpora: Sequence[Packed], weights: Sequence[float]) -> None:
        if not corpora or len(corpora) != len(weights):
            raise ValueError(f"a mixture needs a weight for each corpus, not {len(weights)} for {len(corpora)}")
        if not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights must be finite numbers > 0, not {list(weights)}")
        if len({corpus.context for corpus in corpora}) > 1:
            raise ValueError(
                f"corpora of a mixture must share one context, not {[corpus.context for corpus in corpora]}"
            )
        self.corpora = list(corpora)
        rows = np.array(
            [weight * corpus.num_rows / corpus.num_targets for corpus, weight in zip(corpora, weights, strict=True)]
        )
        self.quotas = _apportion(rows / rows.sum(), PERIOD)  # rows of each corpus in a period

    def batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """The batch of a step (from 0): a pure function of its arguments."""
        return self.rows(range(step * batch_size, (step + 1) * batch_size), seed)

    def rows(self, places: range, seed: int) -> Batch:
        """The rows at `places` of an endless reading of the mixture."""
        if not places:
            return self.corpora[0].rows(np.empty(0, np.int64))  # no rows at all are a batch too
        periods, within = np.divmod(np.array(places), PERIOD)
        indices, earlier = np.empty_like(within), np.empty_like(within)
        for period in np.unique(periods):
            here = periods == period
            schedule = _schedule(tuple(self.quotas), seed, int(period))
            indices[here], earlier[here] = (column[within[here]] for column in schedule)
        positions = periods * np.array(self.quotas)[indices] + earlier
        found, order = [], []
        for index in np.unique(indices):
            here = np.flatnonzero(indices == index)
            found.append(self.corpora[index].at(positions[here], seed, int(index)))
            order.append(here)
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        return Batch(*(torch.cat(parts)[back] for parts in zip(*found, strict=True)))

    def epochs(self, num_rows: int) -> list[float]:
        """How often each corpus has been read after `num_rows` rows."""
        return [
            num_rows / PERIOD * quota / corpus.num_rows for quota, corpus in zip(self.quotas, self.corpora, strict=True)
        ]


@dataclass(frozen=True)
class MixtureSource:
    """A mixture as a source of batches of `batch_size` rows: `data.source.Source`.

    It pickles: a corpus that is mapped from disk travels as the name of its folder.
    """

    mixture: Mixture
    batch_size: int
    seed: int

    def batch(self, step: int, rows: range) -> Batch:
        """Rows `rows` of `Mixture.batch(step, batch_size, seed)`."""
        first = step * self.batch_size
        batch = self.mixture.rows(range(first + rows.start, first + rows.stop, rows.step), self.seed)
        is_alone = len(batch.segments) > 0 and bool((batch.segments == 1).all())
        return batch._replace(segments=batch.segments[:1, :1]) if is_alone else batch

    def troubles(self) -> Sequence[Trouble]:
        """None: what was broken was left out when the corpora were read."""
        return ()


def _apportion(shares: np.ndarray, total: int) -> list[int]:
    """Whole numbers near `shares * total` that sum to `total` (largest remainders), each at least 1."""
    exact = np.maximum(shares * total, 1)
    quotas = np.floor(exact).astype(int)
    for index in np.argsort(quotas - exact)[: max(0, total - quotas.sum())]:
        quotas[index] += 1
    quotas[int(np.argmax(quotas))] += total - quotas.sum()
    return [int(quota) for quota in quotas]


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int, corpus: int, epoch: int) -> np.ndarray:
    return generator(seed=seed, sample=corpus, step=epoch, stream=ORDER).permutation(size)


@lru_cache(maxsize=8)
def _shift(context: int, seed: int, corpus: int, epoch: int) -> int:
    random = generator(seed=seed, sample=corpus, step=epoch, stream=SHIFT)
    return int(random.integers(context)) if epoch else 0


@lru_cache(maxsize=4)
def _schedule(quotas: tuple[int, ...], seed: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a period: its corpus, and how many rows of that corpus come before it in the period.

    Each corpus is spread evenly: its j-th row falls at a random place within the j-th of its equal parts.
    """
    random = generator(seed=seed, step=period, stream=SCHEDULE)
    corpus = np.concatenate([np.full(quota, index) for index, quota in enumerate(quotas)])
    earlier = np.concatenate([np.arange(quota) for quota in quotas])
    when = np.concatenate([(np.arange(quota) + random.random(quota)) / quota for quota in quotas])
    order = np.argsort(when, kind="stable")
    return corpus[order], earlier[order]
