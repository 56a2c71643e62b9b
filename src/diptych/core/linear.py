"""Linear layers, whose gradient of the weights is compiled on a CPU that multiplies tiles of bfloat16 (AMX).

oneDNN turns one of the factors of that product, and takes half as long again for it as for the other two. Here both are
laid out piece by piece in the cache (`core.product_kernel`), and sums stay float32, which autocast rounds to bfloat16.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core import machine_code, together
from diptych.core import product_plan as at
from diptych.core.kernels import is_ours
from diptych.core.together import new_table, run_together

_LIBRARY = torch.library.Library("diptych", "FRAGMENT")
_LIBRARY.define("turned_product(Tensor left, Tensor right) -> Tensor")

# Asked once: whether this machine can, and is one for which it is the faster way.
IS_HERE = together.IS_HERE and machine_code.multiplies_tiles()


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_learning_here(x, self.weight):
            product: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return super().forward(x)


def _is_learning_here(x: Tensor, weight: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and torch.is_autocast_enabled("cpu")
        and type(x) is Tensor  # not a part of a matrix that several processes hold
        and type(weight) is nn.Parameter
        and _suits(x, weight.shape)
        and not torch.compiler.is_compiling()
    )


def _suits(x: Tensor, *shapes: torch.Size) -> bool:
    """Whether the compiled product takes bfloat16 of such shapes."""
    sizes = (math.prod(x.shape[:-1]), x.shape[-1], *(size for shape in shapes for size in shape))
    return IS_HERE and is_ours(x) and all(size > 0 and size % at.STEP == 0 for size in sizes)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        return F.linear(x, narrow, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = pull.flatten(0, -2)
        to_x = pull @ weight if ctx.needs_input_grad[0] else None
        to_bias = rows.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return to_x, turned_product(rows, x.flatten(0, -2)), to_bias


def turned_product(left: Tensor, right: Tensor) -> Tensor:
    """left^T right, the gradient of a layer's weights: (M, N) of (T, M) and (T, N).

    Returns:
        float32 where it is compiled, else in the factors' dtype.
    """
    if not _suits(left, right.shape):
        return left.mT @ right
    product: Tensor = torch.ops.diptych.turned_product(*map(_in_rows, (left, right)))
    return product


def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _turned_product(left: Tensor, right: Tensor) -> Tensor:
    product, threads = _like_product(left, right), torch.get_num_threads()
    table = new_table(at.TABLE)
    table[at.PLACES], table[at.DOWN], table[at.ACROSS] = len(left), left.shape[1], right.shape[1]
    table[at.LEFT], table[at.NEXT_LEFT] = left.data_ptr(), left.stride(0) * left.element_size()
    table[at.RIGHT], table[at.NEXT_RIGHT] = right.data_ptr(), right.stride(0) * right.element_size()
    table[at.OUT] = product.data_ptr()
    table[at.SHARE_DOWN], table[at.SHARE_ACROSS] = at.share_sizes(left.shape[1], right.shape[1], threads)
    run_together("multiply_turned", table, threads, at.NEEDED)
    return product


def _like_product(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[1], right.shape[1], dtype=torch.float32)


_LIBRARY.impl("turned_product", _turned_product, "CPU")
_LIBRARY.impl("turned_product", _like_product, "Meta")
