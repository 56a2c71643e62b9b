"""What compiled attention of many queries does with memory: products of tiles, and how numbers must lie so that
pairs of bfloat16 can be multiplied in one instruction.

Such an instruction takes LANES pairs and adds the two products of each to a float32. So the left factor is read a pair
at a time, which lies anywhere, and the right one LANES pairs at a time, which must lie in a row: a matrix whose sum is
over its rows has two rows in turn (`interleave`), one whose sum is along them is turned (`turn`).
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from diptych.core import flash_plan as at
from diptych.core import tile_units
from diptych.core.attention_lanes import constant, store
from diptych.core.lanes import (
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
LEAST = -100.0


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
set_tile, add_to_tile = _product(False), _product(True)
begin_tiles = tile_units.begin_tiles if HAS_TILES else _nothing  # what a thread does before and after its products
end_tiles = tile_units.end_tiles if HAS_TILES else _nothing


def power_of_two(builder: Any, x: Any) -> Any:
    """2^x to 3e-7 of it: 2^n, and for what is left of x a polynomial that is nearest to 2^x there. Below 2^LEAST it is
    0, as of -inf: a processor takes a hundred times as long for numbers too small to be normal."""
    whole = builder.call(llvm(builder, f"rint.v{LANES}f32", VECTOR, VECTOR), [x])
    rest, y = builder.fsub(x, whole), constant(POWERS[0])
    for term in POWERS[1:]:
        y = times_plus(builder, y, rest, constant(term))
    kind = ir.IntType(LANES)
    counts = builder.bitcast(builder.fcmp_unordered(">=", x, constant(LEAST)), kind)  # so does what is no number
    scale = llvm(builder, "x86.avx512.mask.scalef.ps.512", VECTOR, VECTOR, VECTOR, VECTOR, kind, WORD)
    return builder.call(scale, [y, whole, ZEROS, counts, WORD(CURRENT_ROUNDING)])


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
                order = in_turn(part * LANES, 2 * LANES + part * LANES)
                there = builder.add(builder.add(out, builder.mul(place, next_out)), LONG(part * LINE))
                store(builder, builder.shuffle_vector(*both, order), there)
            return []

        carried(builder, builder.udiv(count, LONG(at.ACROSS)), [], step)
        return context.get_dummy_value()

    return types.void(*[INT] * 5), code


def in_turn(first: int, second: int) -> Any:
    """The order that takes LANES from one place on and LANES from another, in turn."""
    order = [place for lane in range(LANES) for place in (first + lane, second + lane)]
    return ir.Constant(ir.VectorType(WORD, 2 * LANES), order)


def with_and_without(builder: Any, address: Any, body: Callable[[Any], None]) -> None:
    """The code for an address, and for None where it is 0: one of them runs."""
    with builder.if_else(builder.icmp_signed("==", address, LONG(0))) as (nothing, something):
        with nothing:
            body(None)
        with something:
            body(address)
