"""The table that the compiled kernel of `core.flash` reads: which number stands in which column.

All are 64-bit integers; a fraction stands there as the bits of its float32. Of a tensor there are its address and how
many bytes it is from one row of the batch to the next, from one head, and from one place. An address of 0 means that
there is none.
"""

from diptych.core.share_plan import FIRST

(
    ROWS,  # of the batch
    KV_HEADS,
    HEADS,  # of queries
    QUERIES,
    KEYS,
    WIDTH,
    IS_CAUSAL,
    IS_BACKWARD,
    SCALE,
    THREADS,
    PIECES,  # into which the queries of a head of keys are divided
    PADDED,  # keys with those that fill their last tile
    SCRATCH,
    SCRATCH_BYTES,  # of each thread
    # In it, bytes before what a share works with. Matrices lie as `core.tiles` says, turned or two rows in turn:
    TURNED_KEYS,
    PAIRED_KEYS,
    TURNED_VALUES,
    PAIRED_VALUES,
    MINE,  # queries
    PAIRED_MINE,
    PULL,  # the gradient of what they found
    PAIRED_PULL,
    SCORES,  # of a tile
    WANTED,  # the gradients of its odds
    ODDS,  # in bfloat16; in the backward pass the gradients of scores, of a block
    PAIRED_ODDS,  # of a block
    PAIRED_SCORES,  # their gradients
    SUMS,  # of a tile
    KEY_SUMS,
    VALUE_SUMS,
) = range(FIRST, FIRST + 30)

TENSOR = (ADDRESS, NEXT_ROW, NEXT_HEAD, NEXT_PLACE) = range(4)
Q, K, V, MASK, LEVELS, OUT, TO_OUT, TO_Q, TO_K, TO_V = (FIRST + 30 + len(TENSOR) * place for place in range(10))
TABLE = TO_V + len(TENSOR)  # columns

DOWN, ACROSS = 8, 32  # sums of a tile of products
BLOCK = 64  # queries whose gradients are made together, so that those of keys are added to seldom
SPARE = 16  # words beside a row of a turned matrix: rows a power of two apart would be in each other's way in a cache


def padded(keys: int) -> int:
    return -(-keys // ACROSS) * ACROSS


def areas(keys: int, width: int, is_backward: bool) -> dict[int, int]:
    """The bytes of what a share works with."""
    keys = padded(keys)
    turned, paired, tile = width // 2 * (keys + SPARE) * 4, keys * width * 2, DOWN * keys * 4
    found = {TURNED_KEYS: turned, SCORES: tile, SUMS: DOWN * width * 4}
    if not is_backward:
        return found | {PAIRED_VALUES: paired, MINE: DOWN * width * 2, ODDS: DOWN * keys * 2}
    found |= {PAIRED_KEYS: paired, TURNED_VALUES: turned, WANTED: tile}
    found |= dict.fromkeys((MINE, PAIRED_MINE, PULL, PAIRED_PULL), BLOCK * width * 2)
    found |= dict.fromkeys((ODDS, PAIRED_ODDS, PAIRED_SCORES), BLOCK * keys * 2)
    return found | dict.fromkeys((KEY_SUMS, VALUE_SUMS), keys * width * 4)
