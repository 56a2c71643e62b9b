"""Weights in a prompt: "a (red:1.3) hat" makes the network look more at "red", "(red:0.6)" less.

A weight moves what a text encoder makes of a token away from what it makes of an empty prompt at the same place, or
towards it. Brackets nest, and their weights multiply; brackets without a number, and `\\(` and `\\)`, are brackets.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 10.0


class Piece(NamedTuple):
    """A stretch of a prompt and its weight."""

    text: str
    weight: float


def pieces(prompt: str) -> list[Piece]:
    """The stretches of a prompt with one weight each; a prompt without weights is one.

    Raises:
        ValueError: a weight past `LARGEST`.
    """
    found: list[Piece] = []
    for text, weight in _parsed(prompt, 1.0):
        text = re.sub(r"\\([()\\])", r"\1", text)
        if found and found[-1].weight == weight:
            found[-1] = Piece(found[-1].text + text, weight)
        elif text:
            found.append(Piece(text, weight))
    return found or [Piece("", 1.0)]


def plain(prompt: str) -> str:
    """The prompt without its weights."""
    return joined(pieces(prompt))


def joined(found: Sequence[Piece]) -> str:
    """The text of pieces in their order."""
    return "".join(piece.text for piece in found)


def _parsed(prompt: str, weight: float) -> list[Piece]:
    found: list[Piece] = []
    start = place = 0
    while place < len(prompt):
        if prompt[place] == "\\":
            place += 2
            continue
        end = _closing(prompt, place) if prompt[place] == "(" else None
        weighted = None if end is None else re.fullmatch(r"(.*):\s*(\d*\.?\d+)\s*", prompt[place + 1 : end], re.DOTALL)
        if weighted is None or end is None:
            place += 1
            continue
        factor = float(weighted[2])
        if factor > LARGEST:
            raise ValueError(f"the weight in '{prompt[place : end + 1]}' must be from 0 to {LARGEST:g}, not {factor:g}")
        found += [Piece(prompt[start:place], weight), *_parsed(weighted[1], weight * factor)]
        start = place = end + 1
    return [*found, Piece(prompt[start:], weight)]


def _closing(prompt: str, opening: int) -> int | None:
    """Where the bracket that opens at `opening` closes."""
    depth = 0
    place = opening
    while place < len(prompt):
        if prompt[place] == "\\":
            place += 1
        elif prompt[place] in "()":
            depth += 1 if prompt[place] == "(" else -1
            if depth == 0:
                return place
        place += 1
    return None


def weighted(context: Tensor, empty: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """What an encoder made of prompts, each token moved by its weight.

    Args:
        context: (B, S, C); empty: (1, S, C), of the prompt "".
        weights: B rows of S.
    """
    if all(weight == 1 for row in weights for weight in row):
        return context
    factor = torch.tensor(weights, dtype=context.dtype, device=context.device)[..., None]
    return empty + factor * (context - empty)
