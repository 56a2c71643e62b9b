"""Attention of one row over all that its text has been: a share is one head of keys over one segment of them.

Far into a text this is most of what is read from memory besides weights, so it must take no longer than reading does.

What shares give is put together by whoever needs it (`attended`), so they do not wait for each other, and sums are the
same whoever takes which. The tables are those of `core.row_plan`.
"""

import numpy as np

from diptych.core import row_plan as at
from diptych.core.attention_lanes import (
    QUERIES,
    bring,
    dot_bfloat_keys,
    dot_float_keys,
    sum_bfloat_values,
    sum_float_values,
    weigh_bfloats,
    weigh_floats,
)
from diptych.core.lanes import BLOCK, LANES, LINE, PAIRS_BFLOATS, bfloats, floats, ints
from diptych.core.row_math import (
    dot,
    exact,
    fraction,
    keep,
    normalise,
    number,
    pack,
    raised,
    size_of,
    tanh,
    turn,
    widened,
)

LOWEST = np.float32(-3e38)  # a score whose odds are 0


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
    here = values + first * width * size
    score(keys + first * width * size, here, count, group, queries, packed, scores, plan)
    partial = about[at.PARTIAL] + (head * group * segments + segment) * (width + 2) * 4
    further = segments * (width + 2) * 4
    weigh(scores, count, group, partial, further, plan)
    soon, ahead = here, share + about[at.THREADS]  # keys that this thread is likely to read next
    if ahead < about[at.NUM_KV_HEADS] * segments:
        kept = about[at.KEPT] + ahead // segments * about[at.ROOM]
        soon = row[at.KEYS] + (kept + ahead % segments * at.SEGMENT * width) * size
    add_values(here, count, group, scores, partial + 8, further, soon, plan)


@exact
def score(keys: int, values: int, count: int, group: int, queries: int, packed: int, scores: int, plan: int) -> None:
    """Products of all queries of a group with keys; meanwhile the values are asked for."""
    about, step = ints(plan), 4 * at.SEGMENT
    width, form = about[at.HEAD_DIM], about[at.NUMBERS]
    stride = width * size_of(form)
    whole, lines = count // LANES * LANES if width % BLOCK == 0 else 0, LANES * stride // LINE
    for key in range(0, whole, LANES):
        for one in range(group):
            begin, end = lines * one // group, lines * (one + 1) // group
            if begin < end:
                bring(values + key * stride + begin * LINE, end - begin)
            query, mine, found = queries + one * width * 4, packed + one * width * 4, scores + one * step + key * 4
            if form == at.FLOAT:
                dot_float_keys(keys + key * stride, query, query, width, found)
            elif PAIRS_BFLOATS:
                dot_bfloat_keys(keys + key * stride, mine, mine + 2 * width, width, found)
            else:
                dot_bfloat_keys(keys + key * stride, query, query, width, found)
    for key in range(whole, count):
        for one in range(group):
            query, mine = queries + one * width * 4, packed + one * width * 4
            floats(scores + one * step)[key] = dot(keys + key * stride, query, mine, width, form, form)


@exact
def weigh(scores: int, count: int, group: int, partial: int, further: int, plan: int) -> None:
    """Odds in place of scores, up to what they add up to, which is written with the largest score."""
    cap, padded = fraction(plan, at.SCORE_CAP), -(-count // LANES) * LANES
    for one in range(group):
        here = scores + one * 4 * at.SEGMENT
        mine = floats(here)
        if cap > 0:
            for key in range(count):
                mine[key] = cap * tanh(mine[key] / cap)
        for key in range(count, padded):
            mine[key] = LOWEST
        if ints(plan)[at.NUMBERS] == at.BFLOAT:
            weigh_bfloats(here, padded, partial + one * further)
        else:
            weigh_floats(here, padded, partial + one * further)


@exact
def add_values(values: int, count: int, group: int, scores: int, sums: int, further: int, soon: int, plan: int) -> None:
    """Sums of values by the odds of each query; meanwhile what is at `soon` is asked for."""
    about, step = ints(plan), 4 * at.SEGMENT
    width, form = about[at.HEAD_DIM], about[at.NUMBERS]
    size, whole = size_of(form), width // BLOCK * BLOCK
    stride = width * size
    for place in range(0, whole, BLOCK):
        here, next_ = values + place * size, soon + place * size
        for one in range(0, group, QUERIES):
            many, odds, out = min(QUERIES, group - one), scores + one * step, sums + one * further + place * 4
            if form == at.BFLOAT:
                sum_bfloat_values(here, stride, count, odds, step, out, further, many, next_)
            else:
                sum_float_values(here, stride, count, odds, step, out, further, many, next_)
    for one in range(group):
        rest = floats(sums + one * further)
        for place in range(whole, width):
            rest[place] = np.float32(0.0)
        for key in range(count):
            odd = odd_of(scores + one * step, key, form)
            for place in range(whole, width):
                rest[place] += odd * number(values, key * width + place, form)


@exact
def odd_of(odds: int, key: int, form: int) -> np.float32:
    """One of the odds that `weigh` wrote: where pairs are multiplied, LANES upper halves before LANES lower ones."""
    if form == at.BFLOAT and PAIRS_BFLOATS:
        place = key // LANES * 2 * LANES + key % LANES
        return widened(bfloats(odds)[place]) + widened(bfloats(odds)[place + LANES])
    return floats(odds)[key]


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
