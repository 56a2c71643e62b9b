"""One token of a text through a whole decoder, or of each of some texts, in one call of compiled code.

To write a text is to multiply one row by every matrix, once a token. Each product takes microseconds, and between two
of them stand norms, turns and sums of a few hundred numbers: a trip through Python and torch for each costs more than
all that it does. Here the token goes through every layer without one; weights, keys and values are read where they lie.
Rows of several texts go side by side, so that weights are read from memory once for all; each has a table of its own
(`row_of`), and gets the numbers that it would get alone, to the last bit.

A layer is six phases: queries, keys and values; keeping these two; attention; the output; what is widened; what is
narrowed. A phase is cut into shares that do not depend on each other, and whoever is free takes the next one: the
thread that called, and the others as far as they are awake. So nothing waits for a thread that another program has put
off its core, and sums are the same however many threads there are.

The tables are those of `core.row_plan`. Numba compiles `run` once a machine (`core.machine_code`); where that was done
nothing here is imported.
"""

import numpy as np

from diptych.core import row_plan as at
from diptych.core.lanes import (
    add_shared,
    floats,
    int8s,
    ints,
    pause,
    read_shared,
    swap_shared,
    write_shared,
)
from diptych.core.nibble_products import multiply_nibbles, pack_groups
from diptych.core.row_attention import attend, attended, keep_own, segments_of
from diptych.core.row_math import (
    activate,
    exact,
    fraction,
    matrix_at,
    multiply,
    normalise,
    number,
    pack,
    packed_stride,
    tanh,
)

SPINS = 1 << 14  # pauses that a thread waits for work before it sleeps, some 300 us
SHIFT = 20  # bits of a ticket that count shares; those above count phases
SHARE = (1 << SHIFT) - 1
MATRIX = len(at.MATRIX)  # columns
FEW = 3 * at.TILE_DOWN  # rows of a matrix that are worth a share


@exact
def row_of(plan: int, row: int) -> int:
    """The table of a row; that of the first is the plan."""
    return plan + row * 8 * at.DECODER


@exact
def rows_of(phase: int, plan: int) -> int:
    """Rows that a phase multiplies by."""
    about = ints(plan)
    if phase == at.ATTEND_INPUT:
        return (about[at.NUM_HEADS] + 2 * about[at.NUM_KV_HEADS]) * about[at.HEAD_DIM]
    if phase == at.WIDEN:
        return about[at.HIDDEN]
    return about[at.VOCABULARY] if phase == at.PREDICT else about[at.WIDTH]


@exact
def matrix_of(phase: int, part: int, is_gated: bool, table: int, plan: int) -> int:
    """The matrices of a phase, one after the other; all have the same form and width."""
    if phase == at.ATTEND_INPUT:
        return table + 8 * (at.QUERY + MATRIX * part)
    if phase == at.ATTEND_OUTPUT:
        return table + 8 * at.OUTPUT
    if phase == at.WIDEN:
        return table + 8 * (at.GATE if is_gated and part == 0 else at.UP)
    return table + 8 * at.DOWN if phase == at.NARROW else plan + 8 * at.HEAD


@exact
def begin_of(share: int, rows: int, threads: int, unit: int) -> int:
    """The first row of a share: one large share for each thread, then small ones for who is done first."""
    large = large_of(rows, threads, unit)
    if share <= threads:
        return share * large
    return min(rows, threads * large + (share - threads) * small_of(rows, threads, unit))


@exact
def large_of(rows: int, threads: int, unit: int) -> int:
    return rows * 3 // (4 * threads) // unit * unit


@exact
def small_of(rows: int, threads: int, unit: int) -> int:
    return max(FEW, unit, rows // (16 * threads) // unit * unit)


@exact
def shares_of(phase: int, plan: int) -> int:
    about = ints(plan)
    if phase == at.ATTEND:
        segments = 0
        for row in range(about[at.ROWS]):
            segments += segments_of(row_of(plan, row))
        return about[at.NUM_KV_HEADS] * segments
    if phase == at.KEEP:
        return about[at.ROWS]
    rows, threads, unit = rows_of(phase, plan), about[at.THREADS], about[at.UNIT]
    small = small_of(rows, threads, unit)
    return threads + (rows - threads * large_of(rows, threads, unit) + small - 1) // small


@exact
def prepare(phase: int, table: int, plan: int, x: int, packed: int, read: int) -> None:
    """What all shares of a phase multiply by, each row of it normed or put together, and packed."""
    about = ints(plan)
    for row in range(about[at.ROWS]):
        mine, its = row_of(plan, row), x + row * read * 4
        if phase == at.ATTEND_OUTPUT:
            attended(mine, its)
        elif phase != at.NARROW:
            norm = plan + 8 * at.FINAL_NORM
            if phase == at.ATTEND_INPUT:
                norm = table + 8 * at.ATTENTION_NORM
            elif phase == at.WIDEN:
                norm = table + 8 * at.FEED_FORWARD_NORM
            normalise(ints(mine)[at.RESIDUAL], its, read, norm, plan, about[at.IS_LAYER_NORM] != 0)
        form, where = ints(matrix_of(phase, 0, False, table, plan))[at.FORM], packed + row * packed_stride(read)
        if form == at.INT4:
            pack_groups(its, where, read)
        else:
            pack(its, where, read, form, about[at.NUMBERS])


@exact
def work(phase: int, layer: int, share: int, plan: int, ticket: int, thread: int) -> None:
    """One share of a phase. What all shares of a phase need, each thread makes for itself."""
    about = ints(plan)
    table = about[at.LAYER_TABLE] + layer * at.LAYER * 8
    scratch = about[at.SCRATCH] + thread * about[at.SCRATCH_BYTES]
    made, found, x, packed = ints(scratch + at.MADE), scratch + at.FOUND, scratch + at.INPUT, scratch + about[at.PACKED]
    width, hidden = about[at.WIDTH], about[at.HIDDEN]
    if phase == at.KEEP:
        for head in range(about[at.NUM_KV_HEADS]):
            keep_own(row_of(plan, share), table, head, x)
        return
    if phase == at.ATTEND:
        row = 0
        while share >= about[at.NUM_KV_HEADS] * segments_of(row_of(plan, row)):
            share -= about[at.NUM_KV_HEADS] * segments_of(row_of(plan, row))
            row += 1
        attend(row_of(plan, row), table, share, x, packed)
        return
    rows, threads, unit = rows_of(phase, plan), about[at.THREADS], about[at.UNIT]
    first, last = begin_of(share, rows, threads, unit), begin_of(share + 1, rows, threads, unit)
    read = width
    if phase == at.ATTEND_OUTPUT:
        read = about[at.NUM_HEADS] * about[at.HEAD_DIM]
    elif phase == at.NARROW:
        x, read = about[at.WIDENED], hidden
    if made[0] != ticket:
        made[0] = ticket
        prepare(phase, table, plan, x, packed, read)
    # A call that stands once is compiled once: with constants among its arguments Numba compiles it for each of them.
    y, height, adds, parts = about[at.RESIDUAL], width, phase == at.ATTEND_OUTPUT or phase == at.NARROW, 1
    is_gated = phase == at.WIDEN and ints(table)[at.GATE] != 0
    if phase == at.ATTEND_INPUT:
        y, height, parts = about[at.PROJECTED], rows, 3
    elif phase == at.WIDEN:
        y, height, parts = about[at.WIDENED], hidden, 2 if is_gated else 1
    elif phase == at.PREDICT:
        y, height = about[at.LOGITS], rows
    begin, end, beside = 0, rows, scratch + about[at.WIDE]
    for part in range(parts):
        matrix, out = matrix_of(phase, part, is_gated, table, plan), y
        if phase == at.ATTEND_INPUT:
            end = begin + (about[at.NUM_HEADS] if part == 0 else about[at.NUM_KV_HEADS]) * about[at.HEAD_DIM]
            out = y + begin * 4
        elif part == 1:
            out = beside
        its_first, its_last = max(first, begin) - begin, min(last, end) - begin
        if ints(matrix)[at.FORM] == at.INT4:
            multiply_nibbles(matrix, its_first, its_last, packed, read, out, height, found, plan, adds)
        else:
            multiply(matrix, its_first, its_last, x, packed, read, out, height, found, plan, adds)
        if phase == at.ATTEND_INPUT:
            begin = end
    if phase == at.WIDEN:
        for row in range(about[at.ROWS]):
            mine, other = y + row * height * 4, floats(beside + row * height * 4)
            activate(mine + first * 4, last - first, about[at.ACTIVATION])
            if is_gated:
                for place in range(first, last):
                    floats(mine)[place] *= other[place]
    cap = fraction(plan, at.LOGIT_CAP)
    if phase == at.PREDICT and cap > 0:
        for row in range(about[at.ROWS]):
            scores = floats(y + row * height * 4)
            for place in range(first, last):
                scores[place] = cap * tanh(scores[place] / cap)


@exact
def share_work(control: int, thread: int) -> int:
    """Take shares of the phase that is on, until there are none; its ticket.

    What is read of a phase holds if its ticket can still be drawn: it is only changed when all shares are done.
    """
    about = ints(control)
    while True:
        ticket = read_shared(control)
        phase, layer, shares, plan = about[at.PHASE], about[at.PHASE_LAYER], about[at.SHARES], about[at.PLAN]
        share = ticket & SHARE
        if share >= shares:
            return ticket >> SHIFT
        if swap_shared(control, ticket, ticket + 1):
            work(phase, layer, share, plan, ticket >> SHIFT, thread)
            add_shared(control + 8 * at.DONE, 1)


@exact
def go_through(control: int, phase: int, layer: int, plan: int, thread: int) -> None:
    """A phase from its beginning to its end."""
    about = ints(control)
    shares, ticket = shares_of(phase, plan), ((read_shared(control) >> SHIFT) + 1) << SHIFT
    write_shared(control, ticket | SHARE)  # none is left: nobody takes a share of what is half written
    about[at.PHASE], about[at.PHASE_LAYER], about[at.SHARES], about[at.PLAN] = phase, layer, shares, plan
    write_shared(control + 8 * at.DONE, 0)
    write_shared(control, ticket)
    share_work(control, thread)
    while read_shared(control + 8 * at.DONE) < shares:
        pause()


@exact
def embed(plan: int) -> None:
    about = ints(plan)
    width, numbers, token = about[at.WIDTH], about[at.NUMBERS], about[at.TOKEN]
    weights, scale, _ = matrix_at(plan + 8 * at.EMBEDDING)
    out = floats(about[at.RESIDUAL])
    for place in range(width):
        if scale:
            out[place] = np.float32(int8s(weights)[token * width + place]) * number(scale, token, numbers)
        else:
            out[place] = number(weights, token * width + place, numbers)
    if about[at.POSITIONS]:
        for place in range(width):
            out[place] += number(about[at.POSITIONS], about[at.POSITION] * width + place, numbers)


@exact
def run(control: int, plan: int, thread: int) -> int:
    """A token of each row, as thread 0; as another, help with phases until there was nothing to do for a while."""
    if thread == 0:
        for row in range(ints(plan)[at.ROWS]):
            embed(row_of(plan, row))
        phases = ints(plan)[at.NUM_LAYERS] * at.PREDICT
        for step in range(phases + 1):
            go_through(control, at.PREDICT if step == phases else step % at.PREDICT, step // at.PREDICT, plan, thread)
        return 0
    seen, waited = -1, 0
    while waited < SPINS and not read_shared(control + 8 * at.STOPPED):
        ticket = share_work(control, thread)
        waited = waited + 1 if ticket == seen else 0
        seen = ticket
        pause()
    return 0
