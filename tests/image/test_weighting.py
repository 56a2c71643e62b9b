"""Weights in prompts: what is read out of brackets, and what they do to an encoder's output."""

import pytest
import torch

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
        ("time (12:30) now", [("time ", 1), ("12", 30), (" now", 1)]),
        ("ratio (a:b)", [("ratio (a:b)", 1)]),
        ("(a:1)(b:1)", [("ab", 1)]),
        ("(sunset:.5)", [("sunset", 0.5)]),
        ("", [("", 1)]),
    ],
)
def test_what_brackets_mean(prompt: str, found: list[tuple[str, float]]) -> None:
    if any(weight > 10 for _, weight in found):
        with pytest.raises(ValueError, match=r"the weight in '\(12:30\)' must be from 0 to 10, not 30"):
            pieces(prompt)
        return
    assert pieces(prompt) == [Piece(text, pytest.approx(weight)) for text, weight in found]
    assert plain(prompt) == "".join(text for text, _ in found)


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
