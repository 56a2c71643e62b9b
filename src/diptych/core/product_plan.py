"""The table that the compiled product of two columns of rows reads (`core.product_kernel`): which number stands in
which column. All are 64-bit integers."""

import math
from functools import cache

from diptych.core.share_plan import FIRST

(
    PLACES,  # rows of both factors, over which is summed
    DOWN,  # numbers of a row of the left factor
    ACROSS,  # and of the right one
    LEFT,
    NEXT_LEFT,  # bytes from a row to the next
    RIGHT,
    NEXT_RIGHT,
    OUT,  # float32
    SHARE_DOWN,  # of what a share makes
    SHARE_ACROSS,
) = range(FIRST, FIRST + 10)
TABLE = FIRST + 10  # columns

STEP = 32  # all three sizes are multiples of it
# Of what a share works with at a time: two panels of so many places stay in the first cache, and all in the second.
MOST_PLACES, MOST_DOWN, MOST_ACROSS = 256, 576, 384
# Nanoseconds for each row of the factors: to lay out a number of the left and of the right one, and to multiply two.
LEFT_COST, RIGHT_COST, COST = 0.165, 0.128, 1 / 900
SPARE = 64  # bytes beside a row of it: rows a power of two apart would be in each other's way in a cache
TURNED_PITCH = 2 * MOST_PLACES + SPARE  # bytes from a row of the turned left factor to the next
PAIRED_PITCH = 4 * STEP  # and from a pair of rows of the right one, which lies in panels of STEP numbers across
ROWS_PITCH = 4 * MOST_DOWN
TURNED = 0
PAIRED = TURNED + MOST_DOWN * TURNED_PITCH
PANEL = MOST_PLACES // 2 * PAIRED_PITCH
ROWS = PAIRED + MOST_ACROSS // STEP * PANEL  # pairs of rows of the left factor, on their way to be turned
SUMS = ROWS + STEP // 2 * ROWS_PITCH  # tile after tile, column by column
SUMS_PITCH = 4 * STEP
NEEDED = SUMS + 4 * MOST_DOWN * MOST_ACROSS  # bytes


@cache
def share_sizes(down: int, across: int, threads: int) -> tuple[int, int]:
    """The numbers down and across of the pieces of a result that are made soonest."""

    def sizes(whole: int, most: int) -> set[int]:
        fewest = math.ceil(whole / most)
        return {math.ceil(whole / pieces / STEP) * STEP for pieces in range(fewest, fewest + 2 * threads)}

    def cost(size: tuple[int, int]) -> float:
        turns = math.ceil(math.ceil(down / size[0]) * math.ceil(across / size[1]) / threads)
        return turns * (LEFT_COST * size[0] + RIGHT_COST * size[1] + COST * size[0] * size[1])

    return min(((one, other) for one in sizes(down, MOST_DOWN) for other in sizes(across, MOST_ACROSS)), key=cost)
