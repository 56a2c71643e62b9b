"""The interval of a share: against the equation that defines it, and against scipy."""

import math

import pytest
from scipy.stats import binomtest

from diptych.core.share import Z95, Share


@pytest.mark.parametrize(("found", "asked"), [(0, 7), (1, 3), (88, 176), (165, 176), (176, 176)])
def test_the_interval_is_wilsons(found: int, asked: int) -> None:
    low, high = Share(found, asked).interval
    theirs = binomtest(found, asked).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("found", "asked"), [(3, 10), (165, 176)])
def test_at_its_ends_the_share_lies_exactly_z_standard_deviations_away(found: int, asked: int) -> None:
    """Wilson's interval is the set of p with |share - p| <= z sqrt(p (1 - p) / n)."""
    for end in Share(found, asked).interval:
        assert abs(found / asked - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / asked), rel=1e-9)


def test_all_right_still_leaves_doubt() -> None:
    low, high = Share(20, 20).interval
    assert low == pytest.approx(1 / (1 + Z95**2 / 20))
    assert high == 1.0


@pytest.mark.parametrize(("found", "asked"), [(0, 0), (-1, 5), (6, 5)])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(found: int, asked: int) -> None:
    with pytest.raises(ValueError, match="found <= asked"):
        Share(found, asked)


def test_it_reads_as_a_sentence() -> None:
    assert str(Share(9, 10)) == "90.0 % (9 of 10; 95 % interval 59.6 to 98.2)"
