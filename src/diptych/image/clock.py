"""The clock of a network: in which unit it is told the noise level, and how a number becomes a vector."""

import math

import torch
from torch import Tensor

# clock -> what its numbers are multiplied by, and the longest wave over 2 pi, as that kind of network was trained.
CLOCKS: dict[str, tuple[float, float]] = {
    "log-snr": (8.0, 1000.0),  # log(alpha^2 / sigma^2), which means the same on every path
    "timestep": (1.0, 10000.0),  # the trained step, 0..999 (Ho et al. 2020)
    "flow": (1.0, 10000.0),  # 1000 sigma (Esser et al. 2024)
    "edm": (64.0, 1000.0),  # log(sigma / alpha) / 4 (Karras et al. 2022, table 1): as finely told apart as by log-snr
}


def features(
    numbers: Tensor, width: int, clock: str = "timestep", *, has_cosines_first: bool = False, shift: float = 0.0
) -> Tensor:
    """Sines and cosines of numbers (B,) at geometric frequencies (Vaswani et al. 2017, sec. 3.5): (B, width), float32.

    Args:
        width: even.
        has_cosines_first: the order in which Stable Diffusion has them.
        shift: the last frequency is reached so many steps before the end of the row (1 is Ho et al. 2020).
    """
    scale, longest = CLOCKS[clock]
    half = width // 2
    frequencies = torch.exp(-math.log(longest) * torch.arange(half, device=numbers.device) / (half - shift))
    angles = scale * numbers.float()[:, None] * frequencies
    waves = (angles.cos(), angles.sin()) if has_cosines_first else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)
