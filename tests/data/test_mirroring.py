"""Mirroring: half of the pictures, and none whose caption would be wrong then."""

import pytest

from diptych.core.randomness import generator
from diptych.data.mirroring import mirrored_by_chance, names_a_side


def test_half_are_mirrored_and_none_whose_caption_names_a_side() -> None:
    def mirrored(caption: str) -> int:
        return sum(mirrored_by_chance(generator(seed=3, sample=n), caption) for n in range(200))

    assert 70 < mirrored("a cat in bright light") < 130  # within four standard deviations of a half
    assert mirrored("a cat on the left") == 0


@pytest.mark.parametrize("caption", ["the right hand", "Leftmost", "a left-handed man", "upper right", "to the left."])
def test_captions_that_name_a_side(caption: str) -> None:
    assert names_a_side(caption)


@pytest.mark.parametrize("caption", ["", "bright", "a copyrighted cleft", "uprights"])
def test_captions_that_name_none(caption: str) -> None:
    assert not names_a_side(caption)
