"""How today's open painters read a prompt: CLIP's text towers and T5's encoder, alone and together.

A tower sees a window of some tokens at once. A longer prompt is read in several windows, each with a begin and an end
of its own, and their contexts are laid one after the other. Weights in brackets (`image.weighting`) are obeyed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.image.clip import TextTower
from diptych.image.condition import Condition
from diptych.image.t5 import T5Encoder
from diptych.image.weighting import Piece, pieces, plain, weighted
from diptych.image.words import Word, words_in

MOST_WINDOWS = 8
Span = tuple[int, int]  # start and end in characters; alike where there is no text


class Vocabulary(Protocol):
    """How text becomes the tokens of an encoder.

    Args:
        begin, end: around a prompt; begin is None where there is none. pad: what fills a window up.
    """

    begin: int | None
    end: int
    pad: int

    def encode(self, text: str) -> list[int]:
        """Token ids without begin, end and padding."""
        ...

    def spans(self, text: str) -> list[Span]:
        """Where in the text each of these tokens stands."""
        ...


@dataclass(frozen=True)
class Window:
    """Tokens that are read at once, the weight of each and where in the plain prompt it stands: `length` of each."""

    tokens: list[int]
    weights: list[float]
    spans: list[Span]


def windows(prompt: str, vocabulary: Vocabulary, length: int) -> list[Window]:
    """A prompt as windows of `length` tokens, at least one. A word is cut only where it fills a window by itself."""
    room = length - 1 - (vocabulary.begin is not None)
    filled: list[list[Token]] = [[]]
    start = 0  # of the piece, in the plain prompt
    for piece in pieces(prompt):
        found = _tokens(piece, vocabulary, start, 0, len(piece.text))
        if len(filled[-1]) + len(found) <= room:
            filled[-1] += found
        else:
            for word in re.finditer(r"\S+", piece.text):
                found = _tokens(piece, vocabulary, start, *word.span())
                if len(filled[-1]) + len(found) > room and filled[-1]:
                    filled.append([])
                for token in found:
                    if len(filled[-1]) == room:
                        filled.append([])
                    filled[-1].append(token)
        start += len(piece.text)
    return [_window(content, vocabulary, length) for content in filled]


Token = tuple[int, float, Span]


def _tokens(piece: Piece, vocabulary: Vocabulary, start: int, first: int, last: int) -> list[Token]:
    """Of a stretch of a piece that begins at `start` of the plain prompt."""
    text, before = piece.text[first:last], start + first
    spans = [(before + one, before + other) for one, other in vocabulary.spans(text)]
    return [(id, piece.weight, span) for id, span in zip(vocabulary.encode(text), spans, strict=True)]


def _window(content: list[Token], vocabulary: Vocabulary, length: int) -> Window:
    begin = [] if vocabulary.begin is None else [(vocabulary.begin, 1.0, (0, 0))]
    whole = [*begin, *content, (vocabulary.end, 1.0, (0, 0))]
    whole += [(vocabulary.pad, 1.0, (0, 0))] * (length - len(whole))
    tokens, weights, spans = zip(*whole, strict=True)
    return Window(list(tokens), list(weights), list(spans))


class TowerReader:
    """Prompts through one of CLIP's text towers.

    Args:
        skip, is_normed: see `TextTower.forward`.
    """

    def __init__(self, tower: TextTower, vocabulary: Vocabulary, *, skip: int = 0, is_normed: bool = True) -> None:
        self.tower, self.vocabulary, self.skip, self.is_normed = tower, vocabulary, skip, is_normed

    def __call__(self, prompts: Sequence[str], cuts: bool) -> tuple[Tensor, Tensor]:
        """context (B, windows x length, width), pooled (B, width or projection), of the first window."""
        length = self.tower.config.length
        read = [windows(prompt, self.vocabulary, length) for prompt in prompts]
        most = 1 if cuts else max(map(len, read))
        if most > MOST_WINDOWS:
            raise ValueError(f"the prompt is too long: {most} windows of {length} tokens, at most {MOST_WINDOWS}")
        empty = windows("", self.vocabulary, length)
        read = [[*row, *empty * most][:most] for row in read]
        found = self._encoded([window for row in read for window in row])
        context = found[0]
        weights = [window.weights for row in read for window in row]
        if any(weight != 1 for row in weights for weight in row):
            context = weighted(context, self._encoded(empty)[0], weights)
        return context.reshape(len(prompts), most * length, -1), found[1].view(len(prompts), most, -1)[:, 0]

    def _encoded(self, read: Sequence[Window]) -> tuple[Tensor, Tensor]:
        tokens = torch.tensor([window.tokens for window in read], device=self.tower.embedding.weight.device)
        found = self.tower(tokens, skip=self.skip, is_normed=self.is_normed)
        return found.context, found.pooled


class T5Reader:
    """Prompts through T5's encoder, which takes long ones whole.

    Args:
        length: tokens that every prompt is filled up to, and may have.
    """

    def __init__(self, encoder: T5Encoder, vocabulary: Vocabulary, length: int) -> None:
        self.encoder, self.vocabulary, self.length = encoder, vocabulary, length

    def __call__(self, prompts: Sequence[str], cuts: bool) -> Tensor:
        """(B, length, width). Raises: ValueError for a prompt that is too long and not to be cut."""
        read = [windows(prompt, self.vocabulary, self.length) for prompt in prompts]
        for prompt, row in zip(prompts, read, strict=True):
            if len(row) > 1 and not cuts:
                raise ValueError(f"the prompt is too long: at most {self.length - 1} tokens: '{prompt[:40]}...'")
        first = [row[0] for row in read]
        context = self._encoded(first)
        if any(weight != 1 for window in first for weight in window.weights):
            empty = self._encoded(windows("", self.vocabulary, self.length))
            context = weighted(context, empty, [window.weights for window in first])
        return context

    def _encoded(self, read: Sequence[Window]) -> Tensor:
        tokens = torch.tensor([window.tokens for window in read], device=self.encoder.embedding.weight.device)
        found: Tensor = self.encoder(tokens)
        return found


class PublishedPrompter:
    """What a published network is told of prompts.

    Args:
        modules: the encoders by the names of their folders.
        towers: whose contexts are laid side by side.
        t5: whose context follows theirs, filled up to its width; alone where `context` is "t5".
        silent: (length, width) of the zeros in T5's place, where a pipeline came without it.
        context: what the words are looked at in; pooled: none, that of the last tower, or those of all side by side.
        zeroes_empty: an empty negative prompt is all zeros, as SDXL has it.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        towers: Sequence[TowerReader],
        t5: T5Reader | None = None,
        *,
        silent: tuple[int, int] | None = None,
        context: Literal["towers", "t5", "both"] = "towers",
        pooled: Literal["none", "last", "all"] = "none",
        zeroes_empty: bool = False,
    ) -> None:
        self.modules, self.towers, self.t5, self.silent = modules, towers, t5, silent
        self.context, self.pooled, self.zeroes_empty = context, pooled, zeroes_empty

    def __call__(self, prompts: Sequence[str], *, is_negative: bool = False, cuts: bool = False) -> Condition:
        """See `prompts.Prompter`."""
        found = [tower(prompts, cuts) for tower in self.towers]
        context = torch.cat([one for one, _ in found], dim=-1)
        if self.context != "towers":
            told = self._told(prompts, cuts, context)
            filled = F.pad(context, (0, told.shape[-1] - context.shape[-1]))
            context = told if self.context == "t5" else torch.cat((filled, told), dim=1)
        pooled = None
        if self.pooled != "none":
            pooled = torch.cat([one for _, one in found[-1 if self.pooled == "last" else 0 :]], dim=-1)
        if is_negative and self.zeroes_empty and not any(prompts):
            context = torch.zeros_like(context)
            pooled = None if pooled is None else torch.zeros_like(pooled)
        return Condition(context, None, pooled)

    def words(self, prompt: str) -> list[Word]:
        """See `prompts.Prompter`; a word stands with the towers and with T5 where both are looked at."""
        readers: list[tuple[Vocabulary, int]] = []
        if self.context != "t5":  # the towers' contexts lie side by side, token by token
            readers.append((self.towers[0].vocabulary, self.towers[0].tower.config.length))
        if self.context != "towers" and self.t5 is not None:
            readers.append((self.t5.vocabulary, self.t5.length))
        read = [window for vocabulary, length in readers for window in windows(prompt, vocabulary, length)]
        return words_in(plain(prompt), [span for window in read for span in window.spans])

    def _told(self, prompts: Sequence[str], cuts: bool, like: Tensor) -> Tensor:
        if self.t5 is not None:
            return self.t5(prompts, cuts)
        length, width = self.silent or (0, like.shape[-1])
        return like.new_zeros(len(prompts), length, width)
