"""Linear layers, alone or several of one input, which has one gradient then. On a CPU that multiplies tiles of bfloat16
(AMX) the gradient of their weights is compiled.

oneDNN turns one of the factors of that product, and takes half as long again for it as for the other two. Here both are
laid out piece by piece in the cache (`core.product_kernel`), and sums stay float32, which autocast rounds to bfloat16.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core import machine_code, together
from diptych.core import product_plan as at
from diptych.core.kernels import is_ours
from diptych.core.precision import in_autocast
from diptych.core.together import new_table, run_together
from diptych.core.unchanged import has_hooks

_LIBRARY = torch.library.Library("diptych", "FRAGMENT")
_LIBRARY.define("turned_product(Tensor left, Tensor right) -> Tensor")

# Asked once: whether this machine can, and is one for which it is the faster way.
IS_HERE = together.IS_HERE and machine_code.multiplies_tiles()


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if _learns(x, self) and _suits(x, self.weight.shape):
            product: Tensor = _Linears.apply(x, False, self.weight, self.bias)[0]  # type: ignore[no-untyped-call]
            return product
        return super().forward(x)


def linears(x: Tensor, layers: Sequence[nn.Module], *, side_by_side: bool = False) -> tuple[Tensor, ...]:
    """What each of some layers makes of x, (..., width): on a CPU in bfloat16 with one gradient of x.

    Args:
        side_by_side: results may be parts of the rows of one tensor, which is one product.
    """
    if all(type(layer) is Linear and _learns(x, layer) and not has_hooks(layer) for layer in layers):
        given = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        products: tuple[Tensor, ...] = _Linears.apply(x, side_by_side, *given)  # type: ignore[no-untyped-call]
        return products
    if len(layers) > 1:
        x = in_autocast(x)  # once: each of them would do it anew
    return tuple(layer(x) for layer in layers)


def joined(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose rows, along the last axis, are these side by side; None where they do not lie so in memory."""
    first, place = parts[0], parts[0].storage_offset()
    storage, strides = first.untyped_storage()._cdata, first.stride()
    for part in parts:
        if (part.untyped_storage()._cdata, part.stride(), part.storage_offset()) != (storage, strides, place):
            return None
        place += part.shape[-1]
    if strides[-1] != 1:
        return None
    return first.as_strided((*first.shape[:-1], place - first.storage_offset()), strides)


def _learns(x: Tensor, layer: nn.Linear) -> bool:
    """Whether x in bfloat16 meets a weight that learns, on a CPU for which that is quick."""
    return (
        torch.is_grad_enabled()
        and layer.weight.requires_grad
        and torch.is_autocast_enabled("cpu")
        and type(x) is Tensor  # not a part of a matrix that several processes hold
        and type(layer.weight) is nn.Parameter
        and is_ours(x)
        and not torch.compiler.is_compiling()
    )


def _suits(x: Tensor, *shapes: torch.Size) -> bool:
    """Whether the compiled product takes bfloat16 of such shapes."""
    sizes = (math.prod(x.shape[:-1]), x.shape[-1], *(size for shape in shapes for size in shape))
    return IS_HERE and together.is_used() and is_ours(x) and all(size > 0 and size % at.STEP == 0 for size in sizes)


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, side_by_side: bool, *given: Tensor | None) -> tuple[Tensor, ...]:
        weights = [weight for weight in given[::2] if weight is not None]
        biases = [None if bias is None else bias.to(x.dtype) for bias in given[1::2]]
        ctx.sizes, ctx.has_bias = [len(weight) for weight in weights], [bias is not None for bias in biases]
        narrow = x.new_empty(sum(ctx.sizes), x.shape[-1])
        parts = _divided(narrow, ctx.sizes)
        for part, weight in zip(parts, weights, strict=True):
            part.copy_(weight)
        ctx.save_for_backward(x, narrow)
        if side_by_side and len(set(ctx.has_bias)) == 1:
            bias = torch.cat([bias for bias in biases if bias is not None]) if ctx.has_bias[0] else None
            products: tuple[Tensor, ...] = F.linear(x, narrow, bias).split(ctx.sizes, -1)
            return products
        return tuple(F.linear(x, part, bias) for part, bias in zip(parts, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        rows, beside = x.flatten(0, -2), joined(pulls)
        pulls = pulls if beside is None else (beside,)
        pieces = [[size] for size in ctx.sizes] if beside is None else [ctx.sizes]  # each of them is one product
        to_x: Tensor | None = None
        to_weights: list[Tensor] = []
        to_biases: list[Tensor | None] = []
        for pull, part, sizes in zip(pulls, _divided(narrow, list(map(sum, pieces))), pieces, strict=True):
            pull = pull.flatten(0, -2)
            if ctx.needs_input_grad[0]:
                to_x = pull @ part if to_x is None else torch.addmm(to_x, pull, part, out=to_x)
            to_weights += _divided(turned_product(pull, rows), sizes)
            has_bias = any(ctx.has_bias)
            to_biases += _divided(pull.sum(0, dtype=torch.float32), sizes) if has_bias else [None] * len(sizes)
        to_biases = [to_bias if has else None for to_bias, has in zip(to_biases, ctx.has_bias, strict=True)]
        given = [found for both in zip(to_weights, to_biases, strict=True) for found in both]
        return None if to_x is None else to_x.view_as(x), None, *given


def _divided(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return x.split(sizes) if len(sizes) > 1 else (x,)  # a split takes as long as a small product


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
