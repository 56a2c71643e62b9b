"""The record of a text: its steps with the odds of each, its result, and the trace that replays it."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.core.tokenizer import Tokenizer
from diptych.core.trace import Trace
from diptych.text.odds import Numbers, Odds, leading, log_total_and_entropy

FinishReason = Literal["stop", "length", "constraint", "cancelled"]


@dataclass(frozen=True)
class Candidate:
    """A token that might have come: its `probability` under the model itself, its `odds` after the controls."""

    token: int
    text: str
    probability: float
    odds: float

    @property
    def log_probability(self) -> float:
        """log of `probability`, nats."""
        return log(self.probability)


@dataclass(frozen=True)
class TextStep:
    """One token.

    Args:
        text: what it adds to the text for certain; "" while a character or a possible stop text is incomplete.
        probability: of the token under the whole vocabulary's softmax at temperature 1.
        drawn_probability: of the token after the controls.
        candidates: the most probable first; the token itself comes last if it is not among them.
        entropy: of the whole vocabulary's softmax at temperature 1, nats.
        sample: which of several texts it belongs to.
    """

    index: int
    token: int
    text: str
    probability: float
    drawn_probability: float
    candidates: list[Candidate]
    entropy: float
    sample: int = 0

    @property
    def log_probability(self) -> float:
        """log of `probability`, nats; those of the most probable tokens are their candidates'."""
        return log(self.probability)


@dataclass(frozen=True)
class Speculated:
    """What speculation did for a text.

    Args:
        drafter: "ngram", or the name of the draft model.
        drafted, accepted: tokens that were proposed, and those of them that came.
        calls: of the network, the one that read the prompt included.
        tokens: of the text.
    """

    drafter: str
    drafted: int
    accepted: int
    calls: int
    tokens: int

    @property
    def acceptance_rate(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.calls if self.calls else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the rates among them."""
        return asdict(self) | {"acceptance_rate": self.acceptance_rate, "tokens_per_call": self.tokens_per_call}


@dataclass(frozen=True)
class TextResult:
    """A finished text.

    Args:
        text: the texts of the steps, joined.
        tokens: all that were drawn, the one that ended the text included.
        finish_reason: "stop" (the end token, a stop text, or a constraint that is met and lets nothing follow),
            "length" (max_tokens or the context), "constraint" (it lets nothing follow and is not met), "cancelled".
        speculation: what drafting did for it; None without.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    seed: int
    settings: dict[str, Any]
    trace: Trace
    speculation: Speculated | None = None


def step_of(
    index: int,
    token: int,
    text: str,
    scores: Numbers,
    chances: Odds | None,
    tokenizer: Tokenizer,
    num_candidates: int,
    sample: int = 0,
) -> TextStep:
    """What there is to tell of a token.

    Args:
        text: what it added.
        scores: the network's logits (V,), as `odds.row` gives them.
        chances: what it was drawn from; None for a token that was given, whose odds are the model's own.
    """
    log_total, entropy = log_total_and_entropy(scores)
    shown = leading(scores, num_candidates).tolist()
    if token not in shown:
        shown.append(token)
    candidates = []
    for id in shown:
        probability = math.exp(float(scores[id]) - log_total)
        candidates.append(Candidate(id, tokenizer.piece(id), probability, chances.of(id) if chances else probability))
    drawn = candidates[shown.index(token)]
    return TextStep(index, token, text, drawn.probability, drawn.odds, candidates, entropy, sample)


def log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def trace_of(name: str, settings: dict[str, Any], steps: list[TextStep], tokenizer: Tokenizer) -> Trace:
    """Arrays with a row a step; candidates without the drawn token where it is not among the leading.

    Args:
        name: the model's.
        settings: JSON values; all that is needed to write it again.
    """
    width = min(settings["num_candidates"], tokenizer.size)
    shown = [step.candidates[:width] for step in steps]
    count = len(steps)

    def numbers(rows: list[Any], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(rows, dtype=dtype).reshape(count, *shape)

    arrays = {
        "tokens": numbers([step.token for step in steps], dtype=torch.int64),
        "probability": numbers([step.probability for step in steps]),
        "drawn_probability": numbers([step.drawn_probability for step in steps]),
        "entropy": numbers([step.entropy for step in steps]),
        "candidate_tokens": numbers([[one.token for one in row] for row in shown], width, dtype=torch.int64),
        "candidate_probability": numbers([[one.probability for one in row] for row in shown], width),
        "candidate_odds": numbers([[one.odds for one in row] for row in shown], width),
    }
    facts = [
        {"text": step.text, "piece": tokenizer.piece(step.token), "candidates": [one.text for one in row]}
        for step, row in zip(steps, shown, strict=True)
    ]
    return Trace("text", name, settings, arrays, facts)
