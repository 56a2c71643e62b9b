import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from diptych.core.randomness import uniform
from diptych.text.odds import Odds, leading, log_total_and_entropy, odds, row
from diptych.text.settings import Settings


def controls(**changes) -> Settings:
    """The model's own distribution, but for the changes."""
    return Settings(**({"temperature": 1.0, "min_p": 0.0} | changes))


def random_logits(size: int, seed: int, scale: float = 2.5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size) * scale)


REFERENCE = {  # what each control is in transformers, in the order of its generation
    "logit_bias": lambda bias: SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()]),
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": lambda mass: TypicalLogitsWarper(mass=mass),
}
CHOICES = [
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 30},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.03},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"logit_bias": {3: -100.0, 17: 2.5, 40: 7.0}},
    {"temperature": 1.7, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.8, "top_k": 200, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.4, "top_k": 60, "typical_p": 0.8},
    {
        "logit_bias": {5: 3.0, 9: -2.0},
        "repetition_penalty": 1.2,
        "temperature": 0.9,
        "top_k": 100,
        "top_p": 0.97,
        "min_p": 0.001,
        "typical_p": 0.95,
    },
]


@pytest.mark.parametrize("size", [300, 50_000])
@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_controls_are_those_of_transformers(chosen, size):
    """Alone and together, in the order of transformers' own generation, on random logits in float64."""
    prompt, written = [5, 9, 9, 250], [17, 17, 4]
    for seed in range(3):
        logits = random_logits(size, seed)
        reference = LogitsProcessorList(make(chosen[name]) for name, make in REFERENCE.items() if name in chosen)
        scores = reference(torch.tensor([prompt + written]), logits[None].clone())
        expected = torch.softmax(scores, dim=-1)[0].numpy()
        found = odds(row(logits), controls(**chosen), prompt, written).dense(size)
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-15)


def test_the_end_is_forbidden_as_in_transformers():
    logits = random_logits(50, 0)
    processor = MinNewTokensLengthLogitsProcessor(2, 3, [4, 7])
    expected = torch.softmax(processor(torch.tensor([[1, 2, 3]]), logits[None].clone()), dim=-1)[0]
    found = odds(row(logits), controls(), forbidden=np.array([4, 7]))
    np.testing.assert_allclose(found.dense(50), expected.numpy(), rtol=1e-12)
    assert 4 not in found.tokens


def test_presence_and_frequency_penalties_count_what_was_written():
    """By OpenAI's formula, logit - count * frequency - (count > 0) * presence, over written tokens only."""
    logits, written = random_logits(20, 3), [2, 5, 5, 5, 9]
    counts = Counter(written)
    expected = [
        float(logit) - 0.3 * counts[token] - 0.7 * (counts[token] > 0) for token, logit in enumerate(logits.tolist())
    ]
    found = odds(row(logits), controls(presence_penalty=0.7, frequency_penalty=0.3), [1, 1, 2], written)
    np.testing.assert_allclose(found.dense(20), torch.softmax(torch.tensor(expected).double(), -1).numpy(), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 50, 400, 1000, 5000])
def test_the_leading_are_those_of_a_stable_sort(count):
    values = np.random.default_rng(count).integers(-40, 40, size=1000).astype(np.float32)  # many are equal
    assert leading(values, count).tolist() == np.argsort(-values, kind="stable")[:count].tolist()


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 500.0])
def test_probabilities_and_entropy_of_the_model_itself(scale):
    logits = random_logits(40_000, 1, scale).float()
    expected = torch.log_softmax(logits.double(), -1)
    log_total, entropy = log_total_and_entropy(row(logits))
    np.testing.assert_allclose(logits.double().numpy() - log_total, expected.numpy(), rtol=0, atol=1e-6)
    assert entropy == pytest.approx(float(torch.special.entr(expected.exp()).sum()), rel=1e-5)


def test_impossible_tokens_have_no_part_in_the_entropy():
    _, entropy = log_total_and_entropy(np.array([0.0, -np.inf, 0.0], dtype=np.float32))
    assert entropy == pytest.approx(math.log(2))


def test_temperature_zero_takes_the_most_probable():
    logits = torch.tensor([0.0, 3.0, 3.0, -1.0])
    assert odds(row(logits), controls(temperature=0)).dense(4).tolist() == [0, 1, 0, 0]


def test_a_tiny_temperature_does_not_overflow():
    for temperature in (1e-300, 5e-324):
        found = odds(row(torch.tensor([80.0, 3e4, -3e4])), controls(temperature=temperature))
        assert (found.tokens.tolist(), found.chances.tolist()) == ([1], [1.0])


def test_equal_tokens_rank_by_id():
    flat = torch.zeros(6)
    assert odds(row(flat), controls(top_k=2)).tokens.tolist() == [0, 1]
    assert odds(row(flat), controls(top_p=0.4)).tokens.tolist() == [0, 1, 2]


@pytest.mark.parametrize("chosen", [{}, {"temperature": 0.7, "top_k": 6}, {"temperature": 1.3, "top_p": 0.8}])
def test_draws_follow_the_odds(chosen):
    """Chi-square of 20,000 counted draws against the distribution; the seed is fixed, so the test is too."""
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=12) * 1.5)
    chances = odds(row(logits), controls(**chosen))
    tokens = [chances.draw(float(u)) for u in uniform((20_000,), seed=11)]
    counts = np.bincount(tokens, minlength=12)
    assert counts.sum() == counts[chances.tokens].sum()
    assert stats.chisquare(counts[chances.tokens], chances.chances * 20_000).pvalue > 0.01


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
    chances = Odds(np.array([1, 3]), np.array([0.5, 0.5]))
    assert [chances.draw(u) for u in (0.0, 0.5, math.nextafter(1, 0))] == [1, 3, 3]
    assert [chances.of(token) for token in (0, 1, 2, 3, 4)] == [0, 0.5, 0, 0.5, 0]


def test_damaged_weights_are_noticed():
    with pytest.raises(ValueError, match="not numbers"):
        row(torch.tensor([0.0, float("nan")]))
