"""One pass over many rows of bfloat16 where torch makes several, each of which reads and writes all of them.

A share is some rows. Tables are those of `core.sweep_plan`. Numba compiles `sweep` once a machine
(`core.machine_code`).
"""

import math

import numpy as np

from diptych.core import sweep_plan as at
from diptych.core.lanes import add_shared, bfloats, floats, ints
from diptych.core.row_math import bfloat, exact, widened
from diptych.core.share_plan import SHARE
from diptych.core.sweep_lanes import LOG2_E, bend, bend_back, largest_of, powers, sum_of_powers

LN_2 = np.float32(0.693147181)


@exact
def score(logits: int, width: int, target: int, gradient: int, out: int) -> None:
    """-log p of a row's target in nats, and its gradient by the logits, p - 1 at the target: in their place, if that is
    where it goes. A negative target is none: both are 0."""
    if target < 0:
        floats(out)[0] = 0
        for place in range(width):
            bfloats(gradient)[place] = 0
        return
    given = widened(bfloats(logits)[target]) * np.float32(LOG2_E)
    largest = largest_of(logits, width) * np.float32(LOG2_E)
    above = np.float32(math.log2(sum_of_powers(logits, largest, width)))
    floats(out)[0] = (above + (largest - given)) * LN_2  # what is above the largest is small, and is not to be lost
    powers(logits, largest + above, gradient, width)
    its = np.float32(2.0) ** (given - largest - above)
    bfloats(gradient)[target] = bfloat(its - np.float32(1.0))


@exact
def sweep(plan: int) -> int:
    """Take shares until there are none; every thread that is to help calls it once."""
    about = ints(plan)
    rows, width, work = about[at.ROWS], about[at.WIDTH], about[at.WORK]
    many = max(1, at.SHARE_NUMBERS // width)
    while True:
        first = add_shared(plan + 8 * SHARE, 1) * many
        if first >= rows:
            return 0
        last = min(first + many, rows)
        place, count = 2 * width * first, width * (last - first)
        x, times, pull, out = about[at.X] + place, about[at.TIMES], about[at.PULL] + place, about[at.OUT]
        times = times + place if times else 0
        if work == at.BEND_FORWARD:
            bend(about[at.BEND], x, times, out + place, count)
        elif work == at.BEND_BACKWARD:
            bend_back(about[at.BEND], x, times, pull, out + place, about[at.TO_TIMES] + place, count)
        else:
            for row in range(first, last):
                here = 2 * width * row
                target = ints(about[at.TARGETS])[row]
                score(about[at.X] + here, width, target, about[at.PULL] + here, out + 4 * row)
