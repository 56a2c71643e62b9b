"""Attention of one row over all that its text has been: a share is one head of keys over one segment of them.

What shares give is put together by whoever needs it (`attended`), so they do not wait for each other, and sums are the
same whoever takes which. The tables are those of `core.row_plan`.
"""

import numpy as np

from diptych.core import row_plan as at
from diptych.core.lanes import (
    BLOCK,
    LANES,
    PAIRS_BFLOATS,
    dot_keys,
    floats,
    ints,
    weighted_bfloats,
    weighted_floats,
)
from diptych.core.row_math import (
    dot,
    exact,
    fraction,
    keep,
    normalise,
    number,
    pack,
    quick,
    raised,
    size_of,
    tanh,
    turn,
)


@quick
def add_values(sums: int, odds: int, values: int, count: int, width: int, form: int) -> None:
    """sums = odds of keys times their values."""
    out, odd, size, whole = floats(sums), floats(odds), size_of(form), width // BLOCK * BLOCK
    for place in range(0, whole, BLOCK):
        if form == at.BFLOAT:
            weighted_bfloats(values + place * size, width * size, odds, count, sums + place * 4)
        else:
            weighted_floats(values + place * size, width * size, odds, count, sums + place * 4)
    for place in range(whole, width):
        out[place] = np.float32(0.0)
    for key in range(count):
        for place in range(whole, width):
            out[place] += odd[key] * number(values, key * width + place, form)


@exact
def segments_of(plan: int) -> int:
    return ints(plan)[at.POSITION] // at.SEGMENT + 1


@exact
def keep_own(plan: int, layer: int, head: int, scratch: int) -> None:
    """Write the key and the value of a token to those of its text, for one head of them."""
    about, row = ints(plan), ints(layer)
    width, form = about[at.HEAD_DIM], about[at.NUMBERS]
    key = about[at.PROJECTED] + (about[at.NUM_HEADS] + head) * width * 4
    value, place = key + about[at.NUM_KV_HEADS] * width * 4, about[at.KEPT] + head * about[at.ROOM]
    if row[at.KEY_NORM]:
        normalise(key, scratch, width, layer + 8 * at.KEY_NORM, plan, False)
        key = scratch
    turned, place = scratch + width * 4, (place + about[at.POSITION] * width) * size_of(form)
    turn(key, turned, plan, np.float32(1.0))
    keep(turned, row[at.KEYS] + place, width, form)
    keep(value, row[at.VALUES] + place, width, form)


@exact
def attend(plan: int, layer: int, share: int, scratch: int, packed: int) -> None:
    """All heads that share one head of keys, over one segment of them.

    Into PARTIAL, for each head and segment: the largest score, the sum of exp(score - largest), and the values by these
    odds (Milakov & Gimelshein 2018).
    """
    about, row = ints(plan), ints(layer)
    width, form, segments = about[at.HEAD_DIM], about[at.NUMBERS], segments_of(plan)
    head, segment = share // segments, share % segments
    group = about[at.NUM_HEADS] // about[at.NUM_KV_HEADS]
    size = size_of(form)
    first, position = segment * at.SEGMENT, about[at.POSITION]
    count = min(at.SEGMENT, position + 1 - first)
    kept = about[at.KEPT] + head * about[at.ROOM]
    keys, values = row[at.KEYS] + kept * size, row[at.VALUES] + kept * size
    projected, queries = about[at.PROJECTED], scratch
    scores = queries + group * width * 4
    scale = np.float32(1.0) / np.sqrt(np.float32(width))
    for one in range(group):
        query, mine = projected + (head * group + one) * width * 4, queries + one * width * 4
        if row[at.QUERY_NORM]:
            normalise(query, scores, width, layer + 8 * at.QUERY_NORM, plan, False)
            query = scores
        turn(query, mine, plan, scale)
        pack(mine, packed + one * width * 4, width, form, form)
    whole = count // LANES * LANES if PAIRS_BFLOATS and form == at.BFLOAT and width % BLOCK == 0 else 0
    for key in range(0, whole, LANES):
        for one in range(group):
            query, mine = packed + one * width * 4, scores + (one * at.SEGMENT + key) * 4
            dot_keys(keys + (first + key) * width * 2, query, query + 2 * width, width, mine)
    for key in range(whole, count):
        address = keys + (first + key) * width * size
        for one in range(group):
            query, mine = queries + one * width * 4, packed + one * width * 4
            floats(scores)[one * at.SEGMENT + key] = dot(address, query, mine, width, form, form)
    cap = fraction(plan, at.SCORE_CAP)
    for one in range(group):
        mine = floats(scores + one * at.SEGMENT * 4)
        if cap > 0:
            for key in range(count):
                mine[key] = cap * tanh(mine[key] / cap)
        partial = about[at.PARTIAL] + ((head * group + one) * segments + segment) * (width + 2) * 4
        out = floats(partial)
        out[0], out[1] = weigh(scores + one * at.SEGMENT * 4, count)
        add_values(partial + 8, scores + one * at.SEGMENT * 4, values + first * width * size, count, width, form)


@quick
def weigh(scores: int, count: int) -> tuple[np.float32, np.float32]:
    """exp(score - largest) in place of scores; the largest, and the sum of the others."""
    mine = floats(scores)
    largest = mine[0]
    for key in range(1, count):
        largest = max(largest, mine[key])
    total = np.float32(0.0)
    for key in range(count):
        mine[key] = raised(mine[key] - largest)
        total += mine[key]
    return largest, total


@exact
def attended(plan: int, y: int) -> None:
    """What each head has seen, out of its segments."""
    about = ints(plan)
    width, segments = about[at.HEAD_DIM], segments_of(plan)
    for head in range(about[at.NUM_HEADS]):
        here = about[at.PARTIAL] + head * segments * (width + 2) * 4
        largest = floats(here)[0]
        for segment in range(1, segments):
            largest = max(largest, floats(here + segment * (width + 2) * 4)[0])
        out = floats(y + head * width * 4)
        total = np.float32(0.0)
        for place in range(width):
            out[place] = np.float32(0.0)
        for segment in range(segments):
            part = floats(here + segment * (width + 2) * 4)
            weight = raised(part[0] - largest)
            total += weight * part[1]
            for place in range(width):
                out[place] += weight * part[place + 2]
        for place in range(width):
            out[place] /= total
