"""Odds: from the network's logits to the distribution that the next token is drawn from.

The controls act in a fixed order: repetition penalty on logits, temperature, then top-k, top-p and min-p, each on what
the one before it left. Everything is float64 on one row of the vocabulary: cheap, and the same alone or in a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Controls:
    """How a token is chosen. The defaults leave the model's own distribution as it is.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest most probable tokens that together reach this probability (Holtzman et al. 2020).
        min_p: keep tokens at least this share as probable as the most probable (Nguyen et al. 2024).
        repetition_penalty: divide positive and multiply negative logits of tokens already there (Keskar et al. 2019).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, "a finite number >= 0", self.temperature >= 0)
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k must be a whole number >= 0 (0 keeps all tokens), not {self.top_k!r}")
        _check_number("top_p", self.top_p, "a number > 0 and <= 1", 0 < self.top_p <= 1)
        _check_number("min_p", self.min_p, "a number >= 0 and <= 1", 0 <= self.min_p <= 1)
        penalty = self.repetition_penalty
        _check_number("repetition_penalty", penalty, "a finite number > 0 (1 is none)", penalty > 0)


def _check_number(name: str, value: float, allowed: str, is_allowed: bool) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or not is_allowed:
        raise ValueError(f"{name} must be {allowed}, not {value}")


def odds(logits: Tensor, controls: Controls, previous: Sequence[int] = ()) -> Tensor:
    """The distribution to draw from.

    Args:
        logits: (V,), any float dtype.
        previous: tokens of the prompt and of the text so far, which the repetition penalty makes less likely.

    Returns:
        (V,), float64, sums to 1; 0 for tokens that a control excludes. Equal tokens rank by id.

    Raises:
        ValueError: the largest logit is not a finite number.
    """
    scores = logits.double().cpu()
    if not math.isfinite(float(scores.max())):
        raise ValueError(
            "the network gave logits that are not numbers: its weights are damaged, or dtype is too narrow"
        )
    if controls.repetition_penalty != 1 and len(previous):
        seen = torch.tensor(sorted(set(previous)))
        chosen = scores[seen]
        scores = scores.clone()
        scores[seen] = torch.where(
            chosen > 0, chosen / controls.repetition_penalty, chosen * controls.repetition_penalty
        )
    if controls.temperature == 0:
        greedy = torch.zeros_like(scores)
        greedy[int(scores.argmax())] = 1.0
        return greedy
    # The largest logit is taken off first: a tiny temperature then cannot overflow.
    probability = torch.softmax((scores - scores.max()) / controls.temperature, dim=-1)
    if not controls.top_k and controls.top_p >= 1 and controls.min_p <= 0:
        return probability
    ranked, order = probability.sort(descending=True, stable=True)
    if controls.top_k:
        ranked[controls.top_k :] = 0
    if controls.top_p < 1:
        share = ranked / ranked.sum()
        ranked[(share.cumsum(0) - share) >= controls.top_p] = 0  # what came before already reached top_p
    ranked[ranked < controls.min_p * ranked[0]] = 0
    kept = torch.zeros_like(probability)
    kept[order] = ranked / ranked.sum()
    return kept


def draw(probability: Tensor, u: float) -> int:
    """The token at `u` in [0, 1) of the inverse cumulative distribution, tokens in order of their ids.

    A token of probability 0 is never drawn.
    """
    possible = probability.nonzero()[:, 0]
    cumulative = probability[possible].cumsum(0)
    place = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
    return int(possible[min(place, len(possible) - 1)])
