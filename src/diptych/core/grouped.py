"""Products of rows with the matrix of the group that each row belongs to: what experts compute, and nothing more.

Rows of a group lie one after another, so each group is one product of matrices, of as many rows as there are. torch's
own `grouped_mm` takes no float64, no odd widths, and no fake tensors but those of bfloat16. The two operations here are
torch operations of their own, so that whoever looks on from outside (the counter of operations, a footprint on fake
tensors, the compiler) sees one of them with all its rows, however the rows fall into groups.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE = 64  # rows
FEW = 8

_LIBRARY = torch.library.Library("diptych", "FRAGMENT")
_LIBRARY.define("group_products(Tensor rows, Tensor matrices, Tensor counts) -> Tensor")
_LIBRARY.define("group_outer(Tensor left, Tensor right, Tensor counts) -> Tensor")


def grouped_linear(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Each row times the transposed matrix of its group, as `F.linear` has it.

    Args:
        rows: (R, I), those of the first group first.
        weights: (G, O, I), of the same dtype.
        counts: (G,), int64, rows of each group; they sum to R.

    Returns:
        (R, O).
    """
    if not torch.is_grad_enabled():  # for one token, what torch does around a product counts
        alone: Tensor = torch.ops.diptych.group_products.default(rows, weights.mT, counts)
        return alone
    product: Tensor = _GroupedLinear.apply(rows, weights, counts)  # type: ignore[no-untyped-call]
    return product


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, counts)
        product: Tensor = torch.ops.diptych.group_products(rows, weights.mT, counts)
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, counts = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_rows = to_weights = None
        if ctx.needs_input_grad[0]:
            to_rows = torch.ops.diptych.group_products(gradient, weights, counts)
        if ctx.needs_input_grad[1]:
            to_weights = torch.ops.diptych.group_outer(gradient, rows, counts)
        return to_rows, to_weights, None


def _tiled(x: Tensor, counts: Tensor) -> Iterator[tuple[int, slice, int]]:
    """The rows of each group in pieces: (group, rows, how many to multiply, with padding).

    oneDNN, which multiplies bfloat16 on a CPU, makes a kernel for every number of rows that it meets, and keeps a
    thousand of them at more than half a megabyte each. So that it meets few, a piece is `TILE` times a power of two,
    and what is left over is padded to one; a few rows stay as they are, since generation has no more.
    """
    has_kernels = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    start = 0
    for group, count in enumerate(counts.tolist()):
        end = start + count
        while has_kernels and end - start >= TILE:
            piece = TILE << ((end - start) // TILE).bit_length() - 1
            yield group, slice(start, start + piece), piece
            start += piece
        if start < end:
            left = end - start
            yield group, slice(start, end), TILE if has_kernels and left > FEW else left
        start = end


def _padded(rows: Tensor, count: int) -> Tensor:
    return rows if len(rows) == count else torch.cat((rows, rows.new_zeros(count - len(rows), rows.shape[1])))


def _group_products(rows: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """(R, I) and (G, I, O) -> (R, O)."""
    product = rows.new_empty(len(rows), matrices.shape[2])
    for group, run, count in _tiled(rows, counts):
        if count == run.stop - run.start:
            torch.mm(rows[run], matrices[group], out=product[run])
        else:
            product[run] = torch.mm(_padded(rows[run], count), matrices[group])[: run.stop - run.start]
    return product


def _group_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """(R, O) and (R, I) -> (G, O, I): the sum over a group's rows of their outer products."""
    dtype = torch.promote_types(left.dtype, torch.float32)  # a sum of several pieces is rounded once
    sums = left.new_zeros(len(counts), left.shape[1], right.shape[1], dtype=dtype)
    for group, run, count in _tiled(left, counts):
        sums[group] += torch.mm(_padded(left[run], count).mT, _padded(right[run], count))
    return sums.to(left.dtype)


def _shape_of_products(rows: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[2])


def _shape_of_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    return left.new_empty(counts.shape[0], left.shape[1], right.shape[1])


for _name, _kernel, _shape in (
    ("group_products", _group_products, _shape_of_products),
    ("group_outer", _group_outer, _shape_of_outer),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _shape, "Meta")
