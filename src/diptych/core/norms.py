"""Normalisation: statistics in float32 whatever the precision of the computation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core import sweeps
from diptych.core.precision import at_least_float32
from diptych.core.unchanged import has_hooks, is_transformed
from diptych.core.weights import mesh_of


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
        weight = self.weight.to(wide.dtype)
        if _is_learning(wide, weight):
            normed: Tensor = _RMSNorm.apply(wide, weight, self.eps)  # type: ignore[no-untyped-call]
            return normed.to(x.dtype)
        return F.rms_norm(wide, weight.shape, weight, self.eps).to(x.dtype)


def _is_learning(x: Tensor, weight: Tensor) -> bool:
    """Whether gradients are to be known, on a CPU, of what this process has to itself."""
    needs = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return needs and x.device.type == "cpu" and mesh_of(x) is mesh_of(weight) is None and not is_transformed()


class _RMSNorm(torch.autograd.Function):
    """To the last bit what `F.rms_norm` gives on a CPU, whose gradients torch derives operation by operation. Here they
    are those of a layer norm whose mean is 0, which has a kernel, and what it takes away for the mean is given back:
    three to five times as fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # whose own gradient is asked for
            again = F.rms_norm(x, weight.shape, weight, ctx.eps)
            needed = [one for one, is_needed in zip((x, weight), needs, strict=True) if is_needed]
            found = iter(torch.autograd.grad(again, needed, pull, create_graph=True))
            return next(found) if needs[0] else None, next(found) if needs[1] else None, None
        mean, width = torch.zeros_like(scale), x.shape[-1]
        to_x, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
            pull, x, [width], mean, scale, weight, None, [*needs, False]
        )
        if needs[0]:
            to_x.add_((pull @ weight).unsqueeze(-1).mul_(scale / width))
        return to_x, to_weight, None


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
