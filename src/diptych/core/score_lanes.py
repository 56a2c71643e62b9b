"""Rows of scores in compiled attention: their largest, the odds that they come to, and the gradients of both.

ROWS of them are worked on side by side: each ends in a sum over its lanes, which nothing else of it can be done before.
"""

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from diptych.core import flash_plan as at
from diptych.core.attention_lanes import constant, store
from diptych.core.lanes import (
    BYTE,
    FLOAT,
    INT,
    LANES,
    LINE,
    LONG,
    VECTOR,
    WORD,
    WORDS,
    ZEROS,
    Typed,
    carried,
    each_lane,
    higher,
    lanes_largest,
    lanes_sum,
    read_at,
    read_floats,
    spread,
    times_plus,
)
from diptych.core.tiles import floats_at, give, in_turn, narrowed, power_of_two, with_and_without

ROWS = 4
HIDDEN = -math.inf  # the score of what may not be looked at


def _within(builder: Any, count: Any, end: Any) -> Any:
    """A count that is at least 0, and at most another."""
    least = builder.select(builder.icmp_signed("<", count, end), count, end)
    return builder.select(builder.icmp_signed(">", least, LONG(0)), least, LONG(0))


def _seen(builder: Any, place: Any, count: Any, mask: Any) -> Any:
    """Which of LANES scores may be looked at: the first `count` of a row, and those that a mask says."""
    lanes = ir.Constant(WORDS, list(range(LANES)))
    each = spread(builder, builder.trunc(builder.sub(count, place), WORD), WORDS)
    seen = builder.icmp_signed("<", lanes, each)
    if mask is not None:
        shown = read_at(builder, builder.add(mask, place), ir.VectorType(BYTE, LANES))
        seen = builder.and_(seen, builder.icmp_unsigned("!=", shown, ir.Constant(shown.type, None)))
    return seen


def _each_row(
    builder: Any,
    rows: list[Any],
    count: Any,
    more: Any,
    end: Any,
    masks: list[Any] | None,
    first: Any,
    grow: Callable[[int, Any, Any, Any, Any], Any],
) -> list[Any]:
    """Something of each of some rows of scores, side by side: none waits for the sum of another.

    Args:
        rows: their addresses.
        count, more: the scores of the first row that may be looked at, and how many more there are in each next one.
        masks: of each row, see `largest_scores`; None is none.
        first, grow: what it is before the first score, and after LANES of them: of a row, the bytes to them, their
            address, which of them may be looked at (None: all), and what it was.
    """

    def stepped(hides: bool) -> Callable[[Any, list[Any]], list[Any]]:
        def step(vector: Any, so_far: list[Any]) -> list[Any]:
            offset, found, seen = builder.mul(vector, LONG(LINE)), [], None
            for row, address in enumerate(rows):
                if hides:
                    its = builder.add(count, builder.mul(more, LONG(row)))
                    seen = _seen(builder, builder.mul(vector, LONG(LANES)), its, None if masks is None else masks[row])
                found.append(grow(row, offset, builder.add(address, offset), seen, so_far[row]))
            return found

        return step

    begin, totals = LONG(0), [first] * len(rows)
    if masks is None:  # only the last vectors have something to hide
        begin = builder.sdiv(_within(builder, count, end), LONG(LANES))
        totals = carried(builder, begin, totals, stepped(False))
    return carried(builder, builder.udiv(end, LONG(LANES)), totals, stepped(True), begin)


def _rows_of(builder: Any, first: Any, pitch: Any) -> list[Any]:
    return [builder.add(first, builder.mul(pitch, LONG(row))) for row in range(ROWS)]


def _masks_of(builder: Any, first: Any, pitch: Any, last: Any) -> list[Any] | None:
    """Those of rows after the last one, which are not there, are its own."""
    if first is None:
        return None
    rows = [builder.select(builder.icmp_signed("<", LONG(row), last), LONG(row), last) for row in range(ROWS)]
    return [builder.add(first, builder.mul(pitch, row)) for row in rows]


def _give_numbers(builder: Any, numbers: list[Any], out: Any) -> None:
    """Floats, one after the other."""
    for place, number in enumerate(numbers):
        store(builder, number, builder.add(out, LONG(4 * place)))


@intrinsic
def largest_scores(
    context: Any,
    scores: Any,
    pitch: Any,
    count: Any,
    more: Any,
    end: Any,
    mask: Any,
    next_mask: Any,
    last: Any,
    found: Any,
) -> Typed:
    """The largest of each of ROWS rows of scores, to `found`. What may not be looked at gets HIDDEN.

    Args:
        pitch: bytes from a row to the next.
        count, more: scores of the first row that may be looked at, and how many more there are in each next one.
        end: scores to write, a multiple of at.ACROSS.
        mask, next_mask, last: a byte for each score, 0 where it may not be looked at, with the bytes from a row of them
            to the next, of which the last is so many rows away; an address of 0 is none.
    """

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        scores, pitch, count, more, end, mask, next_mask, last, found = given

        def grow(row: int, offset: Any, here: Any, seen: Any, largest: Any) -> Any:
            score = read_floats(builder, here)
            if seen is not None:
                score = builder.select(seen, score, constant(HIDDEN))
                store(builder, score, here)
            return higher(builder, score, largest)

        def body(mask: Any) -> None:
            rows, masks = _rows_of(builder, scores, pitch), _masks_of(builder, mask, next_mask, last)
            most = _each_row(builder, rows, count, more, end, masks, constant(HIDDEN), grow)
            _give_numbers(builder, [lanes_largest(builder, one) for one in most], found)

        with_and_without(builder, mask, body)
        return context.get_dummy_value()

    return types.void(*[INT] * 9), code


@intrinsic
def raise_rows(
    context: Any, scores: Any, pitch: Any, scale: Any, largest: Any, end: Any, odds: Any, next_odds: Any, totals: Any
) -> Typed:
    """2^(score scale - largest) of ROWS rows as bfloat16; their sums before they are rounded are added to `totals`.
    At `largest` there is a number for each row, too."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        scores, pitch, scale, largest, end, odds, next_odds, totals = given
        each, fours = spread(builder, scale), [LONG(4 * row) for row in range(ROWS)]
        less = [builder.fneg(each_lane(builder, builder.add(largest, four), VECTOR)) for four in fours]
        rows, outs = _rows_of(builder, scores, pitch), _rows_of(builder, odds, next_odds)

        def step(place: Any, sums: list[Any]) -> list[Any]:
            grown = list[Any]()
            for row, out, its in zip(rows, outs, less, strict=True):
                powers = [times_plus(builder, one, each, its) for one in floats_at(builder, row, place)]
                both = [power_of_two(builder, one) for one in powers]
                give(builder, both, out, place)
                grown += [builder.fadd(sums[len(grown) + half], one) for half, one in enumerate(both)]
            return grown

        sums = carried(builder, builder.udiv(end, LONG(at.ACROSS)), [ZEROS] * (2 * ROWS), step)
        found = [lanes_sum(builder, builder.fadd(*sums[2 * row : 2 * row + 2])) for row in range(ROWS)]
        before = [read_at(builder, builder.add(totals, four), FLOAT) for four in fours]
        _give_numbers(builder, [builder.fadd(*both) for both in zip(before, found, strict=True)], totals)
        return context.get_dummy_value()

    return types.void(INT, INT, types.float32, *[INT] * 5), code


@intrinsic
def raise_again(
    context: Any,
    scores: Any,
    pitch: Any,
    count: Any,
    more: Any,
    end: Any,
    mask: Any,
    next_mask: Any,
    last: Any,
    scale: Any,
    levels: Any,
    wanted: Any,
    found: Any,
) -> Typed:
    """The odds 2^(score scale - level) of ROWS rows in place of their scores, 0 where they may not look; to `found`
    the sums of the odds times `wanted`, which lies as the scores. Other arguments as in `largest_scores`."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        scores, pitch, count, more, end, mask, next_mask, last, scale, levels, wanted, found = given
        each, fours = spread(builder, scale), [LONG(4 * row) for row in range(ROWS)]
        less = [builder.fneg(each_lane(builder, builder.add(levels, four), VECTOR)) for four in fours]
        pulls = _rows_of(builder, wanted, pitch)

        def grow(row: int, offset: Any, here: Any, seen: Any, total: Any) -> Any:
            score = times_plus(builder, read_floats(builder, here), each, less[row])
            if seen is not None:
                score = builder.select(seen, score, constant(HIDDEN))
            odds = power_of_two(builder, score)
            store(builder, odds, here)
            return times_plus(builder, odds, read_floats(builder, builder.add(pulls[row], offset)), total)

        def body(mask: Any) -> None:
            rows, masks = _rows_of(builder, scores, pitch), _masks_of(builder, mask, next_mask, last)
            sums = _each_row(builder, rows, count, more, end, masks, ZEROS, grow)
            _give_numbers(builder, [lanes_sum(builder, one) for one in sums], found)

        with_and_without(builder, mask, body)
        return context.get_dummy_value()

    return types.void(*[INT] * 8, types.float32, *[INT] * 3), code


@intrinsic
def to_scores(
    context: Any,
    odds: Any,
    wanted: Any,
    padded: Any,
    end: Any,
    scale: Any,
    mean: Any,
    next_mean: Any,
    paired_odds: Any,
    paired_scores: Any,
    out: Any,
) -> Typed:
    """The gradients of two rows of `padded` scores, odds (wanted - mean) scale, as bfloat16 in two rows and in turn; in
    turn the odds, too. Odds and what is wanted of them are float32; of each row there is a mean."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        odds, wanted, padded, end, scale, mean, next_mean, paired_odds, paired_scores, out = given
        each, means = spread(builder, scale), [spread(builder, one) for one in (mean, next_mean)]

        def step(place: Any, _: list[Any]) -> list[Any]:
            offset = builder.mul(place, LONG(LINE))
            rows = [offset, builder.add(offset, builder.shl(padded, LONG(2)))]
            both, pulls = ([read_floats(builder, builder.add(first, row)) for row in rows] for first in (odds, wanted))
            found = [
                builder.fmul(builder.fmul(one, each), builder.fsub(pull, less))
                for one, pull, less in zip(both, pulls, means, strict=True)
            ]
            its_odds, its_scores = narrowed(builder, *both), narrowed(builder, *found)
            for halves, there in ((its_odds, paired_odds), (its_scores, paired_scores)):
                store(builder, builder.shuffle_vector(halves, halves, in_turn(0, LANES)), builder.add(there, offset))
            for part, row in enumerate(rows):
                lanes = ir.Constant(WORDS, list(range(part * LANES, part * LANES + LANES)))
                there = builder.add(out, builder.lshr(row, LONG(1)))
                store(builder, builder.shuffle_vector(its_scores, its_scores, lanes), there)
            return []

        carried(builder, builder.udiv(end, LONG(LANES)), [], step)
        return context.get_dummy_value()

    number = types.float32
    return types.void(INT, INT, INT, INT, number, number, number, INT, INT, INT), code
