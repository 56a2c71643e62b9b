"""The product of a turned matrix and another, both bfloat16: sums over their rows, as the gradient of a layer's weights
is one (`core.linear`).

A share is a piece of the result. Of both factors it takes some rows at a time, lays them out for products of tiles
(`core.tiles`) and adds what they come to. Numba compiles it once a machine (`core.machine_code`).
"""

from diptych.core import product_plan as at
from diptych.core.lanes import LANES, ints
from diptych.core.row_math import exact
from diptych.core.share_plan import LINE
from diptych.core.shares import next_share, scratch_of
from diptych.core.tiles import DOWN, add_to_tile, begin_tiles, copy_lines, end_tiles, interleave, set_tile, turn


@exact
def lay_out_left(left: int, stride: int, places: int, down: int, scratch: int) -> None:
    """(places, down) numbers as (down, places)."""
    rows = scratch + at.ROWS
    for place in range(0, places, at.STEP):
        for one in range(0, at.STEP, 2):
            here = left + (place + one) * stride
            interleave(here, here + stride, rows + one // 2 * at.ROWS_PITCH, 4 * at.STEP, down)
        for row in range(0, down, LANES):
            there = scratch + at.TURNED + row * at.TURNED_PITCH + 2 * place
            turn(rows + 4 * row, at.ROWS_PITCH, LANES, there, at.TURNED_PITCH)


@exact
def multiply(plan: int, down: int, many_down: int, across: int, many_across: int, scratch: int) -> None:
    """A piece of the result: so many rows from one on, and so many numbers of each."""
    about = ints(plan)
    pitch = 4 * about[at.ACROSS]
    out = about[at.OUT] + down * pitch + 4 * across
    for first in range(0, about[at.PLACES], at.MOST_PLACES):
        places = min(at.MOST_PLACES, about[at.PLACES] - first)
        left, right = about[at.LEFT] + first * about[at.NEXT_LEFT], about[at.RIGHT] + first * about[at.NEXT_RIGHT]
        lay_out_left(left + 2 * down, about[at.NEXT_LEFT], places, many_down, scratch)
        for place in range(0, places, 2):
            here = right + place * about[at.NEXT_RIGHT] + 2 * across
            there = scratch + at.PAIRED + place // 2 * at.PAIRED_PITCH
            interleave(here, here + about[at.NEXT_RIGHT], there, at.PANEL, many_across)
        sums = scratch + at.SUMS
        for column in range(0, many_across, at.STEP):
            paired = scratch + at.PAIRED + column // at.STEP * at.PANEL
            for row in range(0, many_down, DOWN):
                turned = scratch + at.TURNED + row * at.TURNED_PITCH
                if first == 0:
                    set_tile(turned, at.TURNED_PITCH, paired, at.PAIRED_PITCH, places // 2, sums, at.SUMS_PITCH)
                else:
                    add_to_tile(turned, at.TURNED_PITCH, paired, at.PAIRED_PITCH, places // 2, sums, at.SUMS_PITCH)
                sums += DOWN * at.SUMS_PITCH
    sums = scratch + at.SUMS
    for column in range(0, many_across, at.STEP):
        for row in range(many_down):
            copy_lines(sums, out + row * pitch + 4 * column, at.SUMS_PITCH // LINE)
            sums += at.SUMS_PITCH


@exact
def multiply_turned(plan: int) -> int:
    """Take shares until there are none; every thread that is to help calls it once."""
    about, scratch = ints(plan), scratch_of(plan)
    down, across = about[at.SHARE_DOWN], about[at.SHARE_ACROSS]
    columns = (about[at.ACROSS] + across - 1) // across
    count = (about[at.DOWN] + down - 1) // down * columns
    begin_tiles()
    share = next_share(plan, count)
    while share >= 0:
        row, column = share // columns * down, share % columns * across
        multiply(plan, row, min(down, about[at.DOWN] - row), column, min(across, about[at.ACROSS] - column), scratch)
        share = next_share(plan, count)
    end_tiles()
    return 0
