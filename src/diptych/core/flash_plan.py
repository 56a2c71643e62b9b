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
    BLOCK,  # queries whose gradients are made together, so that those of keys are added to seldom
    # Where, in what a thread has for itself, the parts of a share begin. Matrices lie as `core.tiles` says, turned or
    # two rows in turn:
    TURNED_KEYS,
    PAIRED_KEYS,
    TURNED_VALUES,
    PAIRED_VALUES,
    MINE,  # queries
    TURNED_MINE,
    PULL,  # the gradient of what they found
    TURNED_PULL,
    PAIRED,  # either of them
    SCORES,  # of a tile
    WANTED,  # the gradients of its odds
    ODDS,  # in bfloat16; in the backward pass the gradients of scores, of a block
    PAIRED_ODDS,  # of a block
    PAIRED_SCORES,  # their gradients
    SUMS,  # of a tile
    OF_ROWS,  # numbers of each of its rows, in three columns
    KEY_SUMS,  # turned
    VALUE_SUMS,
) = range(FIRST, FIRST + 31)

TENSOR = (ADDRESS, NEXT_ROW, NEXT_HEAD, NEXT_PLACE) = range(4)
Q, K, V, MASK, LEVELS, OUT, TO_OUT, TO_Q, TO_K, TO_V = (FIRST + 31 + len(TENSOR) * place for place in range(10))
TABLE = TO_V + len(TENSOR)  # columns

MOST_DOWN, ACROSS = 32, 32  # sums of a tile of products
# The columns of OF_ROWS: the largest score so far, or in the backward pass the level; the sum of the odds so far, or of
# the odds times what is wanted of them; the largest score of a part.
TOP, TOTAL, FOUND = (4 * MOST_DOWN * column for column in range(3))
SPAN = 1024  # keys whose scores are there at once
KNOWN = 2**19  # bytes of what is known of a block of queries and their keys
SPARE = 16  # words beside a row of a turned matrix: rows a power of two apart would be in each other's way in a cache


def padded(keys: int) -> int:
    return -(-keys // ACROSS) * ACROSS


def block(queries: int, keys: int) -> int:
    """As many queries as leave what is known of a block in the second cache, and not more than there are."""
    return max(64, min(KNOWN // (6 * padded(keys)) // 64 * 64, -(-queries // 64) * 64))


def areas(queries: int, keys: int, width: int, is_backward: bool) -> dict[int, int]:
    """The bytes of what a share works with."""
    many, keys = block(queries, keys), padded(keys)
    turned, paired = width // 2 * (keys + SPARE) * 4, keys * width * 2
    found = {TURNED_KEYS: turned, SUMS: MOST_DOWN * width * 4, OF_ROWS: 3 * 4 * MOST_DOWN}
    if not is_backward:
        some = MOST_DOWN * min(keys, SPAN)
        found |= {PAIRED_VALUES: paired, MINE: MOST_DOWN * width * 2}
        return found | {SCORES: some * 4, ODDS: some * 2}
    found |= {PAIRED_KEYS: paired, TURNED_VALUES: turned}
    found |= dict.fromkeys((SCORES, WANTED), MOST_DOWN * keys * 4)
    found |= dict.fromkeys((MINE, TURNED_MINE, PULL, TURNED_PULL, PAIRED), many * width * 2)
    found |= dict.fromkeys((ODDS, PAIRED_ODDS, PAIRED_SCORES), many * keys * 2)
    return found | dict.fromkeys((KEY_SUMS, VALUE_SUMS), (keys + SPARE) * width * 4)
