"""One token of one text through a whole decoder, in one call of compiled code.

To write a text is to multiply one row by every matrix, once a token. Each product takes microseconds, and between two
of them stand norms, turns and sums of a few hundred numbers: a trip through Python and torch for each costs more than
all that it does. Here the token goes through every layer without one; weights, keys and values are read where they lie.

A layer is five phases: queries, keys and values; attention; the output; what is widened; what is narrowed. A phase is
cut into shares that do not depend on each other, and whoever is free takes the next one: the thread that called, and
the others as far as they are awake. So nothing waits for a thread that another program has put off its core, and sums
are the same however many threads there are.

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
from diptych.core.row_attention import attend, attended, segments_of
from diptych.core.row_math import activate, exact, fraction, matrix_at, multiply, normalise, number, pack, tanh

SPINS = 1 << 14  # pauses that a thread waits for work before it sleeps, some 300 us
SHIFT = 20  # bits of a ticket that count shares; those above count phases
SHARE = (1 << SHIFT) - 1
MATRIX = len(at.MATRIX)  # columns
FEW = 8  # rows of a matrix that are worth a share


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
def begin_of(share: int, rows: int, threads: int) -> int:
    """The first row of a share: one large share for each thread, then small ones for who is done first."""
    large = rows * 3 // (4 * threads)
    if share <= threads:
        return share * large
    return min(rows, threads * large + (share - threads) * max(FEW, rows // (16 * threads)))


@exact
def shares_of(phase: int, plan: int) -> int:
    about = ints(plan)
    if phase == at.ATTEND:
        return about[at.NUM_KV_HEADS] * segments_of(plan)
    rows, threads = rows_of(phase, plan), about[at.THREADS]
    small = max(FEW, rows // (16 * threads))
    return threads + (rows - threads * (rows * 3 // (4 * threads)) + small - 1) // small


@exact
def work(phase: int, layer: int, share: int, plan: int, ticket: int, thread: int) -> None:
    """One share of a phase. What all shares of a phase need, each thread makes for itself."""
    about = ints(plan)
    table = about[at.LAYER_TABLE] + layer * at.LAYER * 8
    row = ints(table)
    scratch = about[at.SCRATCH] + thread * about[at.SCRATCH_BYTES]
    made, x, packed = ints(scratch), scratch + 64, scratch + about[at.PACKED]
    width, numbers = about[at.WIDTH], about[at.NUMBERS]
    if phase == at.ATTEND:
        attend(plan, table, share, x, packed)
        return
    rows, threads = rows_of(phase, plan), about[at.THREADS]
    first, last = begin_of(share, rows, threads), begin_of(share + 1, rows, threads)
    read = width
    if phase == at.ATTEND_OUTPUT:
        read = about[at.NUM_HEADS] * about[at.HEAD_DIM]
    elif phase == at.NARROW:
        x, read = about[at.WIDENED], about[at.HIDDEN]
    if made[0] != ticket:
        made[0] = ticket
        if phase == at.ATTEND_OUTPUT:
            attended(plan, x)
        elif phase != at.NARROW:
            norm = plan + 8 * at.FINAL_NORM
            if phase == at.ATTEND_INPUT:
                norm = table + 8 * at.ATTENTION_NORM
            elif phase == at.WIDEN:
                norm = table + 8 * at.FEED_FORWARD_NORM
            normalise(about[at.RESIDUAL], x, width, norm, plan, about[at.IS_LAYER_NORM] != 0)
        pack(x, packed, read, about[at.WEIGHTS], numbers)
    if phase == at.ATTEND_INPUT:
        begin = 0
        for part in range(3):
            heads = about[at.NUM_HEADS] if part == 0 else about[at.NUM_KV_HEADS]
            end = begin + heads * about[at.HEAD_DIM]
            matrix, y = table + 8 * (at.QUERY + MATRIX * part), about[at.PROJECTED] + begin * 4
            multiply(matrix, max(first, begin) - begin, min(last, end) - begin, x, packed, read, y, plan, False)
            begin = end
    elif phase == at.ATTEND_OUTPUT:
        multiply(table + 8 * at.OUTPUT, first, last, x, packed, read, about[at.RESIDUAL], plan, True)
    elif phase == at.WIDEN:
        wide, up = about[at.WIDENED], x + width * 4
        if row[at.GATE]:
            multiply(table + 8 * at.GATE, first, last, x, packed, read, wide, plan, False)
            multiply(table + 8 * at.UP, first, last, x, packed, read, up, plan, False)
            activate(wide + first * 4, last - first, about[at.ACTIVATION])
            for place in range(first, last):
                floats(wide)[place] *= floats(up)[place]
        else:
            multiply(table + 8 * at.UP, first, last, x, packed, read, wide, plan, False)
            activate(wide + first * 4, last - first, about[at.ACTIVATION])
    elif phase == at.NARROW:
        multiply(table + 8 * at.DOWN, first, last, x, packed, read, about[at.RESIDUAL], plan, True)
    else:
        multiply(plan + 8 * at.HEAD, first, last, x, packed, read, about[at.LOGITS], plan, False)
        cap = fraction(plan, at.LOGIT_CAP)
        if cap > 0:
            for place in range(first, last):
                floats(about[at.LOGITS])[place] = cap * tanh(floats(about[at.LOGITS])[place] / cap)


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
def go_through(control: int, phase: int, layer: int, plan: int) -> None:
    """A phase from its beginning to its end."""
    about = ints(control)
    shares, ticket = shares_of(phase, plan), ((read_shared(control) >> SHIFT) + 1) << SHIFT
    write_shared(control, ticket | SHARE)  # none is left: nobody takes a share of what is half written
    about[at.PHASE], about[at.PHASE_LAYER], about[at.SHARES], about[at.PLAN] = phase, layer, shares, plan
    write_shared(control + 8 * at.DONE, 0)
    write_shared(control, ticket)
    share_work(control, 0)
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
    """A token, as thread 0; as another, help with its phases until there was nothing to do for a while."""
    if thread == 0:
        embed(plan)
        for layer in range(ints(plan)[at.NUM_LAYERS]):
            for phase in range(at.PREDICT):
                go_through(control, phase, layer, plan)
        go_through(control, at.PREDICT, 0, plan)
        return 0
    seen, waited = -1, 0
    while waited < SPINS and not read_shared(control + 8 * at.STOPPED):
        ticket = share_work(control, thread)
        waited = waited + 1 if ticket == seen else 0
        seen = ticket
        pause()
    return 0
