"""The tables that a compiled kernel for a row of each text reads: which number stands in which column.

All are 64-bit integers; a fraction stands there as the bits of its float32. An address of 0 means that there is none.
"""

# A matrix: its numbers, row by row, the scales of its rows and its bias, how many rows it has, and the form of numbers.
MATRIX = (WEIGHT, SCALE, BIAS, COUNT, FORM) = range(5)
BFLOAT, FLOAT, INT8, INT4, SHORT = range(5)  # forms of numbers; SHORT is that of `core.short_bfloats`
BLOCK = 64  # numbers of a row that are multiplied at a time
SHORT_GROUP = 16  # short rows that lie among each other

# A norm: its weight and bias.
NORM = (GAIN, SHIFT) = range(2)

# A layer. A matrix and a norm take as many columns as they have.
_matrices = [len(MATRIX) * place for place in range(7)]
QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = _matrices
_norms = [len(MATRIX) * 7 + len(NORM) * place for place in range(4)]
ATTENTION_NORM, FEED_FORWARD_NORM, QUERY_NORM, KEY_NORM = _norms
_kept = _norms[-1] + len(NORM)
KEYS, KEY_SCALES, VALUES, VALUE_SCALES = range(_kept, _kept + 4)  # what the cache keeps of all texts
LAYER = _kept + 4  # columns of a layer

# A decoder and a row of it, which is the next token of a text: sizes, switches, matrices, and where what is worked on
# lies. Rows that go through the decoder together have tables one after the other, which differ in their row's columns.
(
    ROWS,  # the count of them
    WIDTH,
    NUM_LAYERS,
    NUM_HEADS,
    NUM_KV_HEADS,
    HEAD_DIM,
    HIDDEN,
    VOCABULARY,
    NUMBERS,  # that of norms, biases and scales
    CACHE,  # that of keys and values
    IS_LAYER_NORM,
    EPS,
    ACTIVATION,
    SCORE_CAP,
    LOGIT_CAP,
    THREADS,
    LAYER_TABLE,
    UNIT,  # rows of a matrix that a share begins at a multiple of
    FINAL_NORM,
    _,
    EMBEDDING,
    _,
    _,
    _,
    _,
    HEAD,
    _,
    _,
    _,
    _,
    POSITIONS,  # learned ones
    ROOM,  # tokens from one head to the next in what the cache keeps of a layer
    SCRATCH,
    SCRATCH_BYTES,  # of each thread
    WIDE,  # bytes in it before what is widened beside a gate
    PACKED,  # and before the packed numbers
    # Of a row; what several rows have lies one after the other:
    RESIDUAL,
    PROJECTED,  # queries, keys and values
    WIDENED,
    PARTIAL,  # what each segment of keys gives each head
    LOGITS,
    TOKEN,
    POSITION,
    COS,
    SIN,
    KEPT,  # tokens before those of its text in what the cache keeps of a layer
) = range(46)
DECODER = 46

TILE_DOWN, TILE_ACROSS = 3, 4  # rows of weights and of texts that are multiplied at once: the sums fill the registers
ROWS_PACKED, TEXTS_PACKED = 64, 3  # the same in 4 bits, where torch lays as many rows side by side
GROUP = 32  # numbers of a row in 4 bits that share a scale and an offset
# A thread's scratch, in bytes: the ticket of the phase that it is made for, sums of a tile, what a phase multiplies.
MADE, FOUND, INPUT = 0, 64, 64 + 4 * ROWS_PACKED * TEXTS_PACKED

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu-tanh": 2, "relu": 3, "relu2": 4}
SEGMENT = 512  # keys of a share of attention

# What threads share. Each number that many write is on a line of memory of its own.
TICKET, DONE, PHASE, PHASE_LAYER, SHARES, PLAN, STOPPED = 0, 8, 16, 17, 18, 19, 24
CONTROL = 32
PHASES = (ATTEND_INPUT, KEEP, ATTEND, ATTEND_OUTPUT, WIDEN, NARROW, PREDICT) = range(7)
