"""One pass over many rows of bfloat16 where torch makes several, each of which reads and writes all of them.

A share is some rows. Tables are those of `core.sweep_plan`. Numba compiles `sweep` once a machine
(`core.machine_code`).
"""

import math

import numpy as np

from diptych.core import sweep_plan as at
from diptych.core.lanes import add_shared, bfloats, floats, ints
from diptych.core.row_math import bfloat, exact, fraction, widened
from diptych.core.share_plan import SHARE
from diptych.core.sweep_lanes import (
    bend,
    bend_back,
    largest_of,
    powers,
    pull_row,
    pulls,
    row_sum,
    scale_row,
    squares,
    sum_of_powers,
)
from diptych.core.tiles import LOG2_E

LN_2 = np.float32(0.693147181)


@exact
def score(plan: int, row: int) -> None:
    """-log p of a row's target in nats, and its gradient by the logits, p - 1 at the target: in their place, if that is
    where it goes. A negative target is none: both are 0."""
    about = ints(plan)
    width, target, loss = about[at.WIDTH], ints(about[at.TARGETS])[row], floats(about[at.OUT] + 4 * row)
    logits, gradient = about[at.X] + 2 * width * row, about[at.PULL] + 2 * width * row
    if target < 0:
        loss[0] = 0
        for place in range(width):
            bfloats(gradient)[place] = 0
        return
    given = widened(bfloats(logits)[target]) * np.float32(LOG2_E)
    largest = largest_of(logits, width) * np.float32(LOG2_E)
    above = np.float32(math.log2(sum_of_powers(logits, largest, width)))
    loss[0] = (above + (largest - given)) * LN_2  # what is above the largest is small, and is not to be lost
    powers(logits, largest + above, gradient, width)
    its = np.float32(2.0) ** (given - largest - above)
    bfloats(gradient)[target] = bfloat(its - np.float32(1.0))


@exact
def normalise(plan: int, row: int) -> None:
    """A row less its mean, over its root of the mean square; of a layer norm. An RMS norm has no mean."""
    about = ints(plan)
    width = about[at.WIDTH]
    here, mean = about[at.X] + 2 * width * row, np.float32(0.0)
    if about[at.IS_LAYER]:
        mean = row_sum(here, width) / np.float32(width)
    inverse = np.float32(1.0) / np.sqrt(squares(here, mean, width) / np.float32(width) + fraction(plan, at.EPS))
    floats(about[at.MEANS])[row], floats(about[at.INVERSES])[row] = mean, inverse
    scale_row(here, mean, inverse, about[at.GAIN], about[at.SHIFT], about[at.OUT] + 2 * width * row, width)


@exact
def normalise_back(plan: int, row: int, to_gain: int, to_shift: int) -> None:
    """The gradient of such a row; those of gain and shift are added to. What would only scale the row, or move all of
    it, changes nothing, and is taken out."""
    about = ints(plan)
    width, place = about[at.WIDTH], 2 * about[at.WIDTH] * row
    mean, inverse = floats(about[at.MEANS])[row], floats(about[at.INVERSES])[row]
    along, level = pulls(
        about[at.X] + place, about[at.PULL] + place, mean, inverse, about[at.GAIN], to_gain, to_shift, width
    )
    along, level = along / np.float32(width), level / np.float32(width) if about[at.IS_LAYER] else np.float32(0.0)
    x, pull, out = about[at.X] + place, about[at.PULL] + place, about[at.OUT] + place
    beside = about[at.BESIDE] + place if about[at.BESIDE] else 0
    pull_row(x, pull, mean, inverse, about[at.GAIN], along, level, beside, out, width)


@exact
def sweep(plan: int) -> int:
    """Take shares until there are none; every thread that is to help calls it once."""
    about = ints(plan)
    rows, width, work, many = about[at.ROWS], about[at.WIDTH], about[at.WORK], about[at.SHARE_ROWS]
    while True:
        share = add_shared(plan + 8 * SHARE, 1)
        first, last = share * many, min(share * many + many, rows)
        if first >= rows:
            return 0
        place, count = 2 * width * first, width * (last - first)
        x, times, pull, out = about[at.X] + place, about[at.TIMES], about[at.PULL] + place, about[at.OUT] + place
        if work == at.BEND_FORWARD:
            bend(about[at.BEND], x, times + place if times else 0, out, count)
        elif work == at.BEND_BACKWARD:
            other = about[at.TO_TIMES] + place
            bend_back(about[at.BEND], x, times + place if times else 0, pull, out, other, count)
        else:
            for row in range(first, last):
                if work == at.SCORE:
                    score(plan, row)
                elif work == at.NORM_FORWARD:
                    normalise(plan, row)
                else:
                    theirs = 4 * width * share
                    normalise_back(plan, row, about[at.TO_GAIN] + theirs, about[at.TO_SHIFT] + theirs)
