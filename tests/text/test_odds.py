import math

import numpy as np
import pytest
import torch
from scipy import stats

from diptych.core.randomness import uniform
from diptych.text.odds import Controls, draw, odds


def brute_force(logits: list[float], controls: Controls) -> list[float]:
    """The controls by their definitions, one token at a time, on plain lists."""
    weights = [math.exp(value / controls.temperature) for value in logits]
    total = sum(weights)
    ranked = sorted(((weight / total, -token) for token, weight in enumerate(weights)), reverse=True)
    if controls.top_k:
        ranked = ranked[: controls.top_k]
    total = sum(weight for weight, _ in ranked)
    kept, reached = [], 0.0
    for weight, token in ranked:
        if reached >= controls.top_p:
            break
        kept.append((weight, token))
        reached += weight / total
    kept = [(weight, token) for weight, token in kept if weight >= controls.min_p * kept[0][0]]
    total = sum(weight for weight, _ in kept)
    result = [0.0] * len(logits)
    for weight, token in kept:
        result[-token] = weight / total
    return result


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_controls_keep_what_their_definitions_say(temperature, top_k, top_p, min_p):
    logits = torch.from_numpy(np.random.default_rng(4).normal(size=40) * 2)
    controls = Controls(temperature, top_k, top_p, min_p)
    expected = brute_force(logits.tolist(), controls)
    np.testing.assert_allclose(odds(logits, controls).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_temperature_zero_takes_the_most_probable():
    logits = torch.tensor([0.0, 3.0, 3.0, -1.0])
    assert odds(logits, Controls(temperature=0)).tolist() == [0, 1, 0, 0]


def test_a_tiny_temperature_does_not_overflow():
    assert odds(torch.tensor([80.0, 3e4, -3e4]), Controls(temperature=1e-300)).tolist() == [0, 1, 0]


def test_repetition_penalty_lowers_seen_tokens_of_either_sign():
    logits = torch.tensor([2.0, -2.0, 1.0])
    expected = torch.softmax(torch.tensor([1.0, -4.0, 1.0], dtype=torch.float64), dim=-1)
    torch.testing.assert_close(odds(logits, Controls(repetition_penalty=2.0), [0, 1, 0]), expected)


@pytest.mark.parametrize("controls", [Controls(), Controls(0.7, top_k=6), Controls(1.3, top_p=0.8, min_p=0.02)])
def test_draws_follow_the_odds(controls):
    """Chi-square of 20,000 counted draws against the distribution; the seed is fixed, so the test is too."""
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=12) * 1.5)
    chances = odds(logits, controls)
    tokens = [draw(chances, float(u)) for u in uniform((20_000,), seed=11)]
    counts = np.bincount(tokens, minlength=12)
    possible = chances.numpy() > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], chances.numpy()[possible] * 20_000).pvalue > 0.01


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
    chances = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    assert (draw(chances, 0.0), draw(chances, 0.5), draw(chances, math.nextafter(1, 0))) == (1, 3, 3)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", float("nan"), "temperature must be a finite number >= 0, not nan"),
        ("temperature", float("inf"), "temperature must be a finite number >= 0, not inf"),
        ("temperature", -0.1, "temperature must be a finite number >= 0, not -0.1"),
        ("top_k", -1, "top_k must be a whole number >= 0"),
        ("top_k", 2.5, "top_k must be a whole number >= 0"),
        ("top_p", 0.0, "top_p must be a number > 0 and <= 1, not 0.0"),
        ("top_p", 1.01, "top_p must be a number > 0 and <= 1, not 1.01"),
        ("min_p", -0.5, "min_p must be a number >= 0 and <= 1, not -0.5"),
        ("repetition_penalty", 0.0, "repetition_penalty must be a finite number > 0"),
    ],
)
def test_wrong_settings_are_named(setting, value, message):
    with pytest.raises(ValueError, match=message):
        Controls(**{setting: value})


def test_damaged_weights_are_noticed():
    with pytest.raises(ValueError, match="not numbers"):
        odds(torch.tensor([0.0, float("nan")]), Controls())
