"""A layer and what follows it in one pass, against two passes in float32."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.attention import Attention
from diptych.core.convolution import convolved
from diptych.core.convolution import suits as suits_convolution
from diptych.core.feedforward import FeedForward
from diptych.core.fused import linear_gelu, linear_plus, linear_times, suits
from diptych.core.linear import Linear
from diptych.core.precision import CPU_MULTIPLIES_BFLOAT16

WAYS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "gelu": (lambda layer, x, other: linear_gelu(layer, x), lambda made, other: F.gelu(made)),
    "gelu-tanh": (
        lambda layer, x, other: linear_gelu(layer, x, "tanh"),
        lambda made, other: F.gelu(made, approximate="tanh"),
    ),
    "times": (linear_times, lambda made, other: other * made),
    "plus": (linear_plus, lambda made, other: other + made),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_one_pass_gives_what_two_give(way: str, dtype: torch.dtype, has_bias: bool) -> None:
    random = torch.Generator().manual_seed(0)
    layer = Linear(48, 64, bias=has_bias).to(dtype)
    x, other = (torch.randn(2, 33, width, generator=random).to(dtype) for width in (48, 64))
    fused, plain = WAYS[way]
    with torch.no_grad():
        bias = None if layer.bias is None else layer.bias.float()
        expected = plain(F.linear(x.float(), layer.weight.float(), bias), other.float())
        found = fused(layer, x, other)
        assert suits(layer, x) == (dtype == torch.bfloat16 and has_bias and CPU_MULTIPLIES_BFLOAT16)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert torch.allclose(fused(layer, x, other).detach().float(), expected, atol=5e-2)  # two roundings


@pytest.mark.parametrize("switches", [{"is_gated": True, "activation": "gelu"}, {"is_gated": False}])
def test_feedforward_and_attention_add_what_they_are_told_to(switches: dict[str, object]) -> None:
    torch.manual_seed(0)
    thinking = FeedForward(32, 48, has_bias=True, **switches)  # type: ignore[arg-type]
    looking = Attention(32, 2, has_output_bias=True)
    x, kept = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    for module in (thinking, looking):
        assert torch.allclose(module(x, plus=kept), kept + module(x), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (5, 13)])
def test_a_convolution_as_one_product(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1024, 64, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 1024, *size).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert suits_convolution(layer, x) == CPU_MULTIPLIES_BFLOAT16
        found = convolved(layer, x)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(found.float(), layer.float()(x.float()), atol=2e-2)
        assert not suits_convolution(layer, x.repeat(8, 1, 1, 1)), "many places are oneDNN's own"
        assert not suits_convolution(nn.Conv2d(1024, 64, 3, stride=2, padding=1).bfloat16(), x)
