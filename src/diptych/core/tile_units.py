"""Products of tiles by a processor that has registers and units for them (AMX: Intel's Architecture Instruction Set
Extensions reference, chapter 3).

Such a register holds 16 rows of a line of memory. A product adds to 16 x 16 float32 those of 16 rows of 16 pairs of
bfloat16 and 16 rows of pairs of the right factor, which lie as `core.tiles` says. Each thread says once how large its
tiles are, and gives the registers up when it ends, since a thread that has them takes longer to be put aside.
"""

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from diptych.core import flash_plan as at
from diptych.core.lanes import BYTE, HALF, LANES, LINE, LONG, Typed, carried, llvm

ROWS = 16  # of a register
DOWN = 2 * ROWS
SUMS, LEFT, RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)  # which register holds what


def _call(builder: Any, name: str, *given: Any) -> None:
    """An instruction for tiles: registers are given by their numbers, and addresses as pointers."""
    builder.call(llvm(builder, f"x86.{name}", ir.VoidType(), *(one.type for one in given)), given)


def _at(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, BYTE.as_pointer())


@intrinsic
def begin_tiles(context: Any) -> Typed:
    """Before a thread's first product: all tiles are as large as they can be."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        used, unused = len(SUMS + LEFT + RIGHT), 16 - len(SUMS + LEFT + RIGHT)
        parts = [
            ir.Constant.literal_array([BYTE(1)] + [BYTE(0)] * 15),  # the kind of layout, the only one there is
            ir.Constant.literal_array([HALF(LINE)] * used + [HALF(0)] * unused),
            ir.Constant.literal_array([BYTE(ROWS)] * used + [BYTE(0)] * unused),
        ]
        layout = cgutils.alloca_once_value(builder, ir.Constant.literal_struct(parts))
        _call(builder, "ldtilecfg", builder.bitcast(layout, BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def end_tiles(context: Any) -> Typed:
    """After a thread's last product."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), code


def multiply(
    builder: Any, adds: bool, left: Any, next_row: Any, right: Any, next_right: Any, pairs: Any, out: Any, next_out: Any
) -> None:
    """The code of `tiles.set_tile` and `add_to_tile`, for DOWN rows; pairs are a multiple of LANES."""
    down = [LONG(0), LONG(ROWS)]
    places = [
        _at(builder, builder.add(builder.add(out, builder.mul(next_out, row)), LONG(part * LINE)))
        for row in down
        for part in range(at.ACROSS // LANES)
    ]
    for tile, place in zip(SUMS, places, strict=True):
        if adds:
            _call(builder, "tileloadd64", BYTE(tile), place, next_out)
        else:
            _call(builder, "tilezero", BYTE(tile))

    def step(line: Any, _: list[Any]) -> list[Any]:
        mine = builder.add(left, builder.mul(line, LONG(LINE)))
        for row, tile in zip(down, LEFT, strict=True):
            here = builder.add(mine, builder.mul(next_row, row))
            _call(builder, "tileloadd64", BYTE(tile), _at(builder, here), next_row)
        rows = builder.add(right, builder.mul(line, builder.mul(next_right, LONG(LANES))))
        for part, tile in enumerate(RIGHT):
            there = _at(builder, builder.add(rows, LONG(part * LINE)))
            _call(builder, "tileloadd64", BYTE(tile), there, next_right)
        for total, pair in zip(SUMS, itertools.product(LEFT, RIGHT), strict=True):
            _call(builder, "tdpbf16ps", BYTE(total), *map(BYTE, pair))
        return []

    carried(builder, builder.udiv(pairs, LONG(LANES)), [], step)
    for tile, place in zip(SUMS, places, strict=True):
        _call(builder, "tilestored64", BYTE(tile), place, next_out)
