"""Randomness by counting: a draw is a function of (seed, sample, step), not of what was drawn before it.

So the same sample comes out alone or inside a batch, at any position, after a resume, and on any device: draws are made
on the CPU and moved. The generator is Philox 4x64 (Salmon et al. 2011), keyed by seed and sample; step and stream are
the high words of its counter, so that no two of them overlap for 2^128 draws.
"""

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGEST_SEED = 2**63 - 1


def check_seed(seed: int | None) -> int:
    """The seed to use: `seed` itself if it is allowed, a fresh one below 2^32 if it is None."""
    if seed is None:
        return secrets.randbelow(2**32)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}, not {seed!r}")
    return seed


def generator(*, seed: int, sample: int = 0, step: int = 0, stream: int = 0) -> np.random.Generator:
    """A fresh generator for one (seed, sample, step, stream); streams separate different uses of the same step."""
    return np.random.Generator(np.random.Philox(key=[seed, sample], counter=[0, 0, step, stream]))


def normal(shape: Sequence[int], *, seed: int, sample: int = 0, step: int = 0, stream: int = 0) -> Tensor:
    """Standard normal draws, float32, on the CPU."""
    draws = generator(seed=seed, sample=sample, step=step, stream=stream).standard_normal(
        tuple(shape), dtype=np.float32
    )
    return torch.from_numpy(draws)


def uniform(shape: Sequence[int], *, seed: int, sample: int = 0, step: int = 0, stream: int = 0) -> Tensor:
    """Draws from [0, 1), float64, on the CPU."""
    return torch.from_numpy(generator(seed=seed, sample=sample, step=step, stream=stream).random(tuple(shape)))
