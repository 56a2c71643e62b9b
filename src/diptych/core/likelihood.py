"""How unlikely targets are under logits: the loss of everything here that chooses among a vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core import sweeps
from diptych.core.kernels import is_ours
from diptych.core.linear import turned_product
from diptych.core.precision import at_least_float32

IGNORED = -100  # the target of a place that has none
NUMBERS = 2**20  # logits in a block: 4 MB of float32


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(logits)[target] over the places that have a target, in nats, at least float32.

    Args:
        logits: (..., V).
        targets: (...), int64; -100 where there is none.
    """
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if is_ours(logits) and logits.requires_grad and not torch.compiler.is_compiling():
        total: Tensor = _Likelihood.apply(logits, targets)  # type: ignore[no-untyped-call]
        return total
    return F.cross_entropy(at_least_float32(logits), targets, ignore_index=IGNORED, reduction="sum")


def likelihood_of_products(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`negative_log_likelihood` of the logits x weight^T. While training in bfloat16 on a CPU their gradient follows
    at once, and all that is kept are the gradients of x and weight.

    Args:
        x: (..., C); weight: (V, C); targets: (...), int64; -100 where there is none.
    """
    is_trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if is_ours(x) and is_trained and not torch.compiler.is_compiling():
        flat = x.flatten(0, -2)
        total: Tensor = _Products.apply(flat, weight, targets.flatten())  # type: ignore[no-untyped-call]
        return total
    return negative_log_likelihood(F.linear(x, weight), targets)


def _score(logits: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
    """The sum of -log p of targets, and its gradient by the logits (N, V) into `gradient`, which may be the logits
    themselves: a block of places at a time, so that of the arrays of that size in float32, of which there would be
    four, none leaves the cache."""
    if sweeps.scores(logits, gradient):
        return sweeps.score(logits, targets, gradient).sum()
    total = torch.zeros((), dtype=torch.float32)
    rows = max(1, NUMBERS // logits.shape[-1])
    for block, target, found in zip(logits.split(rows), targets.split(rows), gradient.split(rows), strict=True):
        is_real, place = (target != IGNORED)[:, None], target.clamp(min=0)[:, None]
        odds = torch.softmax(block.float(), dim=-1)
        # Seen from the likeliest, whose odds are at least 1 / V: those of a target may be too small for a float.
        behind = block.gather(-1, place).float() - block.amax(dim=-1, keepdim=True).float()
        total -= (behind + odds.amax(dim=-1, keepdim=True).log()).mul_(is_real).sum()
        odds.scatter_add_(-1, place, odds.new_full(place.shape, -1.0))
        found.copy_(odds if is_real.all() else odds.mul_(is_real))
    return total


class _Likelihood(torch.autograd.Function):
    """For bfloat16 on a CPU: the gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        total = _score(logits, targets, gradient)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (to_logits,) = ctx.saved_tensors
        return to_logits * gradient.to(to_logits.dtype), None


class _Products(torch.autograd.Function):
    """The same with the product that gives the logits (N, V), whose gradient takes their place. All of them are
    multiplied at once: fewer rows would stay in the cache while they are scored, but take longer to multiply. The
    weight (V, C) may be wider than x (N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wide, weight = weight.dtype, weight.to(x.dtype)
        logits = x @ weight.mT
        total = _score(logits, targets, logits)
        to_x = logits @ weight if ctx.needs_input_grad[0] else None
        to_weight = turned_product(logits, x) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(to_x, to_weight)
        ctx.wide = wide
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_x, to_weight = (None if found is None else found * gradient for found in ctx.saved_tensors)
        return to_x, None if to_weight is None else to_weight.to(ctx.wide), None
