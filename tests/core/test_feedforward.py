"""The feed-forward layer against its formula, and its activations against theirs."""

import math

import pytest
import torch

from diptych.core.feedforward import ACTIVATIONS, FeedForward

FORMULA = {
    "silu": lambda x: x / (1 + (-x).exp()),
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,  # So et al. 2021, sec. 4.2
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),  # Hendrycks & Gimpel 2016, eq. 2
    "gelu-tanh": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),  # and sec. 2
    "quick-gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),  # and the last of sec. 2
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_feedforward_is_its_formula(activation, is_gated, has_bias):
    torch.manual_seed(0)
    layer = FeedForward(6, 10, activation=activation, is_gated=is_gated, has_bias=has_bias).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    hidden = x @ layer.up.weight.T + (layer.up.bias if has_bias else 0)
    bend = FORMULA[activation]
    gate = bend(x @ layer.gate.weight.T + (layer.gate.bias if has_bias else 0)) if is_gated else None
    hidden = bend(hidden) if gate is None else gate * hidden  # Shazeer 2020, eq. 6
    expected = hidden @ layer.down.weight.T + (layer.down.bias if has_bias else 0)
    assert torch.allclose(layer(x), expected, atol=1e-12)
    assert (layer.up.bias is not None) == (layer.down.bias is not None) == has_bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_squared_relu_has_the_gradient_that_torch_derives(dtype):
    x, pull = torch.randn(2, 2, 3, 14, generator=torch.Generator().manual_seed(0)).to(dtype)[..., ::2]
    x.requires_grad_()
    both = ACTIVATIONS["relu2"](x), torch.relu(x).square()
    found = [(squared, *torch.autograd.grad(squared, x, pull)) for squared in both]
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_the_squared_relu_can_be_differentiated_twice_and_transformed():
    square = ACTIVATIONS["relu2"]
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradgradcheck(square, x)
    rows = torch.func.vmap(torch.func.grad(lambda row: square(row).sum()))(x.detach())
    assert torch.equal(rows, 2 * x.detach().relu())


def test_an_unknown_activation_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown activation 'sillu'; did you mean 'silu'"):
        FeedForward(6, 10, activation="sillu")
