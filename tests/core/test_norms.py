"""Norms against their formulas; statistics stay float32 where the computation is bfloat16."""

import pytest
import torch

from diptych.core.norms import NORMS, RMSNorm


def test_rms_norm_is_its_formula():
    norm = RMSNorm(5, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    assert torch.allclose(norm(x), expected, atol=1e-6)
    assert norm(x).dtype == torch.float64


@pytest.mark.parametrize("name", NORMS)
def test_norms_leave_unit_size_and_keep_their_width(name):
    x = 50 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) + (0 if name == "rms" else 9)
    assert torch.allclose(NORMS[name](64, 1e-6)(x).square().mean(-1), torch.ones(4), rtol=1e-4)


def test_statistics_of_bfloat16_are_those_of_float32():
    """The square of 300 overflows float16, and a long sum loses a bfloat16's 8 bits: the answer must not."""
    x = torch.full((1, 1000), 300.0)
    assert torch.equal(RMSNorm(1000)(x.half()), torch.ones(1, 1000).half())
    mixed = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = RMSNorm(4096)(mixed.float())
    assert torch.equal(RMSNorm(4096)(mixed), exact.bfloat16())


def test_a_row_of_zeros_stays_zero():
    assert torch.equal(RMSNorm(8)(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_the_kernel_for_bfloat16_has_the_gradients_of_the_formula(monkeypatch):
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", True)
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-2)
    torch.nn.init.normal_(norm.weight)
    lower = torch.randn(3, 5, 2, 64).bfloat16().transpose(1, 2).requires_grad_()
    exact = lower.detach().double().requires_grad_()
    pull = torch.randn(3, 2, 5, 64).bfloat16()
    norm(lower).backward(pull)
    to_weight, norm.weight.grad = norm.weight.grad, None
    norm(exact).backward(pull.double())
    assert torch.allclose(lower.grad.double(), exact.grad, rtol=2**-8, atol=1e-5)
    assert torch.allclose(to_weight, norm.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 4, 7)])
def test_gradients_of_the_rms_norm_are_those_of_its_formula(shape):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(*shape[:-1], 14, dtype=torch.float64, generator=draws)[..., ::2].requires_grad_()
    norm = RMSNorm(7, eps=1e-2).double()
    torch.nn.init.normal_(norm.weight, generator=draws)
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_norm_that_learns_gives_what_one_gives_that_does_not(dtype):
    norm = RMSNorm(33)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(1)).to(dtype)
    learned = norm(x)
    assert learned.requires_grad
    with torch.no_grad():
        assert torch.equal(norm(x), learned)


def test_a_norm_can_be_differentiated_twice_and_transformed():
    """As what needs the curvature of a loss does, or the gradient of each row by itself."""
    norm = RMSNorm(6, eps=1e-2).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, _: norm(x), (x, norm.weight))
    rows = torch.func.vmap(torch.func.grad(lambda row: norm(row).square().sum()))(x.detach())
    norm(x).square().sum().backward()
    assert torch.allclose(rows, x.grad)


def test_what_is_frozen_gets_no_gradient_from_a_norm():
    norm, x = RMSNorm(6).requires_grad_(False), torch.randn(3, 6, requires_grad=True)
    torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)[0].sum().backward()
    assert norm.weight.grad is None
    before = x.grad.clone()
    norm.requires_grad_(True)
    norm(x.detach()).square().sum().backward()
    assert norm.weight.grad.norm() > 0
    assert torch.equal(x.grad, before)
