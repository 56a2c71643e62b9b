"""Rows of bfloat16 in three quarters of their memory, for the keys and values of a text; nearly all of their numbers
are read back to the last bit.

The exponent of a bfloat16 takes 8 bits, but the numbers of one row are seldom further apart than 2^14. So a row has its
largest exponent once, in a byte of its own, and a number has 4 bits for its exponent, beside its sign and the 7 bits of
its fraction: 15 for the largest one, down to 1; with 0 the number is 0. What is smaller than 2^-14 of the largest power
of two is rounded to that or to 0, so that no number is off by more than 2^-15 of it, where half the last bit of the
largest number is 2^-9. Subnormal numbers become 0.

Numbers lie in the order in which pairs of them are multiplied, so that nothing has to be turned then. A group of
SHORT_GROUP rows is vectors of 32 numbers, LANES pairs: of keys, a pair is two numbers of a row, and a vector the same
two of each row; of values, a pair is the same number of two rows, and a vector LANES numbers of these. Two vectors are
a block: 64 bytes of signs and fractions, then 32 bytes, each with 4 bits of the first vector and, above them, 4 of the
second.

Such a number with its 4 bits as all of its exponent is a bfloat16, too, but smaller by a factor that is the same in all
of the row. Products are made of that, and multiplied by the factor. It is split: 2^MIDDLE does not depend on the row,
what is left does (`factor`), and so neither becomes too small or too large for a float32.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from diptych.core import row_plan as at
from diptych.core.lanes import (
    BLOCK,
    BYTE,
    HALF,
    INT,
    LANES,
    LONG,
    WORD,
    WORDS,
    Typed,
    bfloats,
    bytes_at,
    float_of_bits,
    ints,
    read_at,
    spread,
)
from diptych.core.row_math import exact

TOP = 15  # the 4 bits of the largest exponent
MIDDLE = 64
SHORT_BLOCK = BLOCK * 3 // 2  # bytes of BLOCK numbers
_HALVES, _BYTES = ir.VectorType(HALF, BLOCK // 2), ir.VectorType(BYTE, BLOCK // 2)


def _each(number: int) -> Any:
    return ir.Constant(_HALVES, [number] * (BLOCK // 2))


def small_bfloats(builder: Any, block: Any) -> list[Any]:
    """The two vectors of a block, WORDS of pairs of bfloat16, each too small by its row's factor."""

    def halves_at(place: int, widen: Any) -> Any:
        return widen(read_at(builder, builder.add(block, LONG(place)), _BYTES), _HALVES)

    both, found = halves_at(BLOCK, builder.zext), []
    first, second = builder.shl(builder.and_(both, _each(15)), _each(7)), builder.shl(both, _each(3))
    for place, exponents in ((0, first), (BLOCK // 2, second)):
        signed = halves_at(place, builder.sext)  # a byte widened with its sign has that in bit 15, too
        joined = builder.or_(builder.and_(signed, _each(0x807F)), builder.and_(exponents, _each(0x7F80)))
        found.append(builder.bitcast(joined, WORDS))
    return found


@exact
def factor(largest: int) -> np.float32:
    """What a row's numbers are multiplied by, besides 2^MIDDLE: 2^(its largest exponent - TOP - MIDDLE)."""
    return float_of_bits(np.uint32(min(largest + 127 - TOP - MIDDLE, 254)) << np.uint32(23))


@exact
def short_size(width: int) -> int:
    """Bytes of a row."""
    return width * SHORT_BLOCK // BLOCK


@exact
def block_of(row: int, place: int, width: int, are_values: bool) -> int:
    """Bytes from the beginning of a text's rows to the block of a number."""
    within = row % at.SHORT_GROUP // 2 * (width // 32) + place // 32 if are_values else place // 4
    return row // at.SHORT_GROUP * at.SHORT_GROUP * short_size(width) + within * SHORT_BLOCK


@exact
def keep_row(numbers: int, width: int, row: int, rows: int, largest: int, are_values: bool) -> None:
    """Write `width` bfloat16 as a row of those of a text, which begin at `rows`; their largest exponents at
    `largest`."""
    bits, most = bfloats(numbers), TOP
    for place in range(width):
        most = max(most, (bits[place] >> 7) & 0xFF)
    bytes_at(largest)[row] = most
    beside = LANES if are_values else 2  # places from a number of the first vector to its partner in the second
    for begin in range(0, width, 2 * beside):
        block = bytes_at(rows + block_of(row, begin, width, are_values))
        for place in range(beside):
            lane = 2 * place + row % 2 if are_values else 2 * (row % at.SHORT_GROUP) + place
            first, second = bits[begin + place], bits[begin + beside + place]
            block[lane], block[BLOCK // 2 + lane] = _fraction(first, most), _fraction(second, most)
            block[BLOCK + lane] = _exponent(first, most) | _exponent(second, most) << 4


@exact
def _exponent(bits: int, most: int) -> int:
    """The 4 bits of a bfloat16 in a row whose largest exponent is `most`."""
    exponent = (bits >> 7) & 0xFF
    # What is at least half of the smallest number that is kept is rounded to it.
    return max(exponent - most + TOP, 1 if exponent == most - TOP and exponent else 0)


@exact
def _fraction(bits: int, most: int) -> int:
    """Sign and fraction of a bfloat16 as a byte."""
    is_kept = ((bits >> 7) & 0xFF) > most - TOP
    return ((bits >> 8) & 0x80) | (bits & 0x7F if is_kept else 0)


@exact
def keep_rows(
    numbers: int,
    next_row: int,
    next_head: int,
    slots: int,
    places: int,
    count: int,
    heads: int,
    width: int,
    kept: int,
    largest: int,
    room: int,
    are_values: int,
) -> int:
    """Write rows of bfloat16 to places (int64) of slots (int64) of a cache, which are (slots, heads, room, width).

    Args:
        next_row, next_head: numbers from a row of `numbers` to the next, and from a head.
    """
    for row in range(count):
        for head in range(heads):
            first = (ints(slots)[row] * heads + head) * room
            here = numbers + 2 * (row * next_row + head * next_head)
            rows = kept + first * short_size(width)
            keep_row(here, width, ints(places)[row], rows, largest + first, are_values != 0)
    return 0


def _in_place(builder: Any, small: Any, larger: Any) -> Any:
    """Small bfloat16 with their row's exponent, whose distance to theirs is `larger`, in both halves of WORDS."""
    halves = builder.bitcast(small, _HALVES)
    added = builder.add(halves, builder.shl(builder.bitcast(larger, _HALVES), _each(7)))
    is_nothing = builder.icmp_unsigned("==", builder.and_(halves, _each(0x7F80)), _each(0))
    return builder.bitcast(builder.select(is_nothing, halves, added), WORDS)


@intrinsic
def _read_keys(context: Any, block: Any, largest: Any, out: Any, stride: Any) -> Typed:
    """Four numbers of a group of keys, to rows `stride` bytes one after the other."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        block, largest, out, stride = given
        larger = builder.zext(read_at(builder, largest, ir.VectorType(BYTE, at.SHORT_GROUP)), WORDS)
        larger = builder.sub(larger, ir.Constant(WORDS, [TOP] * LANES))
        larger = builder.or_(larger, builder.shl(larger, ir.Constant(WORDS, [16] * LANES)))
        for place, small in enumerate(small_bfloats(builder, block)):
            pairs = _in_place(builder, small, larger)
            for key in range(at.SHORT_GROUP):
                there = builder.add(builder.add(out, builder.mul(stride, LONG(key))), LONG(4 * place))
                pair = builder.extract_element(pairs, WORD(key))
                builder.store(pair, builder.inttoptr(there, WORD.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(*[INT] * 4), code


@intrinsic
def _read_values(context: Any, block: Any, largest: Any, out: Any, stride: Any) -> Typed:
    """The 2 LANES numbers of two values, to rows `stride` bytes one after the other."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        block, largest, out, stride = given
        both = builder.zext(read_at(builder, largest, ir.VectorType(BYTE, 2)), ir.VectorType(HALF, 2))
        both = builder.sub(both, ir.Constant(both.type, [TOP] * 2))
        larger = spread(builder, builder.bitcast(both, WORD), WORDS)
        narrow = ir.VectorType(HALF, LANES)
        for place, small in enumerate(small_bfloats(builder, block)):
            pairs = _in_place(builder, small, larger)
            for row, halves in enumerate((pairs, builder.lshr(pairs, ir.Constant(WORDS, [16] * LANES)))):
                there = builder.add(builder.add(out, builder.mul(stride, LONG(row))), LONG(2 * LANES * place))
                builder.store(builder.trunc(halves, narrow), builder.inttoptr(there, narrow.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(*[INT] * 4), code


@exact
def read_rows(
    slots: int,
    count: int,
    heads: int,
    reach: int,
    width: int,
    kept: int,
    largest: int,
    room: int,
    out: int,
    are_values: int,
) -> int:
    """The first rows of slots (int64) of such a cache as bfloat16, (count, heads, reach, width); `reach` is a multiple
    of at.SHORT_GROUP."""
    stride = 2 * width
    for one in range(count * heads):
        first = (ints(slots)[one // heads] * heads + one % heads) * room
        rows, most, here = kept + first * short_size(width), largest + first, out + one * reach * stride
        if are_values:
            for row in range(0, reach, 2):
                for place in range(0, width, 2 * LANES):
                    block = rows + block_of(row, place, width, True)
                    _read_values(block, most + row, here + row * stride + 2 * place, stride)
        else:
            for row in range(0, reach, at.SHORT_GROUP):
                for place in range(0, width, 4):
                    block = rows + block_of(row, place, width, False)
                    _read_keys(block, most + row, here + row * stride + 2 * place, stride)
    return 0
