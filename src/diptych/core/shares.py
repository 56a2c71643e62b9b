"""How the threads that run compiled code together divide the work (`core.together`)."""

from diptych.core.lanes import add_shared, ints
from diptych.core.row_math import exact
from diptych.core.share_plan import SCRATCH, SCRATCH_BYTES, SHARE, THREAD


@exact
def next_share(plan: int, count: int) -> int:
    """A share that nobody took, one of `count`; -1 where there is none."""
    share = add_shared(plan + 8 * SHARE, 1)
    return share if share < count else -1


@exact
def scratch_of(plan: int) -> int:
    """Where a thread that has just come works."""
    return ints(plan)[SCRATCH] + add_shared(plan + 8 * THREAD, 1) * ints(plan)[SCRATCH_BYTES]
