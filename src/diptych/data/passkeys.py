"""Passkeys: a number hidden somewhere in filler and asked for at the end (Mohtashami & Jaggi 2023, sec. 4.2).

Nothing but the number can be missed, so this says how far back a model finds what it has read. As a corpus,
"passkey:512" is documents of 512 tokens to learn the task from; `hidden` makes the prompts of a test.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from diptych.core.randomness import generator

PREFIX = "passkey:"
OPENING = "A pass key is hidden in this text. Find it and remember it."
FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
QUESTION = "What is the pass key? The pass key is"
DIGITS = 5
SHORTEST = 64  # tokens
TOKENS = 2**22  # of a corpus
LEARNING, TESTING = 0, 1  # streams of randomness


@dataclass(frozen=True)
class Passkey:
    """A text with a hidden number.

    Args:
        prompt: up to where the number is asked for.
        key: its digits, with a space before each, so that each is a token of its own in nearly every vocabulary.
        depth: where in the filler the number stands, 0 at the start to 1 at the end.
    """

    prompt: str
    key: str
    depth: float


def hidden(
    length: int, depth: float, seed: int, sample: int, count: Callable[[str], int], stream: int = TESTING
) -> Passkey:
    """A number hidden at `depth` in as much filler as `length` tokens hold, with its prompt, the number and an end.

    Args:
        seed, sample: of the number.
        count: tokens of a text.

    Raises:
        ValueError: a length below 64, or in which the number alone does not fit.
    """
    draws = generator(seed=seed, sample=sample, stream=stream).integers(10, size=DIGITS)
    key = "".join(f" {digit}" for digit in draws)
    told = f"The pass key is{key}. Remember it.{key} is the pass key."
    costs = np.cumsum([count(f" {sentence}") for sentence in FILLER])
    room = length - count(f"{OPENING} {told} {QUESTION}{key}.") - 2  # a begin and an end
    if length < SHORTEST or room < 0:
        raise ValueError(f"a pass key needs a length of at least {max(SHORTEST, length - room)} tokens, not {length}")
    rounds, rest = divmod(room, int(costs[-1]))
    sentences = rounds * len(FILLER) + int(np.searchsorted(costs, rest, side="right"))
    filler = [FILLER[place % len(FILLER)] for place in range(sentences)]
    before = round(depth * sentences)
    return Passkey(" ".join([OPENING, *filler[:before], told, *filler[before:], QUESTION]), key, depth)


def num_words(text: str) -> int:
    """Words and marks: the tokens of a vocabulary that was learned from these texts."""
    return len(text.split()) + sum(map(text.count, ".?"))


def documents(name: str) -> Iterator[str]:
    """The documents of "passkey:LENGTH", each a number at a random depth with its answer.

    Raises:
        ValueError: a LENGTH that is no whole number of tokens from 64.
    """
    length = name.removeprefix(PREFIX)
    if not length.isdecimal() or int(length) < SHORTEST:
        raise ValueError(f"corpus '{name}' must end in tokens of a document, {PREFIX}{SHORTEST} or more")
    for sample in range(TOKENS // int(length)):
        depth = float(generator(seed=int(length), sample=sample, step=1, stream=LEARNING).random())
        one = hidden(int(length), depth, int(length), sample, num_words, LEARNING)
        yield f"{one.prompt}{one.key}."
