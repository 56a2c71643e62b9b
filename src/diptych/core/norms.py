"""Normalisation: statistics in float32 whatever the precision of the computation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.kernels import is_ours
from diptych.core.precision import at_least_float32


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if is_ours(x) and not torch.compiler.is_compiling():  # compiled, it is one kernel anyway
            if not torch.is_grad_enabled():
                return _normed(x, self.weight, self.eps)[0]
            normed: Tensor = _Normed.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return normed
        if x.is_cuda and x.dtype == self.weight.dtype:  # whose kernel works in float32 by itself
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = at_least_float32(x)
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x normalised, and 1 / rms of each row in float32."""
    wide = x.float()
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(inverse).mul_(weight).to(x.dtype), inverse


class _Normed(torch.autograd.Function):
    """The same for bfloat16 on a CPU, where torch has no kernel for it and autograd keeps four float32 copies of x:
    here x and one number a row are kept, and the whole takes two fifths of the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        unit, wide = x.float().mul_(inverse), gradient.float()
        to_weight = (wide * unit).flatten(0, -2).sum(0).to(weight.dtype)
        wide.mul_(weight)
        along = (wide * unit).mean(dim=-1, keepdim=True)  # growing x along itself changes nothing
        return wide.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype), to_weight, None


NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rms": RMSNorm, "layer": nn.LayerNorm}
