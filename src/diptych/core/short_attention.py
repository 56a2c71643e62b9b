"""Attention over keys and values that are short bfloat16 (`core.short_bfloats`): what is read is widened once, for all
queries that look at it, and multiplied in the order in which it lies.

The factors of rows are left to the caller: scores still lack that of their key, odds have that of their value already.
Half of it is the same for all: queries come with 2^MIDDLE, sums of values are given it.
"""

from typing import Any

from diptych.core.attention_lanes import QUERIES, constant, keys_scores_of, values_sum_of
from diptych.core.lanes import (
    LANES,
    LINE,
    LONG,
    WORDS,
    bring_line,
    each_lane,
    loop_of,
    pairs_plus,
)
from diptych.core.short_bfloats import MIDDLE, SHORT_BLOCK, small_bfloats


def _by_pairs(builder: Any, many: int, keys: Any, width: Any, packed: Any, next_packed: Any, soon: Any) -> list[Any]:
    """Of the queries there are two halves, `width` bfloat16 each."""
    halves = (LONG(0), builder.mul(width, LONG(2)))
    mine = [builder.add(packed, builder.mul(next_packed, LONG(query))) for query in range(many)]

    def grow(block: Any, totals: list[Any]) -> list[Any]:
        offset = builder.mul(block, LONG(SHORT_BLOCK))
        for line in range(0, SHORT_BLOCK, LINE):
            bring_line(builder, builder.add(soon, builder.add(offset, LONG(line))))
        both = small_bfloats(builder, builder.add(keys, offset))
        grown: list[Any] = []
        for query in mine:
            for half in halves:
                begin = builder.add(builder.add(query, half), builder.mul(block, LONG(8)))
                for place, pairs in enumerate(both):
                    other = each_lane(builder, builder.add(begin, LONG(4 * place)), WORDS)
                    grown.append(pairs_plus(builder, totals[len(grown)], pairs, other))
        return grown

    sums = loop_of(builder, builder.udiv(width, LONG(4)), 4 * many, grow)
    fours = [sums[first : first + 4] for first in range(0, 4 * many, 4)]
    return [builder.fadd(builder.fadd(*four[:2]), builder.fadd(*four[2:])) for four in fours]


def _in_pairs(
    builder: Any, many: int, values: Any, stride: Any, count: Any, odds: Any, further: Any, soon: Any
) -> list[Any]:
    """Two values at a time; `stride` is that of two. What is beside the last of an odd count has no odds."""

    def grow(pair: Any, totals: list[Any]) -> list[Any]:
        offset, parts = builder.mul(pair, stride), []
        for line in range(0, 2 * SHORT_BLOCK, LINE):
            bring_line(builder, builder.add(soon, builder.add(offset, LONG(line))))
        for block in (0, SHORT_BLOCK):
            parts += small_bfloats(builder, builder.add(builder.add(values, offset), LONG(block)))
        # LANES upper halves of odds, then as many lower ones.
        place = builder.add(
            builder.shl(builder.lshr(pair, LONG(3)), LONG(6)), builder.shl(builder.and_(pair, LONG(7)), LONG(2))
        )
        grown: list[Any] = []
        for query in range(many):
            begin = builder.add(odds, builder.add(builder.mul(further, LONG(query)), place))
            upper, lower = (each_lane(builder, builder.add(begin, LONG(half)), WORDS) for half in (0, 2 * LANES))
            for part in parts:
                total = pairs_plus(builder, totals[len(grown)], part, upper)
                grown.append(pairs_plus(builder, total, part, lower))
        return grown

    pairs = builder.lshr(builder.add(count, LONG(1)), LONG(1))
    found = loop_of(builder, pairs, many * 4, grow)
    return [builder.fmul(one, constant(2.0**MIDDLE)) for one in found]


score_shorts = keys_scores_of(QUERIES, _by_pairs)
sum_shorts = values_sum_of(QUERIES, _in_pairs)
