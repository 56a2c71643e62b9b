"""Draws are a function of (seed, sample, step, stream): of nothing else, and different for each."""

import numpy as np
import pytest
import torch
from scipy import stats

from diptych.core.randomness import LARGEST_SEED, check_seed, generator, normal, uniform

KEYS = ("seed", "sample", "step", "stream")


def philox_4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64 with 10 rounds, from the paper (Salmon et al. 2011, section 3.3 and table 2), in whole numbers."""
    word = 2**64
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * counter[0], word)
        high1, low1 = divmod(0xCA5A826395121157 * counter[2], word)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B97F4A7C15) % word, (key[1] + 0xBB67AE8584CAA73B) % word]
    return counter


@pytest.mark.parametrize(
    ("seed", "sample", "step", "stream"), [(0, 0, 0, 0), (7, 3, 29, 1), (LARGEST_SEED, 5, 10**6, 2)]
)
def test_uniform_draws_are_those_of_the_paper(seed, sample, step, stream):
    """Counter 1 is the first that is used (the counter goes up before a block is made); 53 high bits make a double."""
    words = philox_4x64([1, 0, step, stream], [seed, sample]) + philox_4x64([2, 0, step, stream], [seed, sample])
    expected = [(word >> 11) * 2.0**-53 for word in words]
    assert uniform((8,), seed=seed, sample=sample, step=step, stream=stream).tolist() == expected


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_draw_does_not_depend_on_what_was_drawn_before(draw):
    forwards = [draw((3,), seed=5, sample=sample, step=step) for sample in range(4) for step in range(4)]
    backwards = [draw((3,), seed=5, sample=sample, step=step) for sample in (3, 2, 1, 0) for step in (3, 2, 1, 0)]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generators must not matter
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("changed", KEYS)
def test_every_part_of_the_key_gives_other_draws(draw, changed):
    key = dict.fromkeys(KEYS, 3)
    here, there = draw((1000,), **key), draw((1000,), **(key | {changed: 4}))
    assert not torch.equal(here, there)
    assert abs(np.corrcoef(here.numpy(), there.numpy())[0, 1]) < 0.15  # 4.7 standard deviations


def test_swapping_two_parts_of_the_key_gives_other_draws():
    """Keys that are added up instead of kept apart would make (1, 2) and (2, 1) the same."""
    seen = {tuple(uniform((2,), seed=a, sample=b, step=c, stream=d).tolist()) for a, b, c, d in np.ndindex(3, 3, 3, 3)}
    assert len(seen) == 81


def test_a_longer_draw_starts_like_a_shorter_one():
    assert torch.equal(normal((1000,), seed=1)[:10], normal((10,), seed=1))
    assert torch.equal(normal((4, 5), seed=1).flatten(), normal((20,), seed=1))


def test_normal_draws_are_standard_normal_across_steps_and_samples():
    """Kolmogorov-Smirnov over many short draws: what a generation really uses."""
    draws = torch.cat([normal((16,), seed=9, sample=sample, step=step) for sample in range(40) for step in range(40)])
    assert draws.dtype == torch.float32
    assert draws.device.type == "cpu"
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3


def test_uniform_draws_fill_the_unit_interval_and_never_reach_one():
    draws = torch.cat([uniform((4,), seed=9, step=step) for step in range(5000)])
    assert draws.dtype == torch.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3


def test_generator_can_go_on_where_the_draws_began():
    assert generator(seed=2, step=6).random() == uniform((1,), seed=2, step=6).item()


def test_check_seed_passes_what_is_allowed_and_makes_one_where_there_is_none():
    assert check_seed(0) == 0
    assert check_seed(LARGEST_SEED) == LARGEST_SEED
    fresh = {check_seed(None) for _ in range(8)}
    assert len(fresh) > 1
    assert all(0 <= seed < 2**32 for seed in fresh)


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 1.5, True, "7"])
def test_check_seed_names_what_is_allowed(seed):
    with pytest.raises(ValueError, match=rf"seed must be a whole number from 0 to {LARGEST_SEED}, not "):
        check_seed(seed)
