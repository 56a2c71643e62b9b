"""Weights in 8 or 4 bits: a matrix that is read once a token costs half, or little more than a quarter, of bfloat16.

Only what multiplies is kept small; the products themselves are those of the decoder's own dtype, and no data is needed
to choose the numbers. With 8 bits each row of a matrix has one scale (Dettmers et al. 2022, sec. 2.1, "vector-wise").
With 4 bits every `GROUP` numbers of a row have a scale and an offset, so that their least and greatest are exact.

A few rows at a time go through torch's packed kernels, which unpack a number where they use it; many, as of a prompt,
are worth unpacking a block of the matrix for.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.row_plan import GROUP
from diptych.core.row_plan import ROWS_PACKED as PACKED

FEW = 16  # rows up to which the packed kernel for 8 bits is the faster way
BLOCK = 2**20  # numbers of a matrix that are worked on at a time: they stay in the cache
MANY, SOME = 128, 2**18  # rows from which on a matrix in 4 bits is unpacked, so many numbers at a time
SPAN = 16  # numbers that the kernels take at once: they do not look whether a row is that long


class Quantised(nn.Module):
    """A linear layer whose matrix is kept small. It is not trained, and not written to checkpoints."""

    def _save_to_state_dict(self, *_: Any) -> NoReturn:
        raise ValueError("quantised weights are not written to checkpoints: open the model without bits")


class Int8Linear(Quantised):
    """x W^T + bias with W = q * scale, a scale for each row.

    Args:
        weight: (N, K), any float dtype.
        bias: (N,).
        dtype: of x and of the result.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
        self.scale = nn.Buffer(torch.empty(len(weight), dtype=dtype, device=weight.device))
        for rows in _blocks(*weight.shape):
            wide = weight[rows].float()
            # The scale is rounded first: numbers then fit the scale that they are multiplied with.
            self.scale[rows] = wide.abs().amax(dim=1).div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
            self.weight[rows] = (wide / self.scale[rows, None].float()).round_().clamp_(-127, 127)
        self.bias = None if bias is None else nn.Buffer(bias.detach())
        self.packs = weight.device.type == "cpu" and dtype == torch.bfloat16 and weight.shape[1] % SPAN == 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if self.packs and rows.shape[0] <= FEW:
            product = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            numbers = BLOCK if rows.device.type == "cpu" else self.weight.numel()
            count, width = self.weight.shape
            blocks = _blocks(count, width, numbers)
            parts = [F.linear(rows, self.weight[some].to(rows.dtype)) for some in blocks]
            product = torch.cat(parts, dim=-1).mul_(self.scale)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*x.shape[:-1], -1)

    def rows(self, places: Tensor) -> Tensor:
        """W[places]: (..., K)."""
        found: Tensor = self.weight[places].to(self.scale.dtype) * self.scale[places][..., None]
        return found


class Int4Linear(Quantised):
    """x W^T + bias with W = (q - 8) * scale + offset, a scale and an offset for each `GROUP` numbers of a row.

    Args:
        weight: (N, K), any float dtype; K a multiple of GROUP.
        bias: (N,).
        dtype: of x and of the result.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        count, width = weight.shape
        sizes = (width // GROUP, count, 2)
        self.scale_and_offset = nn.Buffer(torch.empty(sizes, dtype=dtype, device=weight.device))
        numbers = torch.empty(count, width, dtype=torch.uint8, device=weight.device)
        for rows in _blocks(count, width):
            wide = weight[rows].float().unflatten(1, (-1, GROUP))  # (n, groups, GROUP)
            least, greatest = wide.aminmax(dim=2, keepdim=True)
            scale = ((greatest - least) / 15).clamp_(min=torch.finfo(torch.float32).tiny).to(dtype)
            offset = (least + 8 * scale.float()).to(dtype)
            q = ((wide - offset.float()) / scale.float()).round_().clamp_(-8, 7)
            numbers[rows] = (q + 8).to(torch.uint8).flatten(1)
            self.scale_and_offset[:, rows] = torch.cat((scale, offset), dim=2).transpose(0, 1)
        self.bias = None if bias is None else nn.Buffer(bias.detach())
        self.packs = weight.device.type == "cpu" and count % SPAN == 0
        self.unpacks = self.packs and is_packed_by_halves()
        self.weight = nn.Buffer(
            torch._convert_weight_to_int4pack_for_cpu(numbers.int(), 1)
            if self.packs
            else numbers[:, ::2] | numbers[:, 1::2] << 4
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if not self.packs:
            product = F.linear(rows, self._unpacked())
        elif len(rows) < MANY or not self.unpacks or torch.compiler.is_compiling():
            product = torch._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scale_and_offset)
        else:
            product = rows.new_empty(len(rows), len(self.weight))
            for some, columns in self._columns():
                parts = torch.matmul(rows, columns).transpose(0, 1)  # (R, blocks, rows)
                product[:, some].unflatten(1, parts.shape[1:]).copy_(parts)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*x.shape[:-1], -1)

    def _unpacked(self) -> Tensor:
        numbers = torch.stack((self.weight & 15, self.weight >> 4), dim=-1).flatten(1).unflatten(1, (-1, GROUP))
        scale, offset = self.scale_and_offset.transpose(0, 1)[..., None, :].unbind(-1)  # (N, groups, 1)
        unpacked: Tensor = (numbers.to(scale.dtype) - 8) * scale + offset
        return unpacked.flatten(1)

    def _columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of a packed matrix and what they stand for, as columns, as which they are packed: (blocks, K, rows)."""
        count, width = len(self.weight), 2 * self.weight.shape[1]  # two numbers in a byte
        whole = count // PACKED * PACKED
        packed = self.weight.flatten()
        together = packed[: whole * width // 2].view(-1, width, PACKED // 2)
        for rows in _blocks(whole, width, SOME, PACKED):
            halves = together[rows.start // PACKED : rows.stop // PACKED]
            numbers = self.scale_and_offset.new_empty(*halves.shape[:2], PACKED)
            numbers[..., : PACKED // 2], numbers[..., PACKED // 2 :] = halves & 15, halves >> 4
            yield rows, self._scaled(numbers, rows)
        if whole < count:
            rest, rows = packed[whole * width // 2 :].view(1, width, -1), slice(whole, count)
            numbers = self.scale_and_offset.new_empty(1, width, count - whole)
            numbers[..., ::2], numbers[..., 1::2] = rest & 15, rest >> 4
            yield rows, self._scaled(numbers, rows)

    def _scaled(self, numbers: Tensor, rows: slice) -> Tensor:
        """Of (blocks, K, rows) numbers what they stand for, in their place."""
        both = self.scale_and_offset[:, rows].unflatten(1, (len(numbers), -1)).transpose(0, 1)  # (blocks, groups, n, 2)
        scale, offset = both[:, :, None].movedim(-1, 0).contiguous()
        numbers.unflatten(1, (-1, GROUP)).sub_(8).mul_(scale).add_(offset)
        return numbers


@cache
def is_packed_by_halves() -> bool:
    """Whether torch packs 4 bits as `core.nibble_products` reads them, which it promises nowhere: of each column 32
    bytes, with the numbers of 64 rows, and of the rows that are left two neighbours in a byte."""
    numbers = torch.arange(80 * GROUP, dtype=torch.int32, device="cpu").view(80, GROUP) * 7 // 5 % 16
    packed = torch._convert_weight_to_int4pack_for_cpu(numbers, 1).flatten()
    columns = numbers.T.to(torch.uint8)
    low, high, rest = columns.split([PACKED // 2, PACKED // 2, 80 - PACKED], dim=1)
    whole, rest = low | high << 4, rest[:, ::2] | rest[:, 1::2] << 4
    return torch.equal(packed, torch.cat((whole.flatten(), rest.flatten())))


class QuantisedEmbedding(nn.Module):
    """Rows of a matrix that also multiplies."""

    def __init__(self, matrix: Int8Linear) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, tokens: Tensor) -> Tensor:
        return self.matrix.rows(tokens)


def int4_where_it_fits(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Quantised:
    """In 4 bits; in 8 where rows do not divide into groups."""
    kind = Int8Linear if weight.shape[1] % GROUP else Int4Linear
    return kind(weight, bias, dtype)


BITS: dict[int, Callable[[Tensor, Tensor | None, torch.dtype], Quantised]] = {8: Int8Linear, 4: int4_where_it_fits}


def check_bits(bits: int | None) -> None:
    """Raises: ValueError for a number of bits that weights cannot be kept in; None keeps them as they are."""
    if bits is not None and (isinstance(bits, bool) or bits not in BITS):
        raise ValueError(f"bits must be {' or '.join(map(str, BITS))}, not {bits!r}")


def quantise(module: nn.Module, bits: int, dtype: torch.dtype, device: torch.device | str) -> None:
    """Replace every linear layer in `module` by a quantised one, each before the next: no more than one is there twice.

    Args:
        bits: one of BITS.
        dtype: of what will be multiplied.
        device: where: how numbers are packed depends on it.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                bias = None if child.bias is None else child.bias.to(device)
                setattr(parent, name, BITS[bits](child.weight.detach().to(device), bias, dtype))


def _blocks(count: int, width: int, numbers: int = BLOCK, unit: int = 1) -> Iterator[slice]:
    """The rows of a (count, width) matrix, so many numbers at a time, in multiples of a unit."""
    rows = max(unit, numbers // width // unit * unit)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
