"""Attention of one head after the other in one call of compiled code (`core.flash`).

A share is what looks at one head of keys in one row of the batch, or a piece of that. Its keys and values are laid out
for the products once (`core.tiles`); then its queries come in tiles of DOWN rows, whose scores stay in the first
cache, and what none of them may look at is left out. Numba compiles it once a machine (`core.machine_code`).
"""

import math

import numpy as np

from diptych.core import flash_plan as at
from diptych.core.attention_lanes import bring
from diptych.core.lanes import LANES, floats, int32s, ints
from diptych.core.row_math import exact, fraction
from diptych.core.score_lanes import ROWS, largest_scores, raise_rows
from diptych.core.share_plan import LINE
from diptych.core.shares import next_share, scratch_of
from diptych.core.tiles import (
    DOWN,
    LOG2_E,
    add_to_tile,
    begin_tiles,
    copy_lines,
    end_tiles,
    interleave,
    narrow,
    set_tile,
    stretch,
    turn,
)

NOTHING = np.float32(-1e38)  # the largest score of a row that may look at nothing, for which all odds become 0
SMALLEST = np.float32(1e-30)  # the sum of the odds of such a row, to divide by


@exact
def place_of(plan: int, tensor: int, row: int, head: int, place: int) -> int:
    about = ints(plan)
    first = about[tensor + at.ADDRESS] + row * about[tensor + at.NEXT_ROW] + head * about[tensor + at.NEXT_HEAD]
    return first + place * about[tensor + at.NEXT_PLACE]


@exact
def turn_rows(plan: int, tensor: int, row: int, head: int, out: int) -> None:
    """Pairs of numbers of each key or value as a column: (WIDTH / 2, PADDED) words, zeros after the last."""
    about = ints(plan)
    pitch, rows, stride = turned_pitch(plan), place_of(plan, tensor, row, head, 0), about[tensor + at.NEXT_PLACE]
    for first in range(0, about[at.PADDED], LANES):
        for pair in range(0, about[at.WIDTH] // 2, LANES):
            here, there = rows + first * stride + 4 * pair, out + pair * pitch + 4 * first
            turn(here, stride, about[at.KEYS] - first, there, pitch)


@exact
def turned_pitch(plan: int) -> int:
    return 4 * (ints(plan)[at.PADDED] + at.SPARE)


@exact
def copy_rows(plan: int, tensor: int, row: int, head: int, first: int, out: int, count: int) -> None:
    """`count` places from `first` on one after the other, zeros after the last query."""
    about = ints(plan)
    here, stride = place_of(plan, tensor, row, head, first), 2 * about[at.WIDTH]
    for one in range(count):
        is_there = first + one < about[at.QUERIES]
        copy_lines(here if is_there else 0, out + one * stride, stride // LINE)
        here += about[tensor + at.NEXT_PLACE]


@exact
def pair_rows(plan: int, tensor: int, row: int, head: int, first: int, end: int, out: int, count: int) -> None:
    """Two places in turn, `count` of them from `first` on: (count / 2, 2 WIDTH) numbers, zeros from `end` on."""
    width = ints(plan)[at.WIDTH]
    for one in range(0, count, 2):
        here, there = place_of(plan, tensor, row, head, first + one), out + one * 2 * width
        if first + one + 1 < end:
            interleave(here, here + ints(plan)[tensor + at.NEXT_PLACE], there, 2 * LINE, width)
            continue
        words = int32s(there)
        for place in range(width):  # of the last of an odd count, and of none
            halves = int32s(here)[place // 2] >> 16 * (place % 2) & 0xFFFF if first + one < end else 0
            words[place] = np.int32(halves)


@exact
def bring_rows(plan: int, share: int, first: int) -> None:
    """Ask for some places of what a share to come needs: the hardware does not see that far."""
    about = ints(plan)
    heads = (share + about[at.THREADS]) // about[at.PIECES]
    row, kv_head = heads // about[at.KV_HEADS], heads % about[at.KV_HEADS]
    if row >= about[at.ROWS]:
        return
    head = kv_head * about[at.HEADS] // about[at.KV_HEADS]
    bring_some(plan, at.K, row, kv_head, first, about[at.KEYS])
    bring_some(plan, at.V, row, kv_head, first, about[at.KEYS])
    bring_some(plan, at.Q, row, head, first, about[at.QUERIES])
    if about[at.IS_BACKWARD]:
        bring_some(plan, at.TO_OUT, row, head, first, about[at.QUERIES])


@exact
def bring_some(plan: int, tensor: int, row: int, head: int, first: int, end: int) -> None:
    here, lines = place_of(plan, tensor, row, head, first), 2 * ints(plan)[at.WIDTH] // LINE
    for _ in range(first, min(first + DOWN, end)):
        bring(here, lines)
        here += ints(plan)[tensor + at.NEXT_PLACE]


@exact
def products(
    left: int, next_row: int, right: int, next_right: int, pairs: int, out: int, next_out: int, end: int
) -> None:
    """DOWN rows of `end` sums; pairs of the left factor lie one after the other."""
    for place in range(0, end, at.ACROSS):
        set_tile(left, next_row, right + 4 * place, next_right, pairs, out + 4 * place, next_out)


@exact
def seen_of(plan: int, query: int) -> int:
    """How many keys a query may look at, as far as no mask says."""
    about = ints(plan)
    return min(about[at.KEYS], query + 1) if about[at.IS_CAUSAL] else about[at.KEYS]


@exact
def end_of(plan: int, first: int) -> int:
    """The same of the tile of queries that begins with `first`, up to a multiple of at.ACROSS."""
    return tiled(seen_of(plan, first + DOWN - 1), at.ACROSS)


@exact
def tiled(count: int, size: int) -> int:
    return (count + size - 1) // size * size


@exact
def mask_of(plan: int, row: int, query: int) -> int:
    return place_of(plan, at.MASK, row, 0, query) if ints(plan)[at.MASK] else 0


@exact
def span_of(plan: int, row: int, first: int, count: int) -> tuple[int, int]:
    """The first and the last key that any of `count` queries may look at, down and up to a multiple of at.ACROSS."""
    end = end_of(plan, first)
    if not ints(plan)[at.MASK]:
        return 0, end
    begin, last = end, 0
    for query in range(first, first + count):
        words, word = ints(mask_of(plan, row, query)), end // 8  # a word is eight keys
        while 8 * word > last and words[word - 1] == 0:
            word -= 1
        last, word = max(last, 8 * word), 0
        while 8 * word < begin and words[word] == 0:
            word += 1
        begin = min(begin, 8 * word)
    if last == 0:  # they look at nothing, which one step finds
        return 0, at.ACROSS
    return begin // at.ACROSS * at.ACROSS, tiled(last, at.ACROSS)


@exact
def attend(plan: int, share: int, scratch: int) -> None:
    """What a piece of the queries of one head of keys finds, and their levels."""
    about = ints(plan)
    heads, piece = share // about[at.PIECES], share % about[at.PIECES]
    row, kv_head = heads // about[at.KV_HEADS], heads % about[at.KV_HEADS]
    turn_rows(plan, at.K, row, kv_head, scratch + about[at.TURNED_KEYS])
    values, keys = scratch + about[at.PAIRED_VALUES], about[at.KEYS]
    pair_rows(plan, at.V, row, kv_head, 0, keys, values, about[at.PADDED])
    queries, shared = about[at.QUERIES], about[at.HEADS] // about[at.KV_HEADS]
    size = tiled((queries + about[at.PIECES] - 1) // about[at.PIECES], DOWN)
    for head in range(kv_head * shared, kv_head * shared + shared):
        for first in range(piece * size, min(piece * size + size, queries), DOWN):
            bring_rows(plan, share, first)
            attend_tile(plan, row, head, first, scratch)


@exact
def attend_tile(plan: int, row: int, head: int, first: int, scratch: int) -> None:
    """What some queries find: at.SPAN keys at a time, each counted over the largest score so far (Milakov & Gimelshein
    2018, alg. 3)."""
    about = ints(plan)
    width, count = about[at.WIDTH], min(DOWN, about[at.QUERIES] - first)
    of_rows, sums = scratch + about[at.OF_ROWS], scratch + about[at.SUMS]
    tops, totals = floats(of_rows + at.TOP), floats(of_rows + at.TOTAL)
    copy_rows(plan, at.Q, row, head, first, scratch + about[at.MINE], DOWN)
    for one in range(DOWN):
        tops[one], totals[one] = NOTHING, 0
    for place in range(DOWN * width):
        floats(sums)[place] = 0
    begin, end = span_of(plan, row, first, count)
    is_first = True
    while begin < end:
        following = min(end, tiled(begin + 1, at.SPAN))  # parts end at the same places, wherever they begin
        attend_part(plan, row, first, count, begin, following, is_first, scratch)
        begin, is_first = following, False
    for one in range(count):
        total = max(totals[one], SMALLEST)
        floats(place_of(plan, at.LEVELS, row, head, first + one))[0] = tops[one] + np.float32(math.log2(total))
        share = np.float32(1.0) / total
        narrow(sums + 4 * width * one, share, place_of(plan, at.OUT, row, head, first + one), width)


@exact
def attend_part(
    plan: int, row: int, first: int, count: int, begin: int, end: int, is_first: bool, scratch: int
) -> None:
    """The sums of the values of some keys times their odds, and those of the odds, added to what was found before."""
    about = ints(plan)
    width, pitch, many = about[at.WIDTH], min(about[at.PADDED], at.SPAN), end - begin
    of_rows, sums = scratch + about[at.OF_ROWS], scratch + about[at.SUMS]
    tops, totals, found = floats(of_rows + at.TOP), floats(of_rows + at.TOTAL), floats(of_rows + at.FOUND)
    power = fraction(plan, at.SCALE) * np.float32(LOG2_E)
    scores, odds = scratch + about[at.SCORES], scratch + about[at.ODDS]
    keys, values = scratch + about[at.TURNED_KEYS] + 4 * begin, scratch + about[at.PAIRED_VALUES] + 2 * width * begin
    products(scratch + about[at.MINE], 2 * width, keys, turned_pitch(plan), width // 2, scores, 4 * pitch, many)
    for one in range(0, count, ROWS):
        here, mask, seen = scores + 4 * pitch * one, mask_of(plan, row, first + one), seen_of(plan, first + one)
        largest_scores(
            here,
            4 * pitch,
            seen - begin,
            about[at.IS_CAUSAL],
            many,
            mask + begin if mask else 0,
            about[at.MASK + at.NEXT_PLACE],
            count - 1 - one,
            of_rows + at.FOUND + 4 * one,
        )
        for its in range(one, one + ROWS):
            largest = max(found[its] * power, tops[its])
            if not is_first and largest > tops[its]:
                faded = np.float32(math.exp2(tops[its] - largest))
                totals[its] *= faded
                stretch(sums + 4 * width * its, faded, width)
            tops[its] = largest
        raise_rows(
            here,
            4 * pitch,
            power,
            of_rows + at.TOP + 4 * one,
            many,
            odds + 2 * pitch * one,
            2 * pitch,
            of_rows + at.TOTAL + 4 * one,
        )
    for place in range(0, width, at.ACROSS):
        left, right, out = odds, values + 4 * place, sums + 4 * place
        add_to_tile(left, 2 * pitch, right, 4 * width, many // 2, out, 4 * width)


@exact
def attend_heads(plan: int) -> int:
    """Take shares until there are none; every thread that is to help calls it once."""
    about, scratch = ints(plan), scratch_of(plan)
    count = about[at.ROWS] * about[at.KV_HEADS] * about[at.PIECES]
    begin_tiles()
    share = next_share(plan, count)
    while share >= 0:
        attend(plan, share, scratch)
        share = next_share(plan, count)
    end_tiles()
    return 0
