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
    pair_rows,
    place_of,
    products,
    seen_of,
    tiled,
    turn_rows,
    turned_pitch,
)
from diptych.core.lanes import LANES, floats, ints
from diptych.core.row_math import exact, fraction
from diptych.core.score_lanes import ROWS, raise_again, to_scores
from diptych.core.share_plan import LINE
from diptych.core.shares import next_share, scratch_of
from diptych.core.tiles import (
    DOWN,
    LOG2_E,
    add_to_tile,
    begin_tiles,
    copy_lines,
    end_tiles,
    narrow,
    set_tile,
    turn,
)

FAR_ABOVE = np.float32(1e38)  # any score: the level of rows after the last, whose odds become 0


@exact
def differentiate(plan: int, share: int, scratch: int) -> None:
    """The gradients of one head of keys, of its values, and of the queries that look at it."""
    about = ints(plan)
    row, kv_head = share // about[at.KV_HEADS], share % about[at.KV_HEADS]
    padded, width, queries, block = about[at.PADDED], about[at.WIDTH], about[at.QUERIES], about[at.BLOCK]
    turn_rows(plan, at.K, row, kv_head, scratch + about[at.TURNED_KEYS])
    turn_rows(plan, at.V, row, kv_head, scratch + about[at.TURNED_VALUES])
    pair_rows(plan, at.K, row, kv_head, 0, about[at.KEYS], scratch + about[at.PAIRED_KEYS], padded)
    shared = about[at.HEADS] // about[at.KV_HEADS]
    first_head, last_head = kv_head * shared, kv_head * shared + shared - 1
    for head in range(first_head, last_head + 1):
        for begin in range(0, queries, block):
            count = tiled(min(block, queries - begin), at.ACROSS)
            for tensor, rows, turned in ((at.Q, at.MINE, at.TURNED_MINE), (at.TO_OUT, at.PULL, at.TURNED_PULL)):
                copy_rows(plan, tensor, row, head, begin, scratch + about[rows], count)
                pair_rows(plan, tensor, row, head, begin, queries, scratch + about[at.PAIRED], count)
                turn_pairs(scratch + about[at.PAIRED], count, width, scratch + about[turned], block)
            for tile in range(0, count, DOWN):
                bring_rows(plan, share, begin + tile)
                differentiate_tile(plan, row, head, begin, tile, scratch)
            is_first, is_last = head == first_head and begin == 0, head == last_head and begin + block >= queries
            add_to_keys(plan, row, kv_head, begin, count, is_first, is_last, scratch)


@exact
def turn_pairs(paired: int, count: int, width: int, out: int, pitch: int) -> None:
    """`count` rows of `width` numbers, two in turn, as (width, count) numbers in rows of `pitch`."""
    for pair in range(0, count // 2, LANES):
        for place in range(0, width, LANES):
            here = paired + 4 * (pair * width + place)
            turn(here, 4 * width, LANES, out + 2 * pitch * place + 4 * pair, 2 * pitch)


@exact
def give_turned(plan: int, tensor: int, row: int, kv_head: int, begin: int, sums: int, rows: int) -> None:
    """The sums of at.ACROSS keys, which lie turned, to where their gradients are, by way of a tile of `rows`."""
    width, pitch, end = ints(plan)[at.WIDTH], turned_pitch(plan), min(begin + at.ACROSS, ints(plan)[at.KEYS])
    for first in range(begin, end, LANES):
        for place in range(0, width, LANES):
            turn(sums + pitch * place + 4 * (first - begin), pitch, LANES, rows + 4 * place, 4 * width)
        for key in range(first, min(first + LANES, end)):
            there = place_of(plan, tensor, row, kv_head, key)
            narrow(rows + 4 * width * (key - first), np.float32(1.0), there, width)


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
    of_rows, last = scratch + about[at.OF_ROWS], queries - 1
    levels, means = floats(of_rows + at.TOP), floats(of_rows + at.TOTAL)
    for one in range(DOWN):
        is_there = first + one <= last
        levels[one] = floats(place_of(plan, at.LEVELS, row, head, first + one))[0] if is_there else FAR_ABOVE
    for one in range(0, DOWN, ROWS):
        query = min(first + one, last)
        raise_again(
            odds + 4 * padded * one,
            4 * padded,
            seen_of(plan, query),
            about[at.IS_CAUSAL],
            end,
            mask_of(plan, row, query),
            about[at.MASK + at.NEXT_PLACE],
            last - query,
            scale * np.float32(LOG2_E),
            of_rows + at.TOP + 4 * one,
            wanted + 4 * padded * one,
            of_rows + at.TOTAL + 4 * one,
        )
        for its in range(one, one + ROWS, 2):
            pair = 2 * padded * (tile + its)
            to_scores(
                odds + 4 * padded * its,
                wanted + 4 * padded * its,
                padded,
                end,
                scale,
                means[its],
                means[its + 1],
                scratch + about[at.PAIRED_ODDS] + pair,
                scratch + about[at.PAIRED_SCORES] + pair,
                scratch + about[at.ODDS] + pair,
            )
    found = scratch + about[at.ODDS] + 2 * padded * tile
    products(found, 2 * padded, scratch + about[at.PAIRED_KEYS], 2 * wide, end // 2, sums, 4 * width, width)
    for one in range(min(DOWN, queries - first)):
        narrow(sums + 4 * width * one, np.float32(1.0), place_of(plan, at.TO_Q, row, head, first + one), width)


@exact
def add_to_keys(
    plan: int, row: int, kv_head: int, begin: int, count: int, is_first: bool, is_last: bool, scratch: int
) -> None:
    """What the `count` queries of a block give keys and values: to each key its gradients of scores times the queries,
    to each value its odds times the gradients of what was found. The last block's sums are the gradients; of a block
    that is the only one they need not be kept, and take turns in one place."""
    about = ints(plan)
    width, block, pitch, sums_pitch = about[at.WIDTH], about[at.BLOCK], 4 * about[at.PADDED], turned_pitch(plan)
    end, next_key = end_of(plan, begin + count - DOWN), 0 if is_first and is_last else 4
    for key in range(0, about[at.PADDED], at.ACROSS):
        first = max(0, key - begin) if about[at.IS_CAUSAL] else 0  # queries before it do not look at it
        for rows, odds, sums, tensor in (
            (at.TURNED_PULL, at.PAIRED_ODDS, at.VALUE_SUMS, at.TO_V),
            (at.TURNED_MINE, at.PAIRED_SCORES, at.KEY_SUMS, at.TO_K),
        ):
            left, right = scratch + about[rows] + 2 * first, scratch + about[odds] + first // 2 * pitch + 4 * key
            its, pairs = scratch + about[sums] + next_key * key, (count - first) // 2
            for place in range(0, width, DOWN):
                turned, there = left + 2 * block * place, its + sums_pitch * place
                if key < end and is_first:
                    set_tile(turned, 2 * block, right, pitch, pairs, there, sums_pitch)
                elif key < end:
                    add_to_tile(turned, 2 * block, right, pitch, pairs, there, sums_pitch)
                elif is_first:
                    for one in range(DOWN):
                        copy_lines(0, there + sums_pitch * one, at.ACROSS * 4 // LINE)
            if is_last:
                give_turned(plan, tensor, row, kv_head, key, its, scratch + about[at.SUMS])


@exact
def differentiate_heads(plan: int) -> int:
    """Take shares until there are none; every thread that is to help calls it once."""
    about, scratch = ints(plan), scratch_of(plan)
    count = about[at.ROWS] * about[at.KV_HEADS]
    begin_tiles()
    share = next_share(plan, count)
    while share >= 0:
        differentiate(plan, share, scratch)
        share = next_share(plan, count)
    end_tiles()
    return 0
