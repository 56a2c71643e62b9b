"""Intervals: against scipy, against the case where one is the other, and against how often they hold."""

import numpy as np
import pytest
from scipy.stats import norm, sem

from diptych.core.estimate import Estimate, headlines, mean, ratio, with_details
from diptych.core.share import Share


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    samples = np.random.default_rng(0).gamma(2.0, size=40)
    found = mean(samples)
    assert found.interval == pytest.approx(norm.interval(0.95, samples.mean(), sem(samples)))
    assert (found.value, found.count) == (pytest.approx(samples.mean()), 40)


def test_a_ratio_over_equal_wholes_is_a_mean() -> None:
    parts = np.random.default_rng(1).random(30)
    one, two = ratio(parts, np.full(30, 4.0)), mean(parts / 4)
    assert one.value == pytest.approx(two.value)
    assert one.interval == pytest.approx(two.interval)


def test_the_interval_of_a_ratio_holds_in_about_95_of_100_cases() -> None:
    """Documents of random length at 2 bits a byte plus noise; of 1,000 cases two standard deviations are 1.4 %."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        wholes = random.integers(50, 500, 60)
        found = ratio(wholes * (2 + 0.5 * random.standard_normal(60)), wholes)
        assert found.interval is not None
        held += found.interval[0] <= 2 <= found.interval[1]
    assert held / 1000 == pytest.approx(0.945, abs=0.02)


def test_one_sample_has_no_interval_and_none_is_refused() -> None:
    assert mean([3.0]) == Estimate(3.0, None, 1) == ratio([6.0], [2.0])
    assert mean([3.0]).figures("loss") == {"loss": 3.0, "loss/count": 1}
    assert mean([3.0]).told(1, "pictures") == "3.0 (1 pictures)"
    with pytest.raises(ValueError, match="nothing to take the mean of"):
        mean([])


def test_figures_of_a_log_are_folded_for_a_reader() -> None:
    """Intervals and counts go beside their figure in a card; a summary tells only what is not a part of another."""
    figures = Estimate(0.5, (0.4, 0.6), 9).figures("loss") | Share(1, 4).figures("loss/level-1") | {"bits/tales": 2.0}
    assert list(headlines(figures)) == ["loss", "bits/tales"]
    told = with_details(figures)
    assert list(told) == ["loss", "loss/level-1", "bits/tales"]
    assert told["loss"] == "0.5 (0.4 to 0.6, n = 9)"
    assert told["bits/tales"] == "2"


def test_it_reads_as_a_sentence() -> None:
    assert Estimate(0.7421, (0.7, 0.8), 400).told(3, "stories") == "0.742 (95 % interval 0.700 to 0.800, 400 stories)"
