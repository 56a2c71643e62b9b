"""The likelihood of targets against the formula in float64, value and gradient."""

import pytest
import torch

from diptych.core import likelihood
from diptych.core.likelihood import likelihood_of_products, negative_log_likelihood


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_sum_and_its_gradient_are_those_of_float64(monkeypatch, is_fast, rows):
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", is_fast)
    monkeypatch.setattr(likelihood, "NUMBERS", rows * 50)
    random = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(2, 5, 50, generator=random)).bfloat16().requires_grad_()
    targets = torch.randint(50, (2, 5), generator=random)
    targets[0, 1] = targets[1, 4] = -100
    total = negative_log_likelihood(logits, targets)
    (total / 8).backward()

    exact = logits.detach().double().requires_grad_()
    log_p = exact.log_softmax(-1)
    expected = -sum(log_p[b, t, targets[b, t]] for b in range(2) for t in range(5) if targets[b, t] >= 0)
    (expected / 8).backward()

    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=2**-7, atol=1e-9)
    assert not logits.grad[0, 1].any()


@pytest.mark.parametrize("is_fast", [True, False])
def test_with_the_product_before_it_the_gradients_are_those_of_float64(monkeypatch, is_fast):
    """Up to the rounding of logits, odds and results to bfloat16: 2^-8 of each, and 2^-8 of a logit of up to 20."""
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", is_fast)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 16, generator=random).bfloat16().requires_grad_()
    weight = torch.randn(50, 16, generator=random).requires_grad_()
    targets = torch.randint(50, (2, 5), generator=random)
    targets[0, 1] = targets[1, 4] = -100
    with torch.autocast("cpu", torch.bfloat16):
        total = likelihood_of_products(x, weight, targets)
    (total / 8).backward()

    exact, matrix = x.detach().double().requires_grad_(), weight.detach().bfloat16().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy((exact @ matrix.T).flatten(0, 1), targets.flatten(), reduction="sum")
    (expected / 8).backward()

    assert total.item() == pytest.approx(expected.item(), rel=5e-3)
    assert (x.grad.double() - exact.grad).norm() < 0.02 * exact.grad.norm()
    assert (weight.grad.double() - matrix.grad).norm() < 0.02 * matrix.grad.norm()
    assert weight.grad.dtype == torch.float32
    assert not x.grad[0, 1].any()


def test_a_matrix_at_rest_gets_no_gradient_and_changes_none(monkeypatch):
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", True)
    x, weight = torch.randn(6, 8).bfloat16().requires_grad_(), torch.randn(20, 8).bfloat16()
    targets = torch.arange(6)
    likelihood_of_products(x, weight, targets).backward()
    alone = x.detach().clone().requires_grad_()
    likelihood_of_products(alone, weight.requires_grad_(), targets).backward()
    assert torch.equal(alone.grad, x.grad)


def test_nothing_to_foresee_costs_nothing():
    logits = torch.randn(3, 7, requires_grad=True)
    total = negative_log_likelihood(logits, torch.full((3,), -100))
    total.backward()
    assert total == 0
    assert not logits.grad.any()
