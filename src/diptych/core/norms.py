"""Normalisation: statistics in float32 whatever the precision of the computation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core import sweeps
from diptych.core.precision import at_least_float32
from diptych.core.unchanged import has_hooks


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if sweeps.norms(x):
            return sweeps.norm(x, self.weight, None, self.eps, is_layer=False)
        if x.is_cuda and x.dtype == self.weight.dtype:  # whose kernel works in float32 by itself
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = at_least_float32(x)
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / deviation * weight + bias over the last axis (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        if sweeps.norms(x):
            return sweeps.norm(x, self.weight, self.bias, self.eps, is_layer=True)
        return super().forward(x)


def branch(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """x and norm(x), for a residual branch and what it is added to: where the norm is compiled, their gradients become
    one while they are in the cache."""
    if isinstance(norm, RMSNorm | LayerNorm) and torch.is_grad_enabled() and sweeps.norms(x) and not has_hooks(norm):
        shift, is_layer = (norm.bias, True) if isinstance(norm, LayerNorm) else (None, False)
        return sweeps.norm_of_branch(x, norm.weight, shift, norm.eps, is_layer=is_layer)
    return x, norm(x)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rms": RMSNorm, "layer": LayerNorm}
