"""Adaptive norms: what the network is told (noise level, prompt as a whole) shifts, scales and gates each block
(Peebles & Xie 2023, sec. 3.2; "adaLN-Zero": every block begins as the identity)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.linear import Linear

NORM_EPS = 1e-6


class Modulation(nn.Module):
    """From what the network is told (B, width), bent already, to `count` vectors of each block, each (B, 1, width)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = Linear(width, count * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, told: Tensor) -> tuple[Tensor, ...]:
        vectors: Tensor = self.linear(told)[:, None]
        return vectors.chunk(self.count, dim=-1)


def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then shift + (1 + scale) x; x is (B, T, width)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


class Leave(nn.Module):
    """The last norm and the way out of the transformer: (B, T, width) -> (B, T, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.output = Linear(width, out)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.modulation(told)
        left: Tensor = self.output(normed(x, shift, scale))
        return left


def embedder(source: int, width: int) -> nn.Sequential:
    """Two layers from a vector that the network is told to what its blocks see."""
    return nn.Sequential(Linear(source, width), nn.SiLU(), Linear(width, width))
