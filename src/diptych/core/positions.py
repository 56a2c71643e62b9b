"""Rotary positions (Su et al. 2021): query and key are turned by their position, so their product sees the distance."""

from typing import Any

import torch
from torch import Tensor


def rotary(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles position * theta^(-2i / head_dim).

    Args:
        positions: (B, T), integers.

    Returns:
        (cos, sin), each (B, 1, T, head_dim / 2), float32.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None, :, None] * theta**-exponent
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, H, T, D): component i is paired with component i + D/2, as in Llama's published weights.

    The angles are taken to the dtype of x, as other implementations do.
    """
    turned: Tensor = _Turn.apply(x, cos.to(x.dtype), sin.to(x.dtype))  # type: ignore[no-untyped-call]
    return turned


class _Turn(torch.autograd.Function):
    """The gradient of a turn is turned back: nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    # Whole rows at a time: operations on halves of rows are slow on a CPU.
    first, second = x.chunk(2, dim=-1)
    crossed = torch.cat((second, first), dim=-1).mul_(torch.cat((-direction * sin, direction * sin), dim=-1))
    return crossed.addcmul_(x, torch.cat((cos, cos), dim=-1))
