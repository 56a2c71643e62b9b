"""Packing: documents of any length into rows of one length, with nothing leaking from one document to the next.

A row holds whole documents, best-fit packed, and so little padding. Each token carries the number of its document in
the row (`segments`) and its place in it (`positions`), so that attention can stay inside a document and the loss never
asks for a token of the next. What a training step sees is a pure function of the step: to resume is to ask for the
next batch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.core.randomness import generator
from diptych.core.tokenizer import Tokenizer
from diptych.data.trouble import Trouble

IGNORED = -100  # target of a position that has none
ORDER, SCHEDULE, LAYOUT = 1, 2, 3  # streams of randomness
PERIOD = 1024  # rows after which a mixture has kept its shares exactly


class Batch(NamedTuple):
    """Four tensors (B, T), int64. `segments` is 0 on padding and counts documents from 1; `targets` is -100 where the
    next token belongs to another document or is padding."""

    tokens: Tensor
    targets: Tensor
    segments: Tensor
    positions: Tensor


def with_borders(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Each text as tokens between "<|begin|>" and "<|end|>"."""
    return [[tokenizer.begin, *tokenizer.encode(text), tokenizer.end] for text in texts]


def pack(token_documents: Sequence[Sequence[int]], context: int, seed: int) -> "Packed":
    """Documents into rows of `context + 1` tokens (one more than the network sees, for the last target).

    A document longer than a row is cut into chunks that share one token, so that every token but a document's first
    is predicted once. Chunks go, longest first, into the row with the least space that still holds them.
    """
    if context < 1:
        raise ValueError(f"context must be a whole number >= 1, not {context}")
    width = context + 1
    chunks = [
        document[start : start + width]
        for document in token_documents
        for start in range(0, len(document) - 1, context)
    ]
    if not chunks:
        raise ValueError("there is nothing to pack: no document has two tokens or more")
    generator(seed=seed, stream=LAYOUT).shuffle(chunks)
    chunks.sort(key=len, reverse=True)
    rows: list[list[Sequence[int]]] = []
    by_space: list[list[int]] = [[] for _ in range(width + 1)]
    for chunk in chunks:
        space = next((space for space in range(len(chunk), width) if by_space[space]), width)
        if space == width:
            rows.append([])
            by_space[width].append(len(rows) - 1)
        row = by_space[space].pop()
        rows[row].append(chunk)
        by_space[space - len(chunk)].append(row)

    shape = (len(rows), width)
    tokens, segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for index, row_chunks in enumerate(rows):
        end = 0
        for number, chunk in enumerate(row_chunks, start=1):
            here = slice(end, end + len(chunk))
            tokens[index, here] = chunk
            segments[index, here] = number
            positions[index, here] = np.arange(len(chunk))
            end += len(chunk)
    return Packed(tokens, segments, positions)


class Packed:
    """Rows of one corpus. `num_targets` of its positions have a target."""

    def __init__(self, tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> None:
        """Three arrays (rows, context + 1), integers."""
        self.tokens, self.segments, self.positions = tokens, segments, positions
        self.num_rows, self.context = tokens.shape[0], tokens.shape[1] - 1
        self.num_targets = int(((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)).sum())

    def rows(self, indices: np.ndarray) -> Batch:
        """The rows as a batch of (len(indices), context)."""
        tokens, segments = self.tokens[indices], self.segments[indices]
        is_real = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        targets = np.where(is_real, tokens[:, 1:], IGNORED)
        arrays = (tokens[:, :-1], targets, segments[:, :-1], self.positions[indices][:, :-1])
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays))

    def order(self, places: np.ndarray, seed: int, corpus: int = 0) -> np.ndarray:
        """Row indices at `places` of an endless reading, each epoch in an order of its own."""
        epochs = places // self.num_rows
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = _permutation(self.num_rows, seed, corpus, int(epoch))[places[here] % self.num_rows]
        return chosen

    def batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """The batch of a step (from 0): a pure function of its arguments."""
        return self.rows(self.order(np.arange(step * batch_size, (step + 1) * batch_size), seed))


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

    def batch(self, step: int, batch_size: int, seed: int, rows: range | None = None) -> Batch:
        """The batch of a step (from 0), or only these `rows` of it: a pure function of its arguments."""
        chosen: list[Batch] = []
        for row in range(batch_size) if rows is None else rows:
            global_row = step * batch_size + row
            period, place = divmod(global_row, PERIOD)
            corpus, earlier = _schedule(tuple(self.quotas), seed, period)
            index = int(corpus[place])
            position = period * self.quotas[index] + int(earlier[place])
            packed = self.corpora[index]
            chosen.append(packed.rows(packed.order(np.array([position]), seed, index)))
        return Batch(*(torch.cat(parts) for parts in zip(*chosen, strict=True)))

    def epochs(self, num_rows: int) -> list[float]:
        """How often each corpus has been read after `num_rows` rows."""
        return [
            num_rows / PERIOD * quota / corpus.num_rows for quota, corpus in zip(self.quotas, self.corpora, strict=True)
        ]


class MixtureSource:
    """A mixture as a `Source`: steps of `batch_size` rows in the order of `seed`."""

    def __init__(self, mixture: Mixture, batch_size: int, seed: int) -> None:
        self.mixture, self.batch_size, self.seed = mixture, batch_size, seed

    def batch(self, step: int, rows: range) -> Batch:
        return self.mixture.batch(step, self.batch_size, self.seed, rows)

    def troubles(self) -> list[Trouble]:
        """None: what was broken was left out when the documents were read."""
        return []


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
