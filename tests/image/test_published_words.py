"""Where the words of a prompt stand in the contexts of published encoders."""

import re
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from diptych.image.published_prompts import PublishedPrompter, T5Reader, TowerReader, windows


class Threes:
    """A vocabulary of stretches of three letters at most, none across a space."""

    begin: int | None
    end, pad = 1, 2

    def __init__(self, begin: int | None) -> None:
        self.begin = begin
        self.known: list[str] = ["<begin>", "<end>", "<pad>"]

    def encode(self, text: str) -> list[int]:
        found = re.findall(r"\w{1,3}|[^\w\s]", text)
        self.known += [piece for piece in dict.fromkeys(found) if piece not in self.known]
        return [self.known.index(piece) for piece in found]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in re.finditer(r"\w{1,3}|[^\w\s]", text)]


def reader(kind: Any, vocabulary: Threes, length: int) -> Any:
    found = object.__new__(kind)
    found.vocabulary, found.length, found.tower = (
        vocabulary,
        length,
        SimpleNamespace(config=SimpleNamespace(length=length)),
    )
    return found


PROMPTS = [
    "a fox in a hat",
    "a (fox:1.3) wearing a ((top:1.2) hat:0.5), at night",
    r"a \(small\) fox, and a very long row of other things that fill several windows, and a hat",
    "(a dog)(:1.4) beside",
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("context", ["towers", "t5", "both"])
def test_the_tokens_of_a_word_spell_it_wherever_it_stands(
    prompt: str, context: Literal["towers", "t5", "both"]
) -> None:
    """In windows one after the other, past weights, and once more with T5 where both are looked at."""
    clip, t5 = Threes(0), Threes(None)
    first, second = reader(TowerReader, clip, 12), reader(T5Reader, t5, 64)
    prompter = PublishedPrompter({}, [first, first], second, context=context)
    tokens = [clip.known[id] for window in windows(prompt, clip, 12) for id in window.tokens]
    told = [t5.known[id] for window in windows(prompt, t5, 64) for id in window.tokens]
    row = {"towers": tokens, "t5": told, "both": [*tokens, *told]}[context]
    times = 2 if context == "both" else 1
    words = prompter.words(prompt)
    unweighted = re.sub(r":[\d.]+\)|[()\\]", " ", prompt)
    assert [word for word, _ in words] == re.findall(r"\w+", unweighted)
    for word, places in words:
        assert "".join(row[place] for place in places) == word * times
    taken = [place for _, places in words for place in places]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_window_says_where_its_tokens_stand(prompt: str) -> None:
    vocabulary = Threes(0)
    for window in windows(prompt, vocabulary, 12):
        assert len(window.tokens) == len(window.weights) == len(window.spans) == 12
        assert window.spans[0] == window.spans[-1] == (0, 0)
