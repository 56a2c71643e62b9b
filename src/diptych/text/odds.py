"""Odds: from the network's logits to the distribution that the next token is drawn from.

The controls act in a fixed order, that of transformers: what changes logits (bias, penalties), what forbids tokens,
temperature, then top-k, top-p, min-p and typical-p, each on what the one before it left. Sums are in float64 over one
row of the vocabulary, the same alone or in a batch. Numpy does it: torch takes longer to begin with so small a row.

Only the tokens that are left are ranked, so nothing here sorts a vocabulary unless a control leaves all of it.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diptych.text.settings import Settings

Ids = NDArray[np.int64]
Numbers = NDArray[np.floating[Any]]
BLOCKS = 64  # the vocabulary in so many parts when its largest are looked for
HEADS = (1024, 16384)  # so many are ranked first: mostly they hold all that is kept


@dataclass(frozen=True)
class Odds:
    """The tokens that may come.

    Args:
        tokens: (K,), int64, ascending.
        chances: (K,), float64, each above 0; they sum to 1.
    """

    tokens: Ids
    chances: NDArray[np.float64]

    def draw(self, u: float) -> int:
        """The token at `u` in [0, 1) of the inverse cumulative distribution, tokens in the order of their ids."""
        cumulative = self.chances.cumsum()
        place = int(cumulative.searchsorted(u * cumulative[-1], side="right"))
        return int(self.tokens[min(place, len(self.tokens) - 1)])

    def of(self, token: int) -> float:
        """The chance of one token; 0 if it may not come."""
        place = int(self.tokens.searchsorted(token))
        is_there = place < len(self.tokens) and self.tokens[place] == token
        return float(self.chances[place]) if is_there else 0.0

    def dense(self, size: int) -> NDArray[np.float64]:
        """The chances of a whole vocabulary: (size,), float64."""
        chances = np.zeros(size)
        chances[self.tokens] = self.chances
        return chances


def row(logits: Tensor) -> Numbers:
    """Logits (V,) of any float dtype as numpy, at least float32.

    Raises:
        ValueError: the largest logit is not a finite number.
    """
    scores: Numbers = (logits if logits.element_size() >= 4 else logits.float()).cpu().numpy()
    if not math.isfinite(scores.max()):
        raise ValueError(
            "the network gave logits that are not numbers: its weights are damaged, or dtype is too narrow"
        )
    return scores


def odds(
    logits: Numbers,
    settings: Settings,
    prompt: Collection[int] = (),
    written: Sequence[int] = (),
    forbidden: Ids | NDArray[np.bool_] | None = None,
) -> Odds:
    """The distribution to draw from.

    Args:
        logits: (V,), as `row` gives them; left as they are.
        prompt: its tokens, in any order; the repetition penalty lowers them.
        written: tokens drawn so far, which all penalties lower.
        forbidden: ids, or (V,) bool, of tokens that cannot come; not all of them.
    """
    scores = _steered(logits, settings, prompt, written)
    if forbidden is not None:
        scores = scores.copy() if scores is logits else scores
        scores[forbidden] = -np.inf
    if settings.temperature == 0:
        return Odds(np.array([scores.argmax()]), np.ones(1))
    largest = float(scores.max())

    def weight(tokens: Ids | slice) -> NDArray[np.float64]:
        """exp(score / temperature), 1 for the most probable: so that a tiny temperature cannot overflow."""
        below = scores[tokens].astype(np.float64)
        below -= largest
        with np.errstate(over="ignore"):
            below /= settings.temperature
        return np.exp(below, out=below)

    if settings.top_k:
        tokens = np.sort(leading(scores, settings.top_k))
        weights = weight(tokens)
    elif settings.top_p == 1 and settings.min_p > 0:  # a bound on logits: the others need no exponential
        bound = largest + settings.temperature * math.log(settings.min_p)
        tokens = np.flatnonzero(scores >= bound - 1e-5 * max(1.0, abs(bound)))  # rounding is for what follows to see
        weights = weight(tokens)
    else:
        tokens, weights = np.arange(len(scores)), weight(slice(None))
    # Top-p and min-p both keep a head of the ranking, so what they keep together does not depend on their order.
    reached = settings.top_p * weights.sum()
    tokens, weights = _kept(tokens, weights, weights >= settings.min_p)
    if settings.top_p < 1:
        tokens, weights = _kept(tokens, weights, _nucleus(weights, -weights, reached))
    if settings.typical_p < 1:
        tokens, weights = _kept(tokens, weights, weights > 0)
        log_p = np.log(weights / weights.sum())
        entropy = -(np.exp(log_p) * log_p).sum()
        surprise = np.abs(-log_p - entropy)
        tokens, weights = _kept(tokens, weights, _nucleus(weights, surprise, settings.typical_p * weights.sum()))
    tokens, weights = _kept(tokens, weights, weights > 0)
    return Odds(tokens, weights / weights.sum())


def leading(values: Numbers, count: int) -> Ids:
    """Places of the `count` largest of (V,), the largest first, equal ones in the order of their places.

    The count-th largest of any disjoint parts' largest is a bound that at least `count` values reach, and few more do.
    """
    width = len(values) // BLOCKS
    if count < width:
        heads = values[: width * BLOCKS].reshape(BLOCKS, width).max(axis=0)
        bound = np.partition(heads, -count)[-count]
    elif count < len(values):
        bound = np.partition(values, -count)[-count]
    else:
        bound = -np.inf
    found = np.flatnonzero(values >= bound)
    order: Ids = found[np.argsort(-values[found], kind="stable")[:count]]
    return order


def log_total_and_entropy(logits: Numbers) -> tuple[float, float]:
    """log of the sum of exp(logits), and the entropy in nats, of the softmax over the whole of (V,).

    So log p(token) = logits[token] - log_total. Entropy is a sum of positive terms, exact also where it is near 0.
    """
    largest = float(logits.max())
    below = np.maximum(logits - largest, -1e4)  # a logit of -inf has no share, and no -inf * 0
    weights = np.exp(below)
    total = float(weights.sum(dtype=np.float64))
    return largest + math.log(total), math.log(total) - float(np.dot(weights, below)) / total


def _steered(logits: Numbers, settings: Settings, prompt: Collection[int], written: Sequence[int]) -> Numbers:
    """Logits after bias and penalties; the same array where there are none."""
    scores = logits
    if settings.logit_bias:
        scores = scores.copy()
        scores[list(settings.logit_bias)] += np.array(list(settings.logit_bias.values()), scores.dtype)
    if settings.repetition_penalty != 1 and (prompt or written):
        scores = scores.copy()
        seen = list({*prompt, *written})
        chosen = scores[seen]
        scores[seen] = np.where(chosen > 0, chosen / settings.repetition_penalty, chosen * settings.repetition_penalty)
    if (settings.presence_penalty or settings.frequency_penalty) and written:
        scores = scores.copy()
        counts = Counter(written)
        times = np.array(list(counts.values()))
        scores[list(counts)] -= (settings.presence_penalty + settings.frequency_penalty * times).astype(scores.dtype)
    return scores


def _nucleus(weights: NDArray[np.float64], keys: NDArray[np.float64], target: float) -> NDArray[np.bool_]:
    """Those that come first by their keys, the smallest first, until their weights reach the target: (K,), bool."""
    near = np.arange(len(keys))
    for head in HEADS:
        if head < len(keys):
            first = np.flatnonzero(keys <= np.partition(keys, head)[head])
            if weights[first].sum() >= target:
                near = first
                break
    ranked = near[np.argsort(keys[near], kind="stable")]
    before = np.concatenate(([0.0], weights[ranked].cumsum()[:-1]))
    is_kept = np.zeros(len(keys), dtype=bool)
    is_kept[ranked[before < target]] = True
    return is_kept


def _kept(tokens: Ids, weights: NDArray[np.float64], kept: NDArray[np.bool_]) -> tuple[Ids, NDArray[np.float64]]:
    return (tokens, weights) if kept.all() else (tokens[kept], weights[kept])
