"""Keys and values in 12 bits: what is read back, how far off, and that places, slots and growth are those of a cache
that keeps them as they are."""

import pytest
import torch
from torch import Tensor

from diptych.core.machine_code import is_here
from diptych.text.kept import Kept, ShortKept

pytestmark = pytest.mark.skipif(not is_here(), reason="this system compiles nothing")
SHAPES = pytest.mark.parametrize(("width", "are_values"), [(64, False), (64, True), (192, False), (192, True)])


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).bfloat16()


def written(new: Tensor, are_values: bool) -> Tensor:
    """Rows (N, D), as they are read again."""
    kept = ShortKept((1, 1, len(new), new.shape[1]), are_values=are_values)
    kept.write_run(0, 0, new[None])
    return kept.read([0], torch.tensor([0]), len(new))[0, 0]


def off(new: Tensor, found: Tensor) -> Tensor:
    """How far each number is off, over the power of two of its row's largest."""
    _, exponent = torch.frexp(new.float().abs().amax(-1, keepdim=True))
    return (found.float() - new.float()).abs() / torch.exp2(exponent - 1.0)


@SHAPES
def test_numbers_within_2_to_the_14th_of_the_largest_are_the_same_and_none_is_far_off(
    width: int, are_values: bool
) -> None:
    new = numbers(700, width)
    found = written(new, are_values)
    distance = off(torch.zeros_like(new), new) / off(torch.zeros_like(new), new).amax(-1, keepdim=True)
    assert torch.equal(found[distance >= 2**-13], new[distance >= 2**-13])
    assert 0 < off(new, found).max() <= 2**-15
    assert (found != new).float().mean() < 2e-4


@SHAPES
def test_rows_of_any_size_keep_their_own(width: int, are_values: bool) -> None:
    """From the smallest rows without subnormal numbers to the largest, each beside all others; what is 0 stays 0."""
    new = numbers(236, width).clamp(-1.5, 1.5) * torch.exp2(torch.arange(-110.0, 126.0))[:, None].bfloat16()
    new[3], new[4, 5:] = 0, 0
    found = written(new, are_values)
    assert off(new, found)[torch.arange(236) != 3].max() <= 2**-15
    assert (found[3] == 0).all()
    assert (found[4, 5:] == 0).all()


@SHAPES
def test_places_slots_copies_and_growth_are_those_of_a_plain_cache(width: int, are_values: bool) -> None:
    short, plain = ShortKept((3, 2, 100, width), are_values=are_values), Kept((3, 2, 100, width), "cpu", torch.bfloat16)
    run, single = numbers(2, 90, width), numbers(4, 2, width)[:, :, :width]
    for kept in (short, plain):
        kept.write_run(1, 3, run.transpose(0, 1).contiguous().transpose(0, 1))
        kept.write_at(torch.tensor([0, 1, 2, 1]), torch.tensor([5, 0, 99, 96]), single)
        kept.copy(1, 2, 50)
        kept.grow(5, 301)
        kept.write_run(4, 297, run[:, :3])
    for slots, reach in (([0, 1], 98), ([2], 50), ([1, 0], 97), ([4], 300)):
        found, expected = (kept.read(slots, torch.tensor(slots), reach) for kept in (short, plain))
        assert found.shape == expected.shape == (len(slots), 2, reach, width)
        assert off(expected, found).nan_to_num(0).max() <= 2**-15
        assert (expected != 0).any()
    assert short.num_bytes / short.length == (width * 3 / 2 + 1) * 10
