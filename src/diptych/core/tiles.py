"""What compiled attention of many queries does with memory: products of tiles, rows of scores, and how numbers must lie
so that pairs of bfloat16 can be multiplied in one instruction.

Such an instruction takes LANES pairs and adds the two products of each to a float32. So the left factor is read a pair
at a time, which lies anywhere, and the right one LANES pairs at a time, which must lie in a row: a matrix whose sum is
over its rows has two rows in turn (`interleave`), one whose sum is along them is turned (`turn`).
"""

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from diptych.core import flash_plan as at
from diptych.core import tile_units
from diptych.core.attention_lanes import constant, store
from diptych.core.lanes import (
    BYTE,
    FLOAT,
    HALF,
    HAS_TILES,
    INT,
    LANES,
    LINE,
    LONG,
    PAIRED_BFLOATS,
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
    llvm,
    pairs_plus,
    read_at,
    read_floats,
    spread,
    times_plus,
)

LOG2_E = 1.44269504  # e^x = 2^(x LOG2_E)
CURRENT_ROUNDING = 4
POWERS = (0.0013276472, 0.00967554133, 0.0555071327, 0.240221197, 0.693146967, 1.00000007)  # of 2^x, |x| <= 1/2
HIDDEN = -math.inf  # the score of what may not be looked at


def _multiply(
    builder: Any, adds: bool, left: Any, next_row: Any, right: Any, next_right: Any, pairs: Any, out: Any, next_out: Any
) -> None:
    """The code of `set_tile` and `add_to_tile` for a processor that multiplies pairs, but no tiles."""
    rows = [builder.add(left, builder.mul(next_row, LONG(row))) for row in range(DOWN)]
    places = [
        builder.add(builder.add(out, builder.mul(next_out, LONG(row))), LONG(part * LINE))
        for row in range(DOWN)
        for part in range(at.ACROSS // LANES)
    ]

    def grow(pair: Any, totals: list[Any]) -> list[Any]:
        here = builder.add(right, builder.mul(next_right, pair))
        parts = [
            read_at(builder, builder.add(here, LONG(part * LINE)), PAIRED_BFLOATS) for part in range(at.ACROSS // LANES)
        ]
        step, grown = builder.mul(pair, LONG(4)), list[Any]()
        for row in rows:
            both = each_lane(builder, builder.add(row, step), WORDS)
            for part in parts:
                grown.append(pairs_plus(builder, totals[len(grown)], both, part))
        return grown

    first = [read_floats(builder, place) if adds else ZEROS for place in places]
    for total, place in zip(carried(builder, pairs, first, grow), places, strict=True):
        store(builder, total, place)


def _product(adds: bool) -> Any:
    """An intrinsic: DOWN x at.ACROSS sums of float32, of `pairs` products of pairs each.

    Args of it: left, next_row: the left factor, a pair after the other, and bytes from a row of it to the next.
    right, next_right: the right factor, and bytes from a pair of its rows to the next.
    pairs: a multiple of LANES, and not 0.
    out, next_out: the sums; they are added to what is there, if `adds`.
    """
    multiply = tile_units.multiply if HAS_TILES else _multiply

    @intrinsic
    def product(
        context: Any, left: Any, next_row: Any, right: Any, next_right: Any, pairs: Any, out: Any, next_out: Any
    ) -> Typed:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            multiply(builder, adds, *given)
            return context.get_dummy_value()

        return types.void(*[INT] * 7), code

    return product


@intrinsic
def _nothing(context: Any) -> Typed:
    return types.void(), lambda context, builder, signature, given: context.get_dummy_value()


DOWN = tile_units.DOWN if HAS_TILES else 8  # sums of a tile of products are DOWN x at.ACROSS
ROWS = 4  # of scores, that are worked on side by side
set_tile, add_to_tile = _product(False), _product(True)
begin_tiles = tile_units.begin_tiles if HAS_TILES else _nothing  # what a thread does before and after its products
end_tiles = tile_units.end_tiles if HAS_TILES else _nothing


def power_of_two(builder: Any, x: Any) -> Any:
    """2^x to 3e-7 of it: 2^n, and for what is left of x a polynomial that is nearest to 2^x there. Of -inf it is 0: so
    the instruction that multiplies by 2^n has it, even beside what is no number."""
    whole = builder.call(llvm(builder, f"rint.v{LANES}f32", VECTOR, VECTOR), [x])
    rest, y = builder.fsub(x, whole), constant(POWERS[0])
    for term in POWERS[1:]:
        y = times_plus(builder, y, rest, constant(term))
    kind = ir.IntType(LANES)
    scale = llvm(builder, "x86.avx512.mask.scalef.ps.512", VECTOR, VECTOR, VECTOR, VECTOR, kind, WORD)
    return builder.call(scale, [y, whole, ZEROS, kind(-1), WORD(CURRENT_ROUNDING)])


def narrowed(builder: Any, first: Any, second: Any) -> Any:
    """Two vectors of float32 as the nearest bfloat16, one after the other: 2 LANES halves."""
    nearest = llvm(builder, "x86.avx512bf16.cvtne2ps2bf16.512", PAIRED_BFLOATS, VECTOR, VECTOR)
    return builder.bitcast(builder.call(nearest, [second, first]), ir.VectorType(HALF, 2 * LANES))


def floats_at(builder: Any, address: Any, place: Any) -> list[Any]:
    """The two vectors of float32 at a place."""
    here = builder.add(address, builder.mul(place, LONG(2 * LINE)))
    return [read_floats(builder, builder.add(here, LONG(half))) for half in (0, LINE)]


def give(builder: Any, both: list[Any], out: Any, place: Any) -> None:
    """Two vectors to a place, as bfloat16."""
    store(builder, narrowed(builder, *both), builder.add(out, builder.mul(place, LONG(LINE))))


@intrinsic
def copy_lines(context: Any, here: Any, there: Any, lines: Any) -> Typed:
    """So many lines of memory, at least one, to another place; zeros from an address of 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        here, there, lines = given

        def body(here: Any) -> None:
            def step(line: Any, _: list[Any]) -> list[Any]:
                offset = builder.mul(line, LONG(LINE))
                nothing = ir.Constant(WORDS, None)
                words = nothing if here is None else read_at(builder, builder.add(here, offset), WORDS)
                store(builder, words, builder.add(there, offset))
                return []

            carried(builder, lines, [], step)

        with_and_without(builder, here, body)
        return context.get_dummy_value()

    return types.void(INT, INT, INT), code


@intrinsic
def stretch(context: Any, numbers: Any, factor: Any, count: Any) -> Typed:
    """float32 times a factor, in their place; `count` is a multiple of at.ACROSS."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, factor, count = given
        each = spread(builder, factor)

        def step(vector: Any, _: list[Any]) -> list[Any]:
            here = builder.add(numbers, builder.mul(vector, LONG(LINE)))
            store(builder, builder.fmul(read_floats(builder, here), each), here)
            return []

        carried(builder, builder.udiv(count, LONG(LANES)), [], step)
        return context.get_dummy_value()

    return types.void(INT, types.float32, INT), code


@intrinsic
def narrow(context: Any, numbers: Any, factor: Any, out: Any, count: Any) -> Typed:
    """float32 times a factor, as bfloat16; `count` is a multiple of at.ACROSS."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, factor, out, count = given
        each = spread(builder, factor)

        def step(place: Any, _: list[Any]) -> list[Any]:
            give(builder, [builder.fmul(one, each) for one in floats_at(builder, numbers, place)], out, place)
            return []

        carried(builder, builder.udiv(count, LONG(at.ACROSS)), [], step)
        return context.get_dummy_value()

    return types.void(INT, types.float32, INT, INT), code


@intrinsic
def turn(context: Any, rows: Any, next_row: Any, count: Any, out: Any, next_out: Any) -> Typed:
    """LANES words of each of LANES rows as columns; zeros for the rows from `count` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows, next_row, count, out, next_out = given
        vectors, nothing = [], ir.Constant(WORDS, None)
        for row in range(LANES):
            is_there = builder.icmp_signed("<", LONG(row), count)
            offset = builder.select(is_there, builder.mul(next_row, LONG(row)), LONG(0))
            vectors.append(builder.select(is_there, read_at(builder, builder.add(rows, offset), WORDS), nothing))
        orders = [
            ir.Constant(WORDS, [place for lane in range(half, half + LANES // 2) for place in (lane, LANES + lane)])
            for half in (0, LANES // 2)
        ]
        for _ in range(4):  # each time what is at place abcd of the 16 x 16 moves by one bit: 2^4 = LANES
            pairs = zip(vectors[: LANES // 2], vectors[LANES // 2 :], strict=True)
            vectors = [builder.shuffle_vector(*pair, order) for pair in pairs for order in orders]
        for column, vector in enumerate(vectors):
            store(builder, vector, builder.add(out, builder.mul(next_out, LONG(column))))
        return context.get_dummy_value()

    return types.void(*[INT] * 5), code


@intrinsic
def interleave(context: Any, first: Any, second: Any, out: Any, next_out: Any, count: Any) -> Typed:
    """Numbers of two rows in turn, 16 bits each: at.ACROSS of a row at `out`, the next `next_out` bytes further on, and
    so on; `count` is a multiple of at.ACROSS."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first, second, out, next_out, count = given
        halves = ir.VectorType(HALF, 2 * LANES)

        def step(place: Any, _: list[Any]) -> list[Any]:
            offset = builder.mul(place, LONG(LINE))
            both = [read_at(builder, builder.add(row, offset), halves) for row in (first, second)]
            for part in range(2):
                order = _in_turn(part * LANES, 2 * LANES + part * LANES)
                there = builder.add(builder.add(out, builder.mul(place, next_out)), LONG(part * LINE))
                store(builder, builder.shuffle_vector(*both, order), there)
            return []

        carried(builder, builder.udiv(count, LONG(at.ACROSS)), [], step)
        return context.get_dummy_value()

    return types.void(*[INT] * 5), code


def _in_turn(first: int, second: int) -> Any:
    """The order that takes LANES from one place on and LANES from another, in turn."""
    order = [place for lane in range(LANES) for place in (first + lane, second + lane)]
    return ir.Constant(ir.VectorType(WORD, 2 * LANES), order)


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


def with_and_without(builder: Any, address: Any, body: Callable[[Any], None]) -> None:
    """The code for an address, and for None where it is 0: one of them runs."""
    with builder.if_else(builder.icmp_signed("==", address, LONG(0))) as (nothing, something):
        with nothing:
            body(None)
        with something:
            body(address)


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
                store(builder, builder.shuffle_vector(halves, halves, _in_turn(0, LANES)), builder.add(there, offset))
            for part, row in enumerate(rows):
                lanes = ir.Constant(WORDS, list(range(part * LANES, part * LANES + LANES)))
                there = builder.add(out, builder.lshr(row, LONG(1)))
                store(builder, builder.shuffle_vector(its_scores, its_scores, lanes), there)
            return []

        carried(builder, builder.udiv(end, LONG(LANES)), [], step)
        return context.get_dummy_value()

    number = types.float32
    return types.void(INT, INT, INT, INT, number, number, number, INT, INT, INT), code
