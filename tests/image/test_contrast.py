"""The contrastive objective: by hand, against torch, and against the papers' formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.image.contrast import LARGEST_SCALE, contrastive_loss, equal_captions, sigmoid_loss, softmax_loss

NONE_ALIKE = torch.eye(3, dtype=torch.bool)


@pytest.fixture
def unit() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(6, 8, generator=random), dim=-1) for _ in range(2))  # type: ignore[return-value]


def test_three_pairs_by_hand() -> None:
    """Logits log 2 on the diagonal and 0 beside it: each right answer has 2 of 4 shares, so log 2 in both directions;
    with the 0 at (1, 2) made log 2, row 1 has 2 of 5 shares and column 2, too."""
    logits = torch.eye(3) * math.log(2)
    assert softmax_loss(logits, NONE_ALIKE).item() == pytest.approx(math.log(2))
    logits[0, 1] = math.log(2)
    assert softmax_loss(logits, NONE_ALIKE).item() == pytest.approx((2 * math.log(2) + math.log(5 / 2)) / 3)


def test_without_equal_captions_it_is_two_cross_entropies(unit: tuple[Tensor, Tensor]) -> None:
    """Radford et al. 2021, figure 3: labels are 0, 1, 2, ... in both directions."""
    pictures, captions = unit
    logits, labels = 7 * pictures @ captions.T, torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    log_scale = torch.tensor(math.log(7))
    found = contrastive_loss(pictures, captions, log_scale, None, torch.eye(6, dtype=torch.bool), loss="softmax")
    torch.testing.assert_close(found, expected)


def test_pairs_that_lie_on_each_other_cost_nothing_at_a_high_scale() -> None:
    axes = torch.eye(5)
    found = contrastive_loss(
        axes, axes, torch.tensor(math.log(100)), None, torch.eye(5, dtype=torch.bool), loss="softmax"
    )
    assert found.item() < 1e-6
    wrong = contrastive_loss(
        axes, axes.roll(1, 0), torch.tensor(4.0), None, torch.eye(5, dtype=torch.bool), loss="softmax"
    )
    assert wrong.item() > 50


def test_equal_captions_are_all_right() -> None:
    """Two pictures share their words: sending both to the one place is best, log 2 of doubt between them remains."""
    tokens = torch.tensor([[1, 7, 2], [1, 7, 2], [1, 8, 2]])
    positives = equal_captions(tokens)
    assert positives.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    places = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    full = torch.tensor(math.log(100))
    found = contrastive_loss(places, places, full, None, positives, loss="softmax")
    assert found.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-6)
    logits = (100 * places @ places.T).requires_grad_()
    softmax_loss(logits, positives).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6, "nothing pushes equal captions apart"
    logits = (100 * places @ places.T).requires_grad_()
    softmax_loss(logits, NONE_ALIKE).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.abs().max() > 0.1, "the plain loss would"


def test_the_sigmoid_loss_is_the_papers_formula(unit: tuple[Tensor, Tensor]) -> None:
    """Zhai et al. 2023, eq. 1, pair by pair, with two captions alike."""
    pictures, captions = unit
    positives = torch.eye(6, dtype=torch.bool)
    positives[0, 3] = positives[3, 0] = True
    scale, bias = 5.0, -3.0
    total = 0.0
    for i in range(6):
        for j in range(6):
            z = 1 if positives[i, j] else -1
            total += math.log(1 / (1 + math.exp(z * (-scale * float(pictures[i] @ captions[j]) - bias))))
    found = contrastive_loss(
        pictures, captions, torch.tensor(math.log(scale)), torch.tensor(bias), positives, loss="sigmoid"
    )
    assert found.item() == pytest.approx(-total / 6, rel=1e-5)


def test_the_scale_is_clamped_at_100(unit: tuple[Tensor, Tensor]) -> None:
    positives = torch.eye(6, dtype=torch.bool)
    at_most, beyond = (
        contrastive_loss(*unit, torch.tensor(log_scale), None, positives, loss="softmax")
        for log_scale in (math.log(LARGEST_SCALE), 9.0)
    )
    assert torch.equal(at_most, beyond)


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_the_loss_of_a_batch_is_not_the_mean_over_its_parts(loss: object, unit: tuple[Tensor, Tensor]) -> None:
    """Why a task with it may not be split: a part lacks the negatives of the others."""
    logits = 5 * unit[0] @ unit[1].T
    diagonal = torch.eye(6, dtype=torch.bool)
    whole = loss(logits, diagonal)  # type: ignore[operator]
    halves = [loss(logits[part, part], diagonal[part, part]) for part in (slice(0, 3), slice(3, 6))]  # type: ignore[operator]
    assert whole > 1.2 * sum(halves) / 2


def test_half_precision_around_it_changes_nothing(unit: tuple[Tensor, Tensor]) -> None:
    """Under autocast the similarities stay in float32: at a scale of 100 bfloat16 would be off by 0.4 and more."""
    arguments = (*unit, torch.tensor(math.log(100)), None, torch.eye(6, dtype=torch.bool))
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss(*arguments, loss="softmax")
    assert torch.equal(inside, contrastive_loss(*arguments, loss="softmax"))
