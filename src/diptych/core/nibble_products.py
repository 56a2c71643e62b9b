"""Products of a few rows with matrices in 4 bits, read as torch has packed them: four numbers in one instruction.

torch lays 64 rows of a matrix side by side: of each column 32 bytes, the lower half of byte i being row i's number, the
upper half that of row i + 32. So 4 columns are 128 bytes, which two shuffles and a mask turn into four vectors of 16
rows, 4 numbers each. Numbers are q = 0 ... 15 and stand for (q - 8) scale + offset, each GROUP of a row's with its own
(`core.quantised`); over a group, the sum of products with x is scale (sum of q x - 8 sum of x) + offset (sum of x).

The other factor, GROUP numbers at a time, is 16-bit integers of one worth, as two bytes (`core.byte_attention` does the
same): a packed group takes the place of its GROUP float32. What is left of a matrix's rows lies two in a byte; these,
and all where the processor does not multiply bytes, are multiplied a number at a time.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from diptych.core import row_plan as at
from diptych.core.attention_lanes import constant, store, words
from diptych.core.byte_attention import multiplied, pack_digits
from diptych.core.lanes import (
    BYTE,
    INT,
    LANES,
    LINE,
    LONG,
    PAIRS_INTEGERS,
    VECTOR,
    WORD,
    WORDS,
    Typed,
    bfloats,
    bring_line,
    each_lane,
    floats,
    int8s,
    ints,
    loop_of,
    read_at,
    times_plus,
)
from diptych.core.row_math import exact, matrix_at, number, packed_stride, quick, widened

GROUP = at.GROUP
LOW, WORTH, SUM = GROUP, 2 * GROUP, 2 * GROUP + 4  # bytes of a packed group before its low digits, and so on
COLUMN = at.ROWS_PACKED // 2  # bytes
PARTS = at.ROWS_PACKED // LANES  # vectors of as many rows


@quick
def pack_groups(x: int, packed: int, width: int) -> None:
    """A row of whole groups, packed."""
    for first in range(0, width, GROUP):
        out = packed + 4 * first
        total = pack_digits(x + 4 * first, out, GROUP)
        floats(out + SUM)[0] = floats(out + WORTH)[0] * np.float32(total)


@intrinsic
def sum_nibbles(
    context: Any,
    weights: Any,
    scales: Any,
    next_scales: Any,
    packed: Any,
    next_packed: Any,
    groups: Any,
    texts: Any,
    found: Any,
) -> Typed:
    """Products of ROWS_PACKED rows of a matrix with up to TEXTS_PACKED packed rows, `next_packed` bytes one after the
    other, to `found`, as many float32 for each. Scales and offsets of a group, bfloat16 in turn, lie `next_scales`
    bytes after those of the one before."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        weights, scales, next_scales, packed, next_packed, groups, texts, found = given
        bytes_, index = ir.VectorType(BYTE, 4 * LANES), ir.VectorType(WORD, 4 * LANES)
        # Of the first 16 bytes of 4 columns, 2 of them in a vector, and of the other 16.
        masks = [
            ir.Constant(index, [column * COLUMN + first + row for row in range(LANES) for column in range(4)])
            for first in (0, LANES)
        ]

        def sums_of(many: int) -> list[Any]:
            def grow(group: Any, totals: list[Any]) -> list[Any]:
                here = builder.add(weights, builder.mul(group, LONG(GROUP * COLUMN)))
                mine = builder.add(packed, builder.mul(group, LONG(4 * GROUP)))
                others = [builder.add(mine, builder.mul(next_packed, LONG(text))) for text in range(many)]

                def add_four(four: Any, sums: list[Any]) -> list[Any]:
                    begin = builder.add(here, builder.mul(four, LONG(4 * COLUMN)))
                    columns = [read_at(builder, builder.add(begin, LONG(offset)), bytes_) for offset in (0, 2 * COLUMN)]
                    both = [builder.bitcast(builder.shuffle_vector(*columns, mask), WORDS) for mask in masks]
                    both += [builder.lshr(rows, words(4)) for rows in both]
                    parts = [builder.and_(rows, words(0x0F0F0F0F)) for rows in both]
                    grown: list[Any] = []
                    for other in others:
                        for digit in (0, LOW):
                            place = builder.add(builder.mul(four, LONG(4)), LONG(digit))
                            digits = each_lane(builder, builder.add(other, place), WORDS)
                            grown += [
                                multiplied(builder, sums[len(grown) + part], numbers, digits)
                                for part, numbers in enumerate(parts)
                            ]
                    return grown

                sums = loop_of(builder, LONG(GROUP // 4), many * 2 * PARTS, add_four, WORDS)
                about = builder.add(scales, builder.mul(group, next_scales))
                pairs = []
                for part in range(PARTS):
                    its = builder.add(about, LONG(LINE * part))
                    bring_line(builder, builder.add(its, LONG(4 * at.ROWS_PACKED)))  # those of the rows that follow
                    pairs.append(read_at(builder, its, WORDS))
                grown: list[Any] = []
                for text, other in enumerate(others):
                    worth, sum_ = (each_lane(builder, builder.add(other, LONG(offset))) for offset in (WORTH, SUM))
                    less = builder.fmul(sum_, constant(-8.0))
                    for part, pair in enumerate(pairs):
                        scale = builder.bitcast(builder.shl(pair, words(16)), VECTOR)
                        offset = builder.bitcast(builder.and_(pair, words(0xFFFF0000)), VECTOR)
                        high, low = (sums[(2 * text + digit) * PARTS + part] for digit in range(2))
                        steps = builder.sitofp(builder.add(builder.shl(high, words(8)), low), VECTOR)
                        product = times_plus(builder, steps, worth, less)
                        total = times_plus(builder, scale, product, totals[len(grown)])
                        grown.append(times_plus(builder, offset, sum_, total))
                return grown

            return loop_of(builder, groups, many * PARTS, grow)

        for many in range(1, at.TEXTS_PACKED + 1):
            with builder.if_then(builder.icmp_signed("==", texts, LONG(many))):
                for place, total in enumerate(sums_of(many)):
                    store(builder, total, builder.add(found, LONG(4 * LANES * place)))
        return context.get_dummy_value()

    return types.void(*[INT] * 8), code


@exact
def multiply_nibbles(
    matrix: int, first: int, last: int, packed: int, width: int, y: int, height: int, found: int, plan: int, adds: bool
) -> None:
    """As `row_math.multiply`, for a matrix in 4 bits."""
    about, sums, (weights, scales, bias) = ints(plan), floats(found), matrix_at(matrix)
    rows, count, stride, numbers = about[at.ROWS], ints(matrix)[at.COUNT], packed_stride(width), about[at.NUMBERS]
    if PAIRS_INTEGERS and first < last:
        whole = count // at.ROWS_PACKED * at.ROWS_PACKED
        for block in range(first // at.ROWS_PACKED * at.ROWS_PACKED, min(last, whole), at.ROWS_PACKED):
            here, its = weights + block * width // 2, scales + 4 * block
            for other in range(0, rows, at.TEXTS_PACKED):
                many, mine = min(at.TEXTS_PACKED, rows - other), packed + other * stride
                sum_nibbles(here, its, 4 * count, mine, stride, width // GROUP, many, found)
                for text in range(many):
                    out = y + (other + text) * height * 4
                    for row in range(max(first, block), min(last, block + at.ROWS_PACKED)):
                        give_scaled(out, row, sums[text * at.ROWS_PACKED + row - block], bias, numbers, adds)
        first = max(first, whole)
    for row in range(first, last):
        for other in range(rows):
            product = dot_nibbles(matrix, row, packed + other * stride, width)
            give_scaled(y + other * height * 4, row, product, bias, numbers, adds)


@exact
def dot_nibbles(matrix: int, row: int, packed: int, width: int) -> np.float32:
    """The product of one row, a number at a time."""
    (weights, scales, _), count = matrix_at(matrix), ints(matrix)[at.COUNT]
    whole = count // at.ROWS_PACKED * at.ROWS_PACKED
    if row < whole:
        line, shift = COLUMN, np.int32(row % at.ROWS_PACKED // COLUMN * 4)
        begin = weights + (row - row % at.ROWS_PACKED) * width // 2 + row % COLUMN
    else:
        line, shift = (count - whole) // 2, np.int32(row % 2 * 4)
        begin = weights + whole * width // 2 + (row - whole) // 2
    found = np.float32(0.0)
    for group in range(width // GROUP):
        other, there = packed + 4 * GROUP * group, begin + group * GROUP * line
        high, low, total = int8s(other), int8s(other + LOW), np.int32(0)
        for column in range(GROUP):
            q = (np.int32(int8s(there)[column * line]) >> shift) & np.int32(15)
            total += q * (np.int32(high[column]) * np.int32(256) + np.int32(low[column]))
        sum_, pair = floats(other + SUM)[0], bfloats(scales + 4 * (group * count + row))
        product = floats(other + WORTH)[0] * np.float32(total) - np.float32(8.0) * sum_
        found += widened(pair[0]) * product + widened(pair[1]) * sum_
    return found


@exact
def give_scaled(y: int, place: int, found: np.float32, bias: int, numbers: int, adds: bool) -> None:
    """A row's product, its scales in it, to its place."""
    out = floats(y)
    if bias:
        found += number(bias, place, numbers)
    out[place] = out[place] + found if adds else found
