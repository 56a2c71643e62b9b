"""Between two prompts and between two seeds: the ends are the pictures themselves, the way between has no jumps."""

import itertools
import math

import pytest
import torch

from diptych.image.condition import Condition, arc, blend
from diptych.image.model import ImageModel


def first_noise(model: ImageModel, **settings: object) -> torch.Tensor:
    step = next(iter(model.generate("a cat", steps=2, **settings)))  # type: ignore[arg-type]
    return step.noisy / step.sigma


def test_the_ends_of_an_arc_are_the_two_pictures_bit_for_bit(tiny: ImageModel) -> None:
    """Prompts of different length and seeds; also where static was turned before."""
    ends = [("a cat", 1), ("a dog in a forest at night", 2)]
    alone = [tiny.generate(prompt, steps=3, seed=seed).result() for prompt, seed in ends]
    for share, end in zip((0, 1), alone, strict=True):
        way = tiny.generate("a cat", steps=3, seed=1, to_prompt=ends[1][0], to_seed=2, share=share).result()
        assert torch.equal(way.latents, end.latents)


def test_between_prompts_there_is_no_jump_at_the_ends(tiny: ImageModel) -> None:
    """In the network's answer: no twentieth of the way changes it by half of what the whole way does, the first and the
    last included, where the number of words changes."""
    x = torch.randn(1, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))

    def answer(condition: Condition) -> torch.Tensor:
        out: torch.Tensor = tiny.network(x, torch.zeros(1), condition.context, condition.mask)
        return out

    one, other = tiny.encode(["a cat"]), tiny.encode(["a dog in a forest at night"])
    whole = (answer(one) - answer(other)).norm()
    middle = answer(blend(one, other, 0.5))
    assert (middle - answer(one)).norm() > 0.1 * whole
    steps = [answer(blend(one, other, share / 20)) for share in range(21)]
    largest = max((b - a).norm() for a, b in itertools.pairwise(steps))
    assert largest < 0.5 * whole


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_an_arc_of_words_goes_evenly_over_directions_and_lengths(share: float) -> None:
    """Shoemake 1985: angles divide as the share says; here lengths, too."""
    one = torch.tensor([[3.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 5.0 * math.sin(1.0), 0.0]]) + torch.tensor([[5.0 * math.cos(1.0), 0.0, 0.0]])
    between = arc(one, other, share)
    assert between.norm() == pytest.approx(3 + 2 * share, rel=1e-5)
    assert math.atan2(between[0, 1], between[0, 0]) == pytest.approx(share * 1.0, abs=1e-5)


def test_an_arc_between_the_same_and_between_opposites_is_finite() -> None:
    one = torch.tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    between = arc(one, other, 0.5)
    assert torch.isfinite(between).all()
    assert torch.allclose(between[0], one[0], atol=1e-5)


def test_static_between_two_seeds_is_as_loud_as_static(tiny: ImageModel) -> None:
    """A straight line would lose half of the variance in its middle."""
    for share in (0.25, 0.5, 0.75):
        noise = first_noise(tiny, seed=1, to_seed=2, share=share, height=256, width=256)
        assert float(noise.var()) == pytest.approx(1, abs=0.06)
    a, b = first_noise(tiny, seed=1), first_noise(tiny, seed=2)
    middle = first_noise(tiny, seed=1, to_seed=2, share=0.5)
    assert torch.allclose(middle, (a + b) / math.sqrt(2), atol=1e-4)


def test_variations_lie_nearer_the_smaller_the_turn_and_can_be_turned_again(tiny: ImageModel) -> None:
    """The cosine of the angle to the picture's own static is what the share says, up to chance."""
    own = first_noise(tiny, seed=1, height=256, width=256)

    def cosine(**settings: object) -> float:
        other = first_noise(tiny, seed=1, height=256, width=256, **settings)
        return float((own * other).sum() / (own.norm() * other.norm()))

    for share in (0.1, 0.3, 0.8):
        assert cosine(turns=[(5, share)]) == pytest.approx(math.cos(share * math.pi / 2), abs=0.05)
    twice = cosine(turns=[(5, 0.3), (6, 0.3)])
    assert twice == pytest.approx(math.cos(0.3 * math.pi / 2) ** 2, abs=0.05)
    settings = tiny.generate("a cat", steps=1, seed=1, turns=[(5, 0.3)]).result().settings
    assert settings["turns"] == [[5, 0.3]]


def test_static_that_is_turned_to_one_seed_twice_is_no_louder(tiny: ImageModel) -> None:
    """Draws of one seed are the same, not independent: their squares do not simply add up."""
    for settings in (
        {"turns": [(2, 0.3), (2, 0.3)]},
        {"turns": [(2, 0.3)], "to_seed": 2, "share": 0.4},
        {"turns": [(1, 0.5)]},  # its own
    ):
        noise = first_noise(tiny, seed=1, height=256, width=256, **settings)
        assert float(noise.var()) == pytest.approx(1, abs=0.06)
    assert torch.equal(first_noise(tiny, seed=1, turns=[(1, 1.0)]), first_noise(tiny, seed=1))
