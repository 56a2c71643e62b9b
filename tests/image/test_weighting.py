"""Weights in prompts: what is read out of brackets, and what they do to an encoder's output."""

import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.image.model import ImageModel
from diptych.image.weighting import Piece, pieces, plain, weighted


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red:1.3) hat", [("a ", 1), ("red", 1.3), (" hat", 1)]),
        ("(a cat:0.5)", [("a cat", 0.5)]),
        ("((red:2) hat:1.5) on", [("red", 3), (" hat", 1.5), (" on", 1)]),
        ("a (small) cat", [("a (small) cat", 1)]),
        (r"a \(red:1.3\) hat", [("a (red:1.3) hat", 1)]),
        (r"a (red \(dark\):1.3) hat", [("a ", 1), ("red (dark)", 1.3), (" hat", 1)]),
        ("(at (noon):1.2)", [("at (noon)", 1.2)]),
        ("a (red:1.3", [("a (red:1.3", 1)]),
        ("ratio (a:b)", [("ratio (a:b)", 1)]),
        ("(a:1)(b:1)", [("ab", 1)]),
        ("(sunset:.5)", [("sunset", 0.5)]),
        ("", [("", 1)]),
    ],
)
def test_what_brackets_mean(prompt: str, found: list[tuple[str, float]]) -> None:
    assert pieces(prompt) == [Piece(text, pytest.approx(weight)) for text, weight in found]
    assert plain(prompt) == "".join(text for text, _ in found)


def test_a_weight_past_ten_is_refused() -> None:
    """As in a time of day that stands in brackets, which is none that was meant."""
    with pytest.raises(ValueError, match=r"the weight in '\(12:30\)' must be from 0 to 10, not 30"):
        pieces("time (12:30) now")
    assert pieces("(now:10)") == [Piece("now", 10)]


def test_a_weight_is_a_distance_from_the_empty_prompt() -> None:
    context, empty = torch.randn(2, 3, 4), torch.randn(1, 3, 4)
    moved = weighted(context, empty, [[1, 1, 1], [0, 1, 2]])
    assert torch.equal(moved[0], empty[0] + (context[0] - empty[0]))
    assert torch.equal(moved[1, 0], empty[0, 0])
    assert torch.allclose(moved[1, 1], context[1, 1], atol=1e-6)
    assert torch.allclose(moved[1, 2] - empty[0, 2], 2 * (context[1, 2] - empty[0, 2]), atol=1e-6)
    assert weighted(context, empty, [[1, 1, 1], [1, 1, 1]]) is context


def test_the_house_weighs_the_tokens_of_the_words_that_are_meant(tiny: ImageModel) -> None:
    """Those of the plain prompt, cut as ever: " cat" is one token, or several, and all of them move; the rest stays."""
    plain_one, heavy = tiny.encode(["a cat on a beach"]), tiny.encode(["a (cat:2) on a beach"])
    assert torch.equal(plain_one.mask, heavy.mask)  # type: ignore[arg-type]
    tokenizer = tiny.prompter.tokenizer  # type: ignore[attr-defined]
    first, last = (1 + len(tokenizer.encode(text)) for text in ("a", "a cat"))
    moved = (heavy.context - plain_one.context).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(first, last))
    assert torch.equal(tiny.encode(["a (cat:1) on a beach"]).context, plain_one.context)
    none = tiny.encode(["(a cat on a beach:0)"]).context
    words = 1 + len(tokenizer.encode("a cat on a beach"))
    assert torch.allclose(none[:, 1:words], tiny.encode([""]).context[:, 1:words], atol=1e-6)


def test_space_before_a_prompt_moves_no_weight(tiny: ImageModel) -> None:
    """It is not read: the weighted words are the same ones, also where the space stands inside of the brackets."""
    there = tiny.encode(["(cat:2) on a beach"])
    for prompt in ("( cat:2) on a beach", "\u3000(\n cat:2) on a beach"):
        assert torch.equal(tiny.encode([prompt]).context, there.context)


@pytest.mark.parametrize(("prompts", "times"), [(["a cat", "a (dog:1)"], 2), (["a cat", "a (dog:1.2)"], 4)])
def test_a_prompt_is_tokenised_once_unless_it_has_weights(
    tiny: ImageModel, monkeypatch: pytest.MonkeyPatch, prompts: list[str], times: int
) -> None:
    """With weights it is tokenised once more, and so is the empty prompt that they are measured from."""
    read: list[str] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: read.append(text) or encode(self, text))
    tiny.encode(prompts)
    assert len(read) == times
