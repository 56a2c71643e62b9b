"""What attention of a few queries does with memory: products with keys, odds, sums of values, in whole lanes.

Each key and each value is read from memory once, for all queries that look at it; and what is needed next is asked for
in time, since a processor that waits for memory cannot look as far ahead as memory is away.

Where the processor multiplies pairs of bfloat16, both sums are made of them, the other factor in two halves: a query's
own, and odds of two keys beside each other, for which two rows of values are interleaved.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from diptych.core.lanes import (
    BLOCK,
    CONTRACT,
    FLOAT,
    HALF,
    INT,
    LANES,
    LINE,
    LONG,
    PAIRED_BFLOATS,
    PAIRS_BFLOATS,
    VECTOR,
    WORD,
    WORDS,
    ZEROS,
    Bfloat,
    Typed,
    added_up,
    bfloat_pairs,
    bring_line,
    carried,
    each_lane,
    higher,
    lanes_largest,
    lanes_sum,
    llvm,
    loop_of,
    pairs_plus,
    read_at,
    read_bfloats,
    read_floats,
    read_int8s,
    times_floats,
)

QUERIES = 4  # that share a reading of values: their sums fill the registers


def constant(number: float) -> Any:
    return ir.Constant(VECTOR, [number] * LANES)


def words(number: int) -> Any:
    return ir.Constant(WORDS, [number] * LANES)


def store(builder: Any, vector: Any, address: Any) -> None:
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=1)


@intrinsic
def bring(context: Any, address: Any, lines: Any) -> Typed:
    """Ask for lines of memory, at least one, without waiting for them."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, lines = values

        def step(place: Any, totals: list[Any]) -> list[Any]:
            bring_line(builder, builder.add(address, builder.mul(place, LONG(LINE))))
            return []

        loop_of(builder, lines, 0, step)
        return context.get_dummy_value()

    return types.void(INT, INT), code


def _keys_product(size: int, numbers: int, step: Callable[..., Any]) -> Any:
    """An intrinsic: the products of LANES keys, one after the other, with a query. `width`, a multiple of BLOCK, is
    that of both; the query is at two addresses, or twice at one.

    Args:
        size: bytes of a number of a key, and of one of the query.
        numbers: that a step takes.
    """

    @intrinsic
    def keys_product(context: Any, keys: Any, query: Any, more: Any, width: Any, scores: Any) -> Typed:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            keys, query, more, width, scores = values
            stride = builder.mul(width, LONG(size))

            def grow(place: Any, totals: list[Any]) -> list[Any]:
                first = builder.mul(place, LONG(numbers * size))
                halves = [builder.add(half, builder.mul(place, LONG(64))) for half in (query, more)]
                begins = [builder.add(builder.add(keys, first), builder.mul(stride, LONG(key))) for key in range(LANES)]
                return [step(builder, total, [key, *halves]) for total, key in zip(totals, begins, strict=True)]

            steps = builder.udiv(width, LONG(numbers))
            store(builder, added_up(builder, loop_of(builder, steps, LANES, grow)), scores)
            return context.get_dummy_value()

        return types.void(*[INT] * 5), code

    return keys_product


dot_float_keys = _keys_product(4, LANES, times_floats(read_floats))
dot_bfloat_keys = (
    _keys_product(2, 2 * LANES, bfloat_pairs) if PAIRS_BFLOATS else _keys_product(2, LANES, times_floats(read_bfloats))
)
dot_int8_keys = _keys_product(1, LANES, times_floats(read_int8s))


def keys_scores_of(most: int, sum_up: Callable[..., list[Any]]) -> Any:
    """An intrinsic: the products of LANES keys of `width` numbers, which lie together, with up to `most` packed
    queries. These and the scores lie `next_packed` and `next_scores` bytes one after the other. As much memory as the
    keys take is asked for at `soon`, a line at a time between products.

    Args:
        sum_up: (builder, queries, addresses and counts) -> vectors, one a query.
    """

    @intrinsic
    def keys_scores(
        context: Any,
        keys: Any,
        width: Any,
        packed: Any,
        next_packed: Any,
        queries: Any,
        scores: Any,
        next_scores: Any,
        soon: Any,
    ) -> Typed:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            keys, width, packed, next_packed, queries, scores, next_scores, soon = given
            for many in range(1, most + 1):
                with builder.if_then(builder.icmp_signed("==", queries, LONG(many))):
                    for query, total in enumerate(sum_up(builder, many, keys, width, packed, next_packed, soon)):
                        store(builder, total, builder.add(scores, builder.mul(next_scores, LONG(query))))
            return context.get_dummy_value()

        return types.void(*[INT] * 8), code

    return keys_scores


def raised_lanes(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0, as `row_math.raised` has it, but 0 where that is as good as 0."""

    def plus(a: Any, x: Any, b: Any) -> Any:
        return builder.fadd(builder.fmul(a, x, flags=CONTRACT), b, flags=CONTRACT)

    is_nothing = builder.fcmp_ordered("<", x, constant(-87.0))
    x = builder.select(is_nothing, constant(-87.0), x)
    floor = llvm(builder, f"floor.v{LANES}f32", VECTOR, VECTOR)
    n = builder.call(floor, [plus(x, constant(1.44269504), constant(0.5))])
    x = plus(n, constant(-0.693359375), x)
    x = plus(n, constant(2.12194440e-4), x)
    y = constant(1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = plus(y, x, constant(term))
    y = builder.fadd(plus(builder.fmul(y, x), x, x), constant(1.0))
    bits = builder.shl(builder.add(builder.fptosi(n, WORDS), ir.Constant(WORDS, [127] * LANES)), words(23))
    return builder.select(is_nothing, ZEROS, builder.fmul(y, builder.bitcast(bits, VECTOR)))


def _halves(builder: Any, x: Any) -> tuple[Any, Any]:
    """Numbers as two vectors of 16 bits: bfloat16 by their upper halves, and the nearest to what these leave."""
    bits, halves, kind = builder.bitcast(x, WORDS), ir.VectorType(HALF, LANES), ir.VectorType(Bfloat(), LANES)
    upper = builder.trunc(builder.lshr(bits, words(16)), halves)
    rest = builder.fsub(x, builder.bitcast(builder.and_(bits, words(0xFFFF0000)), VECTOR))
    nearest = llvm(builder, "x86.avx512bf16.cvtneps2bf16.512", kind, VECTOR)
    return upper, builder.bitcast(builder.call(nearest, [rest]), halves)


@intrinsic
def raise_scores(context: Any, scores: Any, count: Any, out: Any) -> Typed:
    """exp(score - largest) in place of scores; at `out` the largest, and the sum of the others. `count` is a
    multiple of LANES."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        scores, count, out = values
        vectors = builder.udiv(count, LONG(LANES))

        def at(place: Any) -> Any:
            return builder.add(scores, builder.mul(place, LONG(4 * LANES)))

        def highest(place: Any, so_far: list[Any]) -> list[Any]:
            return [higher(builder, read_floats(builder, at(place)), so_far[0])]

        (most,) = carried(builder, vectors, [constant(-3e38)], highest)
        largest = lanes_largest(builder, most)
        builder.store(largest, builder.inttoptr(out, FLOAT.as_pointer()), align=4)
        each = each_lane(builder, out)

        def grow(place: Any, totals: list[Any]) -> list[Any]:
            here = at(place)
            odds = raised_lanes(builder, builder.fsub(read_floats(builder, here), each))
            store(builder, odds, here)
            return [builder.fadd(totals[0], odds)]

        (total,) = loop_of(builder, vectors, 1, grow)
        total = lanes_sum(builder, total)
        builder.store(total, builder.inttoptr(builder.add(out, LONG(4)), FLOAT.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(INT, INT, INT), code


@intrinsic
def halve(context: Any, numbers: Any, count: Any) -> Typed:
    """Each LANES float32 as their upper halves and, after them, their lower ones; `count` is a multiple of LANES."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, count = given

        def step(place: Any, totals: list[Any]) -> list[Any]:
            here = builder.add(numbers, builder.mul(place, LONG(4 * LANES)))
            for half, offset in zip(_halves(builder, read_floats(builder, here)), (0, 2 * LANES), strict=True):
                store(builder, half, builder.add(here, LONG(offset)))
            return []

        loop_of(builder, builder.udiv(count, LONG(LANES)), 0, step)
        return context.get_dummy_value()

    return types.void(INT, INT), code


def values_sum_of(most: int, sum_up: Callable[..., list[Any]]) -> Any:
    """An intrinsic: sums of BLOCK numbers of `count` rows of values, `stride` bytes one after the other, each times its
    odds, for up to `most` queries. Odds and sums of a query lie `further` and `next_sums` bytes after those of the one
    before. As many lines at `soon`, also `stride` bytes one after the other, are asked for.

    Args:
        sum_up: (builder, queries, addresses and counts) -> vectors, query by query.
    """

    @intrinsic
    def values_sum(
        context: Any,
        values: Any,
        stride: Any,
        count: Any,
        odds: Any,
        further: Any,
        sums: Any,
        next_sums: Any,
        queries: Any,
        soon: Any,
    ) -> Typed:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            values, stride, count, odds, further, sums, next_sums, queries, soon = given
            for many in range(1, most + 1):
                with builder.if_then(builder.icmp_signed("==", queries, LONG(many))):
                    found = sum_up(builder, many, values, stride, count, odds, further, soon)
                    for index, total in enumerate(found):
                        query, part = divmod(index, BLOCK // LANES)
                        there = builder.add(sums, builder.mul(next_sums, LONG(query)))
                        store(builder, total, builder.add(there, LONG(4 * LANES * part)))
            return context.get_dummy_value()

        return types.void(*[INT] * 9), code

    return values_sum


def _one_by_one(size: int, read: Callable[..., Any]) -> Callable[..., list[Any]]:
    """A row of values at a time, numbers of so many bytes, widened by `read`."""

    def sum_up(
        builder: Any, many: int, values: Any, stride: Any, count: Any, odds: Any, further: Any, soon: Any
    ) -> list[Any]:
        def grow(row: Any, totals: list[Any]) -> list[Any]:
            offset = builder.mul(row, stride)
            for line in range(0, BLOCK * size, LINE):
                bring_line(builder, builder.add(soon, builder.add(offset, LONG(line))))
            here = builder.add(values, offset)
            parts = [read(builder, builder.add(here, LONG(part * size))) for part in range(0, BLOCK, LANES)]
            grown: list[Any] = []
            for query in range(many):
                place = builder.add(builder.mul(further, LONG(query)), builder.mul(row, LONG(4)))
                odd = each_lane(builder, builder.add(odds, place))
                for part in parts:
                    total = totals[len(grown)]
                    grown.append(builder.fadd(total, builder.fmul(part, odd, flags=CONTRACT), flags=CONTRACT))
            return grown

        return loop_of(builder, count, many * BLOCK // LANES, grow)

    return sum_up


def in_turn(builder: Any, first: Any, second: Any, number: Any) -> list[Any]:
    """Numbers of two WORDS in turn: within each 16 bytes their lower ones, then their upper: an instruction each."""
    lane, count = 128 // number.width, 32 * LANES // number.width
    kind, index = ir.VectorType(number, count), ir.VectorType(WORD, count)
    both = [builder.bitcast(words_, kind) for words_ in (first, second)]
    lower = [base + step + row * count for base in range(0, count, lane) for step in range(lane // 2) for row in (0, 1)]
    masks = [ir.Constant(index, [place + half for place in lower]) for half in (0, lane // 2)]
    return [builder.bitcast(builder.shuffle_vector(*both, mask), WORDS) for mask in masks]


def _in_pairs(
    builder: Any, many: int, values: Any, stride: Any, count: Any, odds: Any, further: Any, soon: Any
) -> list[Any]:
    """Two rows of values at a time, their numbers in turn; the last of an odd count is beside itself, with no odds."""

    def grow(pair: Any, totals: list[Any]) -> list[Any]:
        row = builder.shl(pair, LONG(1))
        offset = builder.mul(row, stride)
        for one in range(2):
            for line in range(0, 2 * BLOCK, LINE):
                ahead = builder.add(soon, builder.add(offset, LONG(line)))
                bring_line(builder, builder.add(ahead, stride) if one else ahead)
        here = builder.add(values, offset)
        has_next = builder.icmp_signed("<", builder.add(row, LONG(1)), count)
        rows = [here, builder.add(here, builder.select(has_next, stride, LONG(0)))]
        parts = []
        for part in range(0, 2 * BLOCK, LINE):
            both = [read_at(builder, builder.add(one, LONG(part)), WORDS) for one in rows]
            parts += [builder.bitcast(turns, PAIRED_BFLOATS) for turns in in_turn(builder, both[0], both[1], HALF)]
        place = builder.add(
            builder.shl(builder.lshr(pair, LONG(3)), LONG(6)), builder.shl(builder.and_(pair, LONG(7)), LONG(2))
        )
        grown: list[Any] = []
        for query in range(many):
            begin = builder.add(odds, builder.add(builder.mul(further, LONG(query)), place))
            upper, lower = (
                builder.bitcast(each_lane(builder, builder.add(begin, LONG(half))), PAIRED_BFLOATS)
                for half in (0, 2 * LANES)
            )
            for part in parts:
                total = pairs_plus(builder, totals[len(grown)], part, upper)
                grown.append(pairs_plus(builder, total, part, lower))
        return grown

    pairs = builder.lshr(builder.add(count, LONG(1)), LONG(1))
    found = loop_of(builder, pairs, many * BLOCK // LANES, grow)
    # Numbers 0-3, 8-11, 16-19, 24-27 of 32 are in one vector, the others in the next.
    first = [place for base in (0, 4) for place in (*range(base, base + 4), *range(LANES + base, LANES + base + 4))]
    orders = [ir.Constant(WORDS, first), ir.Constant(WORDS, [place + 8 for place in first])]
    pairs_of_parts = zip(found[::2], found[1::2], strict=True)
    return [builder.shuffle_vector(*both, order) for both in pairs_of_parts for order in orders]


sum_float_values = values_sum_of(QUERIES, _one_by_one(4, read_floats))
sum_bfloat_values = values_sum_of(QUERIES, _in_pairs if PAIRS_BFLOATS else _one_by_one(2, read_bfloats))
sum_int8_values = values_sum_of(QUERIES, _one_by_one(1, read_int8s))
