"""Attention over keys and values in 8 bits, where the processor multiplies bytes: 64 products in one instruction.

Half the bytes of bfloat16 are read in half the time only if no more is done with each of them, so they are not widened.
The other factor, a query or odds, is cut into blocks of BLOCK numbers; each block is 16-bit integers of one worth, and
these are two bytes: a high digit and a low one. Integers add up exactly, whatever the order.

The instruction adds four products, each of an unsigned byte and a signed one, to a 32-bit sum. So keys are laid out by
fours of numbers, a key a lane: 16 keys of 16 fours, turned. Values are laid out by fours of rows, a number a lane.
Neither has to be added up over lanes. Odds have no sign; a key's numbers get 128 more, which is taken out again.

A packed block takes the place of its BLOCK float32: high digits, low digits, what a step is worth, and for a query
where the sum of its low products begins.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from diptych.core.attention_lanes import constant, in_turn, keys_scores_of, store, values_sum_of, words
from diptych.core.lanes import (
    BLOCK,
    BYTE,
    FLOAT,
    HALF,
    INT,
    LANES,
    LINE,
    LONG,
    VECTOR,
    WORD,
    WORDS,
    Typed,
    bring_line,
    each_lane,
    floats,
    int8s,
    int32s,
    llvm,
    loop_of,
    read_at,
    read_floats,
    spread,
    times_plus,
)
from diptych.core.row_math import quick

LOW, WORTH, BEGIN = BLOCK, 2 * BLOCK, 2 * BLOCK + 4  # bytes of a packed block before its low digits, and so on
PARTS = BLOCK // LANES  # vectors of a block
SIGNED_STEPS, ODDS_STEPS = np.float32(127 * 256 + 127), 65535.0  # of the largest number: a query's digits have signs
KEY_QUERIES, VALUE_QUERIES = 4, 3  # that share a reading: their sums fill the registers


@quick
def pack_digits(x: int, packed: int, count: int) -> np.int32:
    """Numbers as their high digits, their low ones, and what a step is worth; the sum of their steps."""
    here, high, low = floats(x), int8s(packed), int8s(packed + count)
    largest, total = np.float32(1e-30), np.int32(0)
    for place in range(count):
        largest = max(largest, abs(here[place]))
    inverse = SIGNED_STEPS / largest
    for place in range(count):
        steps = np.int32(np.rint(here[place] * inverse))
        upper = (steps + np.int32(128)) >> np.int32(8)
        high[place] = np.int8(upper)
        low[place] = np.int8(steps - (upper << np.int32(8)))
        total += steps
    floats(packed + 2 * count)[0] = largest / SIGNED_STEPS
    return total


@quick
def pack_query(query: int, packed: int, width: int) -> None:
    """A query of whole blocks, packed."""
    for first in range(0, width, BLOCK):
        out = packed + 4 * first
        int32s(out + BEGIN)[0] = np.int32(-128) * pack_digits(query + 4 * first, out, BLOCK)


def multiplied(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    multiply = llvm(builder, "x86.avx512.vpdpbusd.512", WORDS, WORDS, WORDS, WORDS)
    return builder.call(multiply, [total, unsigned, signed])


def _worth(builder: Any, digits: list[Any], packed: Any, total: Any) -> Any:
    """Sums of products with high and low digits, times what a step is worth, added."""
    high, low = digits
    steps = builder.sitofp(builder.add(builder.shl(high, words(8)), low), VECTOR)
    return times_plus(builder, steps, each_lane(builder, builder.add(packed, LONG(WORTH))), total)


def _lanes_turned(builder: Any, four: list[Any]) -> list[Any]:
    """Four vectors of four times 16 bytes: the first 16 of each, the second, the third, the fourth."""

    def halves(first: Any, second: Any) -> list[Any]:
        even = [base + place for base in range(0, 2 * LANES, 8) for place in range(4)]
        masks = [ir.Constant(WORDS, [place + odd for place in even]) for odd in (0, 4)]
        return [builder.shuffle_vector(first, second, mask) for mask in masks]

    (a, b), (c, d) = halves(*four[:2]), halves(*four[2:])
    (first, third), (second, fourth) = halves(a, c), halves(b, d)
    return [first, second, third, fourth]


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """LANES vectors of as many words: the first word of each, the second, ..."""
    fours = []
    for first in range(0, LANES, 4):
        (a, b), (c, d) = (in_turn(builder, rows[here], rows[here + 1], WORD) for here in (first, first + 2))
        fours.append([*in_turn(builder, a, c, LONG), *in_turn(builder, b, d, LONG)])
    columns = [_lanes_turned(builder, list(column)) for column in zip(*fours, strict=True)]
    return [columns[word % 4][word // 4] for word in range(LANES)]


def _by_fours(builder: Any, many: int, keys: Any, width: Any, packed: Any, next_packed: Any, soon: Any) -> list[Any]:
    """The keys, a byte a number, are turned."""

    def grow(block: Any, totals: list[Any]) -> list[Any]:
        first = builder.add(keys, builder.mul(block, LONG(BLOCK)))
        rows = [builder.add(first, builder.mul(width, LONG(key))) for key in range(LANES)]
        signs = words(0x80808080)  # adds 128 to each number
        fours = _turned(builder, [builder.xor(read_at(builder, row, WORDS), signs) for row in rows])
        here = builder.add(packed, builder.mul(block, LONG(4 * BLOCK)))
        mine = [builder.add(here, builder.mul(next_packed, LONG(query))) for query in range(many)]
        begins = [each_lane(builder, builder.add(query, LONG(BEGIN)), WORDS) for query in mine]
        sums = [[words(0), begin] for begin in begins]
        coming = builder.add(soon, builder.mul(block, LONG(LANES * LINE)))
        for place, four in enumerate(fours):
            bring_line(builder, builder.add(coming, LONG(LINE * place)))
            for query, both in zip(mine, sums, strict=True):
                for digit, offset in enumerate((0, LOW)):
                    signed = each_lane(builder, builder.add(query, LONG(offset + 4 * place)), WORDS)
                    both[digit] = multiplied(builder, both[digit], four, signed)
        return [_worth(builder, *one) for one in zip(sums, mine, totals, strict=True)]

    return loop_of(builder, builder.udiv(width, LONG(BLOCK)), many, grow)


score_bytes = keys_scores_of(KEY_QUERIES, _by_fours)


@intrinsic
def pack_odds(context: Any, odds: Any, blocks: Any) -> Typed:
    """Blocks of odds, float32 >= 0, packed in their place."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        odds, blocks = given
        largest_of = llvm(builder, f"vector.reduce.fmax.v{LANES}f32", FLOAT, VECTOR)

        def larger(x: Any, y: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", x, y), x, y)

        def step(block: Any, totals: list[Any]) -> list[Any]:
            here = builder.add(odds, builder.mul(block, LONG(4 * BLOCK)))
            numbers = [read_floats(builder, builder.add(here, LONG(4 * LANES * part))) for part in range(PARTS)]
            most = larger(larger(*numbers[:2]), larger(*numbers[2:]))
            largest = builder.call(largest_of, [larger(most, constant(1e-30))], fastmath=("nnan",))
            inverse = spread(builder, builder.fdiv(FLOAT(ODDS_STEPS), largest))
            for part, number in enumerate(numbers):
                # Beside 2^23 a float32 has no fraction, and its last bits are the integer.
                bits = builder.bitcast(times_plus(builder, number, inverse, constant(2.0**23)), WORDS)
                for offset, steps in ((0, builder.lshr(bits, words(8))), (LOW, bits)):
                    digits = builder.trunc(steps, ir.VectorType(BYTE, LANES))
                    store(builder, digits, builder.add(here, LONG(offset + LANES * part)))
            worth = builder.fdiv(largest, FLOAT(ODDS_STEPS))
            builder.store(worth, builder.inttoptr(builder.add(here, LONG(WORTH)), FLOAT.as_pointer()), align=4)
            return []

        loop_of(builder, blocks, 0, step)
        return context.get_dummy_value()

    return types.void(INT, INT), code


def _in_fours(
    builder: Any, many: int, values: Any, stride: Any, count: Any, odds: Any, further: Any, soon: Any
) -> list[Any]:
    """Four rows of values at a time, their numbers in turn; past the last row it is read again, with no odds."""
    last = builder.sub(count, LONG(1))

    def grow_block(block: Any, sums: list[Any]) -> list[Any]:
        first = builder.mul(block, LONG(BLOCK))
        here = builder.add(odds, builder.mul(first, LONG(4)))
        mine = [builder.add(here, builder.mul(further, LONG(query))) for query in range(many)]

        def grow(four: Any, totals: list[Any]) -> list[Any]:
            rows, place = [], builder.mul(four, LONG(4))
            for one in range(4):
                row = builder.add(builder.add(first, place), LONG(one))
                bring_line(builder, builder.add(soon, builder.mul(row, stride)))
                row = builder.select(builder.icmp_signed("<", row, last), row, last)
                rows.append(read_at(builder, builder.add(values, builder.mul(row, stride)), WORDS))
            upper, lower = (in_turn(builder, rows[one], rows[one + 1], BYTE) for one in (0, 2))
            parts = [part for pair in zip(upper, lower, strict=True) for part in in_turn(builder, *pair, HALF)]
            grown: list[Any] = []
            for query in mine:
                for offset in (0, LOW):
                    odd = each_lane(builder, builder.add(query, builder.add(place, LONG(offset))), WORDS)
                    grown += [multiplied(builder, totals[len(grown) + at], odd, part) for at, part in enumerate(parts)]
            return grown

        left = builder.sub(count, first)
        left = builder.select(builder.icmp_signed("<", left, LONG(BLOCK)), left, LONG(BLOCK))
        fours = builder.lshr(builder.add(left, LONG(3)), LONG(2))
        found = loop_of(builder, fours, many * 2 * PARTS, grow, WORDS)
        grown: list[Any] = []
        for query, packed in enumerate(mine):
            for part in range(PARTS):
                digits = [found[(2 * query + digit) * PARTS + part] for digit in range(2)]
                grown.append(_worth(builder, digits, packed, sums[len(grown)]))
        return grown

    blocks = builder.udiv(builder.add(count, LONG(BLOCK - 1)), LONG(BLOCK))
    found = [builder.bitcast(one, WORDS) for one in loop_of(builder, blocks, many * PARTS, grow_block)]
    # Of each 16 numbers four are in one vector, the next four in the next.
    ordered = [_lanes_turned(builder, found[first : first + PARTS]) for first in range(0, many * PARTS, PARTS)]
    return [builder.bitcast(one, VECTOR) for query in ordered for one in query]


sum_bytes = values_sum_of(VALUE_QUERIES, _in_fours)
