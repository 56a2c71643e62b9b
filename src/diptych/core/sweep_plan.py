"""The table that compiled sweeps over rows of numbers read (`core.sweep_kernel`): which number stands in which column.

All are 64-bit integers; an address of 0 means that there is none. Numbers are bfloat16, one row after the other.
"""

from diptych.core.share_plan import FIRST

WORK, ROWS, WIDTH, BEND, X, TIMES, PULL, TARGETS, OUT, TO_TIMES = range(FIRST, FIRST + 10)
TABLE = FIRST + 10  # columns

BEND_FORWARD, BEND_BACKWARD, SCORE = range(3)  # kinds of work
BENDS = {"silu": 0, "gelu": 1, "gelu-tanh": 2}
STEP = 32  # numbers at a time: a row is a multiple of it
SHARE_NUMBERS = 2**16  # of a share: what takes some ten microseconds
