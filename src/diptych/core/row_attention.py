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
    dot_int8_keys,
    halve,
    raise_scores,
    sum_bfloat_values,
    sum_float_values,
    sum_int8_values,
)
from diptych.core.byte_attention import KEY_QUERIES, VALUE_QUERIES, pack_odds, pack_query, score_bytes, sum_bytes
from diptych.core.lanes import (
    BLOCK,
    LANES,
    LINE,
    PAIRS_BFLOATS,
    PAIRS_INTEGERS,
    bfloats,
    bytes_at,
    floats,
    int8s,
    ints,
)
from diptych.core.row_math import (
    bfloat,
    dot,
    exact,
    fraction,
    normalise,
    number,
    pack,
    raised,
    size_of,
    tanh,
    turn,
    widened,
)
from diptych.core.short_attention import score_shorts, sum_shorts
from diptych.core.short_bfloats import MIDDLE, factor, keep_row, short_size

LOWEST = np.float32(-3e38)  # a score whose odds are 0


@exact
def segments_of(plan: int) -> int:
    return ints(plan)[at.POSITION] // at.SEGMENT + 1


@exact
def keep_own(plan: int, layer: int, head: int, scratch: int) -> None:
    """Write the key and the value of a token to those of its text, for one head of them."""
    about, row = ints(plan), ints(layer)
    width = about[at.HEAD_DIM]
    key = about[at.PROJECTED] + (about[at.NUM_HEADS] + head) * width * 4
    value, place = key + about[at.NUM_KV_HEADS] * width * 4, place_of(plan, head) + about[at.POSITION]
    if row[at.KEY_NORM]:
        normalise(key, scratch, width, layer + 8 * at.KEY_NORM, plan, False)
        key = scratch
    turned = scratch + width * 4
    turn(key, turned, plan, np.float32(1.0))
    keep(turned, row[at.KEYS], row[at.KEY_SCALES], place, scratch, plan, False)
    keep(value, row[at.VALUES], row[at.VALUE_SCALES], place, scratch, plan, True)


@exact
def write(x: np.float32, address: int, place: int, form: int) -> np.float32:
    """A number in its form, bfloat16 or float32; what it is then."""
    if form == at.BFLOAT:
        bfloats(address)[place] = bfloat(x)
        return widened(bfloats(address)[place])
    floats(address)[place] = x
    return x


@exact
def keep(x: int, kept: int, scales: int, place: int, scratch: int, plan: int, are_values: bool) -> None:
    """Write a token's numbers, and their scale if there is one, to its place in the cache, in its form."""
    about, here = ints(plan), floats(x)
    width, form, numbers = about[at.HEAD_DIM], about[at.CACHE], about[at.NUMBERS]
    if PAIRS_BFLOATS and form == at.SHORT:
        for one in range(width):
            bfloats(scratch)[one] = bfloat(here[one])
        keep_row(scratch, width, place, kept, scales, are_values)
        return
    kept += place * width * size_of(form)
    if form == at.BFLOAT:
        for one in range(width):
            bfloats(kept)[one] = bfloat(here[one])
    elif form == at.FLOAT:
        for one in range(width):
            floats(kept)[one] = here[one]
    else:  # as `text.kept` does it, of the same numbers
        largest = np.float32(1e-6)
        for one in range(width):
            if numbers == at.BFLOAT:
                here[one] = widened(bfloat(here[one]))
            largest = max(largest, abs(here[one]))
        scale = write(largest / np.float32(127.0), scales, place, numbers)
        for one in range(width):
            int8s(kept)[one] = np.int8(min(max(np.rint(here[one] / scale), np.float32(-127.0)), np.float32(127.0)))


@exact
def place_of(plan: int, head: int) -> int:
    """Where a text's tokens begin in what the cache keeps of a layer, for one head of keys."""
    return ints(plan)[at.KEPT] + head * ints(plan)[at.ROOM]


@exact
def attend(plan: int, layer: int, share: int, scratch: int, packed: int) -> None:
    """All heads that share one head of keys, over one segment of them.

    Into PARTIAL, for each head and segment: the largest score, the sum of exp(score - largest), and the values by these
    odds (Milakov & Gimelshein 2018).
    """
    about, row = ints(plan), ints(layer)
    width, form, segments = about[at.HEAD_DIM], about[at.CACHE], segments_of(plan)
    head, segment = share // segments, share % segments
    group = about[at.NUM_HEADS] // about[at.NUM_KV_HEADS]
    is_short = PAIRS_BFLOATS and form == at.SHORT
    multiplied = at.BFLOAT if is_short else form
    stride = short_size(width) if is_short else width * size_of(form)
    count = min(at.SEGMENT, about[at.POSITION] + 1 - segment * at.SEGMENT)
    first = place_of(plan, head) + segment * at.SEGMENT
    keys, values = row[at.KEYS] + first * stride, row[at.VALUES] + first * stride
    scale_size = 1 if is_short else size_of(about[at.NUMBERS])
    key_scales, value_scales = row[at.KEY_SCALES] + first * scale_size, row[at.VALUE_SCALES] + first * scale_size
    if form == at.INT8 or is_short:
        bring(key_scales, count * scale_size // LINE + 1)
        bring(value_scales, count * scale_size // LINE + 1)
    projected, queries = about[at.PROJECTED], scratch
    scores = queries + group * width * 4
    scale = np.float32(1.0) / np.sqrt(np.float32(width))
    if is_short:
        scale *= np.float32(2.0**MIDDLE)
    for one in range(group):
        query, mine = projected + (head * group + one) * width * 4, queries + one * width * 4
        if row[at.QUERY_NORM]:
            normalise(query, scores, width, layer + 8 * at.QUERY_NORM, plan, False)
            query = scores
        turn(query, mine, plan, scale)
        if PAIRS_INTEGERS and form == at.INT8 and width % BLOCK == 0:
            pack_query(mine, packed + one * width * 4, width)
        else:
            pack(mine, packed + one * width * 4, width, multiplied, multiplied)
    if is_short:
        score_groups(keys, values, count, group, packed, scores, width)
    else:
        score(keys, values, count, group, queries, packed, scores, plan)
    if form == at.INT8 or is_short:
        times_scales(scores, key_scales, count, group, plan)
    partial = about[at.PARTIAL] + (head * group * segments + segment) * (width + 2) * 4
    further = segments * (width + 2) * 4
    weigh(scores, count, group, partial, further, plan)
    if form == at.INT8 or is_short:
        times_scales(scores, value_scales, count, group, plan)
    if PAIRS_BFLOATS and multiplied == at.BFLOAT:
        for one in range(group):
            halve(scores + one * 4 * at.SEGMENT, -(-count // BLOCK) * BLOCK)
    soon, ahead = values, share + about[at.THREADS]  # keys that this thread is likely to read next
    if ahead < about[at.NUM_KV_HEADS] * segments:
        soon = row[at.KEYS] + (place_of(plan, ahead // segments) + ahead % segments * at.SEGMENT) * stride
    add_values(values, count, group, scores, partial + 8, further, soon, plan)


@exact
def times_scales(numbers: int, scales: int, count: int, group: int, plan: int) -> None:
    """Scores times the scales of their keys, or odds times those of their values."""
    for one in range(group):
        here = floats(numbers + one * 4 * at.SEGMENT)
        if ints(plan)[at.CACHE] == at.SHORT:
            for key in range(count):
                here[key] *= factor(bytes_at(scales)[key])
        elif ints(plan)[at.NUMBERS] == at.BFLOAT:
            for key in range(count):
                here[key] *= widened(bfloats(scales)[key])
        else:
            for key in range(count):
                here[key] *= floats(scales)[key]


@exact
def score(keys: int, values: int, count: int, group: int, queries: int, packed: int, scores: int, plan: int) -> None:
    """Products of all queries of a group with keys; meanwhile the values are asked for."""
    about, step = ints(plan), 4 * at.SEGMENT
    width, form = about[at.HEAD_DIM], about[at.CACHE]
    stride = width * size_of(form)
    whole, lines = count // LANES * LANES if width % BLOCK == 0 else 0, LANES * stride // LINE
    for key in range(0, whole, LANES):
        here = keys + key * stride
        if PAIRS_INTEGERS and form == at.INT8:
            for one in range(0, group, KEY_QUERIES):
                many, mine, found = min(KEY_QUERIES, group - one), packed + one * width * 4, scores + one * step
                score_bytes(here, width, mine, width * 4, many, found + key * 4, step, values + key * stride)
            continue
        for one in range(group):
            begin, end = lines * one // group, lines * (one + 1) // group
            if begin < end:
                bring(values + key * stride + begin * LINE, end - begin)
            query, mine, found = queries + one * width * 4, packed + one * width * 4, scores + one * step + key * 4
            if form == at.FLOAT:
                dot_float_keys(here, query, query, width, found)
            elif form == at.INT8:
                dot_int8_keys(here, query, query, width, found)
            elif PAIRS_BFLOATS:
                dot_bfloat_keys(here, mine, mine + 2 * width, width, found)
            else:
                dot_bfloat_keys(here, query, query, width, found)
    for key in range(whole, count):
        for one in range(group):
            query, mine = queries + one * width * 4, packed + one * width * 4
            floats(scores + one * step)[key] = dot(keys + key * stride, query, mine, width, form, form)


@exact
def score_groups(keys: int, values: int, count: int, group: int, packed: int, scores: int, width: int) -> None:
    """As `score`, of short keys, and without their factors; what a group has beyond `count` is written, too."""
    step = 4 * at.SEGMENT
    for key in range(0, count, LANES):
        offset = key * short_size(width)
        for one in range(0, group, QUERIES):
            many, mine, found = min(QUERIES, group - one), packed + one * width * 4, scores + one * step + key * 4
            score_shorts(keys + offset, width, mine, width * 4, many, found, step, values + offset)


@exact
def weigh(scores: int, count: int, group: int, partial: int, further: int, plan: int) -> None:
    """Odds in place of scores, up to what they add up to, which is written with the largest score."""
    cap, padded = fraction(plan, at.SCORE_CAP), -(-count // BLOCK) * BLOCK
    for one in range(group):
        here = scores + one * 4 * at.SEGMENT
        mine = floats(here)
        if cap > 0:
            for key in range(count):
                mine[key] = cap * tanh(mine[key] / cap)
        for key in range(count, padded):
            mine[key] = LOWEST
        raise_scores(here, padded, partial + one * further)


@exact
def add_values(values: int, count: int, group: int, scores: int, sums: int, further: int, soon: int, plan: int) -> None:
    """Sums of values by the odds of each query; meanwhile what is at `soon` is asked for."""
    about, step = ints(plan), 4 * at.SEGMENT
    width, form = about[at.HEAD_DIM], about[at.CACHE]
    size, whole = size_of(form), width // BLOCK * BLOCK
    stride = width * size
    if PAIRS_BFLOATS and form == at.SHORT:
        add_shorts(values, count, group, scores, sums, further, soon, width)
        return
    if PAIRS_INTEGERS and form == at.INT8 and width % BLOCK == 0:
        add_bytes(values, count, group, scores, sums, further, soon, width)
        return
    for place in range(0, whole, BLOCK):
        here, next_ = values + place * size, soon + place * size
        for one in range(0, group, QUERIES):
            many, odds, out = min(QUERIES, group - one), scores + one * step, sums + one * further + place * 4
            if form == at.BFLOAT:
                sum_bfloat_values(here, stride, count, odds, step, out, further, many, next_)
            elif form == at.INT8:
                sum_int8_values(here, stride, count, odds, step, out, further, many, next_)
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
def add_bytes(values: int, count: int, group: int, scores: int, sums: int, further: int, soon: int, width: int) -> None:
    """As `add_values`, with odds that have their scales, which are packed."""
    step = 4 * at.SEGMENT
    for one in range(group):
        pack_odds(scores + one * step, -(-count // BLOCK))
    for place in range(0, width, BLOCK):
        for one in range(0, group, VALUE_QUERIES):
            many, odds, out = min(VALUE_QUERIES, group - one), scores + one * step, sums + one * further + place * 4
            sum_bytes(values + place, width, count, odds, step, out, further, many, soon + place)


@exact
def add_shorts(
    values: int, count: int, group: int, scores: int, sums: int, further: int, soon: int, width: int
) -> None:
    """As `add_values`, with odds that have the factors of their values."""
    step, stride = 4 * at.SEGMENT, 2 * short_size(width)
    for place in range(0, width, BLOCK):
        here = 2 * short_size(place)
        for one in range(0, group, QUERIES):
            many, odds, out = min(QUERIES, group - one), scores + one * step, sums + one * further + place * 4
            sum_shorts(values + here, stride, count, odds, step, out, further, many, soon + here)


@exact
def odd_of(odds: int, key: int, form: int) -> np.float32:
    """One of the odds: where pairs are multiplied, LANES upper halves before LANES lower ones."""
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
