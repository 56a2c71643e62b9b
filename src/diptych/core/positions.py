"""Rotary positions (Su et al. 2021): query and key are turned by their position, so their product sees the distance."""

import torch
from torch import Tensor

from diptych.core.precision import at_least_float32


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
    """Turn x (B, H, T, D): component i is paired with component i + D/2, as in Llama's published weights."""
    first, second = at_least_float32(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
