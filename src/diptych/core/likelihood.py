"""How unlikely targets are under logits: the loss of everything here that chooses among a vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.kernels import is_ours
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


class _Likelihood(torch.autograd.Function):
    """The same for bfloat16 on a CPU, a block of places at a time: of the vocabulary-wide arrays in float32, of which
    there would be four, none leaves the cache. The gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
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
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (to_logits,) = ctx.saved_tensors
        return to_logits * gradient.to(to_logits.dtype), None
