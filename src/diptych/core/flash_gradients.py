"""The gradients of attention, one head of keys after the other, in one call of compiled code (`core.flash`).

A share is what looks at one head of keys in one row of the batch. Its queries come in blocks; of each tile of one the
odds are computed again from its levels. Causal keys that no query of a tile may look at are left out, masked ones not.
Numba compiles it once a machine (`core.machine_code`).
"""

import numpy as np

from diptych.core import flash_plan as at
from diptych.core.flash_kernel import (
    bring_rows,
    copy_rows,
    end_of,
    mask_of,
    next_share,
    pair_rows,
    place_of,
    products,
    scratch_of,
    seen_of,
    tiled,
    turn_rows,
    turned_pitch,
)
from diptych.core.lanes import floats, ints
from diptych.core.row_math import exact, fraction
from diptych.core.tiles import LOG2_E, add_to_tile, narrow, raise_again, to_scores

FAR_ABOVE = np.float32(1e38)  # any score: the level of rows after the last, whose odds become 0


@exact
def differentiate(plan: int, share: int, scratch: int) -> None:
    """The gradients of one head of keys, of its values, and of the queries that look at it."""
    about = ints(plan)
    row, kv_head = share // about[at.KV_HEADS], share % about[at.KV_HEADS]
    keys, padded, width, queries = about[at.KEYS], about[at.PADDED], about[at.WIDTH], about[at.QUERIES]
    turn_rows(plan, at.K, row, kv_head, scratch + about[at.TURNED_KEYS])
    turn_rows(plan, at.V, row, kv_head, scratch + about[at.TURNED_VALUES])
    pair_rows(plan, at.K, row, kv_head, 0, keys, scratch + about[at.PAIRED_KEYS], padded)
    key_sums, value_sums = scratch + about[at.KEY_SUMS], scratch + about[at.VALUE_SUMS]
    for place in range(padded * width):
        floats(key_sums)[place] = 0
        floats(value_sums)[place] = 0
    shared, whole = about[at.HEADS] // about[at.KV_HEADS], np.float32(1.0)
    for head in range(kv_head * shared, kv_head * shared + shared):
        for begin in range(0, queries, at.BLOCK):
            count = tiled(min(at.BLOCK, queries - begin), at.DOWN)
            for tensor, rows, paired in ((at.Q, at.MINE, at.PAIRED_MINE), (at.TO_OUT, at.PULL, at.PAIRED_PULL)):
                copy_rows(plan, tensor, row, head, begin, scratch + about[rows], count)
                pair_rows(plan, tensor, row, head, begin, queries, scratch + about[paired], count)
            for tile in range(0, count, at.DOWN):
                bring_rows(plan, share, begin + tile)
                differentiate_tile(plan, row, head, begin, tile, scratch)
            add_to_keys(plan, begin, count, scratch)
    for key in range(keys):
        narrow(key_sums + 4 * width * key, whole, place_of(plan, at.TO_K, row, kv_head, key), width)
        narrow(value_sums + 4 * width * key, whole, place_of(plan, at.TO_V, row, kv_head, key), width)


@exact
def differentiate_tile(plan: int, row: int, head: int, begin: int, tile: int, scratch: int) -> None:
    """The odds and the gradients of the scores of a tile of a block, and what follows for its queries."""
    about = ints(plan)
    width, padded, queries, scale = about[at.WIDTH], about[at.PADDED], about[at.QUERIES], fraction(plan, at.SCALE)
    first, end, pitch, wide = begin + tile, end_of(plan, begin + tile), turned_pitch(plan), 2 * width
    odds, wanted, sums = scratch + about[at.SCORES], scratch + about[at.WANTED], scratch + about[at.SUMS]
    mine, pull = scratch + about[at.MINE] + tile * wide, scratch + about[at.PULL] + tile * wide
    products(mine, wide, scratch + about[at.TURNED_KEYS], pitch, width // 2, odds, 4 * padded, end)
    products(pull, wide, scratch + about[at.TURNED_VALUES], pitch, width // 2, wanted, 4 * padded, end)
    before, found = np.float32(0.0), scratch + about[at.ODDS] + 2 * padded * tile
    for one in range(at.DOWN):
        query, level, mask, row_of = first + one, FAR_ABOVE, 0, 4 * padded * one
        if query < queries:
            level, mask = floats(place_of(plan, at.LEVELS, row, head, query))[0], mask_of(plan, row, query)
        seen = seen_of(plan, query)
        mean = raise_again(odds + row_of, seen, end, scale * np.float32(LOG2_E), mask, level, wanted + row_of)
        if one % 2:
            pair = 2 * padded * (tile + one - 1)
            to_scores(
                odds + row_of - 4 * padded,
                wanted + row_of - 4 * padded,
                padded,
                end,
                scale,
                before,
                mean,
                scratch + about[at.PAIRED_ODDS] + pair,
                scratch + about[at.PAIRED_SCORES] + pair,
                scratch + about[at.ODDS] + pair,
            )
        before = mean
    products(found, 2 * padded, scratch + about[at.PAIRED_KEYS], 2 * wide, end // 2, sums, 4 * width, width)
    for one in range(min(at.DOWN, queries - first)):
        narrow(sums + 4 * width * one, np.float32(1.0), place_of(plan, at.TO_Q, row, head, first + one), width)


@exact
def add_to_keys(plan: int, begin: int, count: int, scratch: int) -> None:
    """What the `count` queries of a block give keys and values: to each key its gradients of scores times the queries,
    to each value its odds times the gradients of what was found."""
    about = ints(plan)
    width, pitch = about[at.WIDTH], 4 * about[at.PADDED]
    for key in range(0, end_of(plan, begin + count - at.DOWN), at.DOWN):
        first = max(0, key - begin) if about[at.IS_CAUSAL] else 0  # queries before it do not look at it
        if first >= count:
            break
        left, right, out = first // 2 * pitch + 4 * key, 2 * width * first, 4 * width * key
        for place in range(0, 4 * width, 4 * at.ACROSS):
            for odds, rows, sums in (
                (at.PAIRED_ODDS, at.PAIRED_PULL, at.VALUE_SUMS),
                (at.PAIRED_SCORES, at.PAIRED_MINE, at.KEY_SUMS),
            ):
                add_to_tile(
                    scratch + about[odds] + left,
                    4,
                    pitch,
                    scratch + about[rows] + right + place,
                    4 * width,
                    (count - first) // 2,
                    scratch + about[sums] + out + place,
                    4 * width,
                )


@exact
def differentiate_heads(plan: int) -> int:
    """Take shares until there are none; every thread that is to help calls it once."""
    about, scratch = ints(plan), scratch_of(plan)
    count = about[at.ROWS] * about[at.KV_HEADS]
    share = next_share(plan, count)
    while share >= 0:
        differentiate(plan, share, scratch)
        share = next_share(plan, count)
    return 0
