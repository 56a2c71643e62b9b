"""The table that compiled sweeps over rows of numbers read (`core.sweep_kernel`): which number stands in which column.

All are 64-bit integers; an address of 0 means that there is none. Numbers are bfloat16, one row after the other.
"""

from diptych.core.share_plan import FIRST

(
    WORK,
    ROWS,
    WIDTH,
    SHARE_ROWS,
    X,
    PULL,  # the gradient of what was given out
    OUT,
    BEND,
    TIMES,
    TO_TIMES,
    TARGETS,  # int64
    # Of norms, all of them float32: of each place of a row, of each row, of each share and place.
    GAIN,
    SHIFT,
    EPS,
    IS_LAYER,
    MEANS,
    INVERSES,
    TO_GAIN,
    TO_SHIFT,
    BESIDE,  # bfloat16: what the gradient of the rows is added to
) = range(FIRST, FIRST + 20)
TABLE = FIRST + 20  # columns

BEND_FORWARD, BEND_BACKWARD, SCORE, NORM_FORWARD, NORM_BACKWARD = range(5)  # kinds of work
BENDS = {"silu": 0, "quick-gelu": 1, "gelu": 2, "gelu-tanh": 3, "relu2": 4}
STEP = 32  # numbers at a time: a row is a multiple of it
SHARE_NUMBERS = 2**16  # of a share: what takes some ten microseconds


def rows_of_share(width: int) -> int:
    return max(1, SHARE_NUMBERS // width)
