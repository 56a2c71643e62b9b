"""The mathematics of a few rows: products with the rows of a matrix, norms, turns, activations.

Everything is float32, whatever form the weights have, but for the other factor of two products: beside weights in
bfloat16 it is two bfloat16, and beside 8 bits 16 (of a part of the row), where the processor multiplies pairs of them.
An address is an int, and stands for the numbers that lie there (`core.lanes`); tables are those of `core.row_plan`.
"""

import math

import numpy as np
from numba import njit

from diptych.core import row_plan as at
from diptych.core.lanes import (
    BLOCK,
    LINE,
    PAIRS_BFLOATS,
    PAIRS_INTEGERS,
    bfloats,
    bits_of_float,
    dot_bfloat,
    dot_bfloat_pairs,
    dot_float,
    dot_int8,
    dot_int8_pairs,
    float_of_bits,
    floats,
    int8s,
    int16s,
    ints,
    tile_bfloats,
    tile_int8s,
)

BAND = 4 * at.TILE_DOWN  # rows of weights that stay in the cache of a core while all other rows are multiplied by them

exact = njit(error_model="numpy")
quick = njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})


@exact
def raised(x: np.float32) -> np.float32:
    """exp(x), to float32's precision: 2^n from the bits of n, and a series for what is left (Cephes, expf)."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1.0)
    return y * float_of_bits(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@exact
def tanh(x: np.float32) -> np.float32:
    return np.float32(1.0) - np.float32(2.0) / (raised(np.float32(2.0) * x) + np.float32(1.0))


@exact
def widened(bits: int) -> np.float32:
    """The float32 of a bfloat16."""
    return float_of_bits(np.uint32(bits) << np.uint32(16))


@exact
def number(address: int, place: int, form: int) -> np.float32:
    if form == at.BFLOAT:
        return widened(bfloats(address)[place])
    if form == at.INT8:
        return np.float32(int8s(address)[place])
    return floats(address)[place]


@exact
def fraction(table: int, column: int) -> np.float32:
    return float_of_bits(np.uint32(ints(table)[column]))


@exact
def bfloat(x: np.float32) -> np.uint16:
    """The nearest bfloat16, the even one of two that are as near."""
    bits = bits_of_float(x)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@exact
def takes_pairs(weights: int, numbers: int) -> bool:
    """Whether pairs of weights are multiplied in one instruction."""
    if weights == at.BFLOAT:
        return PAIRS_BFLOATS
    return PAIRS_INTEGERS and weights == at.INT8 and numbers == at.BFLOAT


@quick
def pack(x: int, packed: int, count: int, weights: int, numbers: int) -> None:
    """Numbers as the other factor of the products that take pairs, where those are; their last `count` % BLOCK are
    taken as they are."""
    here, whole = floats(x), count // BLOCK * BLOCK
    if not takes_pairs(weights, numbers):
        return
    if weights == at.BFLOAT:
        high, low = bfloats(packed), bfloats(packed + 2 * whole)
        for place in range(whole):
            high[place] = bfloat(here[place])
            low[place] = bfloat(here[place] - widened(high[place]))
    else:
        integers, worth = int16s(packed), floats(packed + 2 * whole)
        for block in range(whole // BLOCK):
            first = block * BLOCK
            largest = np.float32(1e-30)
            for place in range(first, first + BLOCK):
                largest = max(largest, abs(here[place]))
            worth[block] = largest / np.float32(32767.0)
            inverse = np.float32(32767.0) / largest
            for place in range(first, first + BLOCK):
                integers[place] = np.int16(np.rint(here[place] * inverse))


@quick
def dot(weights: int, x: int, packed: int, count: int, form: int, numbers: int) -> np.float32:
    """The product of a row of `count` weights with as many float32, which are packed, too."""
    whole = count // BLOCK * BLOCK
    total, other = np.float32(0.0), floats(x)
    if form == at.BFLOAT:
        if whole:
            if PAIRS_BFLOATS:
                total = dot_bfloat_pairs(weights, packed, packed + 2 * whole, whole)
            else:
                total = dot_bfloat(weights, x, whole)
        for place in range(whole, count):
            total += widened(bfloats(weights)[place]) * other[place]
    elif form == at.FLOAT:
        if whole:
            total = dot_float(weights, x, whole)
        for place in range(whole, count):
            total += floats(weights)[place] * other[place]
    else:
        if whole:
            if PAIRS_INTEGERS and numbers == at.BFLOAT:
                total = dot_int8_pairs(weights, packed, packed + 2 * whole, whole)
            else:
                total = dot_int8(weights, x, whole)
        for place in range(whole, count):
            total += np.float32(int8s(weights)[place]) * other[place]
    return total


@exact
def size_of(form: int) -> int:
    """Bytes of a number."""
    return 2 if form == at.BFLOAT else 4 if form == at.FLOAT else 1


@exact
def packed_stride(width: int) -> int:
    """Bytes from one packed row to the next. A line more than they need: rows that lie a power of two apart would be
    in each other's way in a cache."""
    return 4 * width + LINE


@exact
def give(y: int, place: int, found: np.float32, matrix: int, numbers: int, adds: bool) -> None:
    """A row's product to its place: times the row's scale, and the bias."""
    out, (_, scale, bias) = floats(y), matrix_at(matrix)
    if scale:
        found *= number(scale, place, numbers)
    if bias:
        found += number(bias, place, numbers)
    out[place] = out[place] + found if adds else found


@exact
def multiply(
    matrix: int,
    first: int,
    last: int,
    x: int,
    packed: int,
    width: int,
    y: int,
    height: int,
    found: int,
    plan: int,
    adds: bool,
) -> None:
    """y[n] = W[n] x + b[n] for rows of a matrix, and for each x; added to what is there, if `adds`.

    Args:
        x, packed: rows of `width` numbers, and the same packed.
        y: rows of `height` numbers.
        found: LINE bytes to work with.
    """
    about, (weights, _, _) = ints(plan), matrix_at(matrix)
    rows, form, numbers = about[at.ROWS], ints(matrix)[at.FORM], about[at.NUMBERS]
    size, stride = size_of(form), packed_stride(width)
    if rows > 1 and first < last and width % BLOCK == 0 and takes_pairs(form, numbers):
        multiply_tiles(matrix, first, last, packed, width, y, height, found, plan, adds)
        first = last - (last - first) % at.TILE_DOWN
    for row in range(first, last):
        for other in range(rows):
            mine = x + other * width * 4
            product = dot(weights + row * width * size, mine, packed + other * stride, width, form, numbers)
            give(y + other * height * 4, row, product, matrix, numbers, adds)


@exact
def multiply_tiles(
    matrix: int, first: int, last: int, packed: int, width: int, y: int, height: int, found: int, plan: int, adds: bool
) -> None:
    """As `multiply`, for rows of the matrix in threes (TILE_DOWN), each read from memory once; one or two are left."""
    about, sums, (weights, _, _) = ints(plan), floats(found), matrix_at(matrix)
    rows, form, numbers = about[at.ROWS], ints(matrix)[at.FORM], about[at.NUMBERS]
    line, stride = width * size_of(form), packed_stride(width)
    for band in range(first, last, BAND):
        for other in range(0, rows, at.TILE_ACROSS):
            mine = packed + other * stride
            for row in range(band, min(last, band + BAND) - at.TILE_DOWN + 1, at.TILE_DOWN):
                here = weights + row * line
                if PAIRS_BFLOATS and form == at.BFLOAT:
                    tile_bfloats(here, line, mine, stride, 2 * width, width, found, here + BAND * line)
                elif PAIRS_INTEGERS and form == at.INT8:
                    tile_int8s(here, line, mine, stride, 2 * width, width, found, here + BAND * line)
                for down in range(at.TILE_DOWN):
                    for across in range(min(at.TILE_ACROSS, rows - other)):
                        out = y + (other + across) * height * 4
                        give(out, row + down, sums[down * at.TILE_ACROSS + across], matrix, numbers, adds)


@exact
def matrix_at(address: int) -> tuple[int, int, int]:
    about = ints(address)
    return about[at.WEIGHT], about[at.SCALE], about[at.BIAS]


@quick
def normalise(x: int, y: int, width: int, norm: int, plan: int, is_layer: bool) -> None:
    """Layer norm, or RMS norm."""
    about, here, out = ints(plan), floats(x), floats(y)
    gain, shift, form, eps = ints(norm)[at.GAIN], ints(norm)[at.SHIFT], about[at.NUMBERS], fraction(plan, at.EPS)
    mean = np.float32(0.0)
    if is_layer:
        for place in range(width):
            mean += here[place]
        mean /= np.float32(width)
    squares = np.float32(0.0)
    for place in range(width):
        squares += (here[place] - mean) * (here[place] - mean)
    inverse = np.float32(1.0) / np.sqrt(squares / np.float32(width) + eps)
    if form == at.BFLOAT:
        weights = bfloats(gain)
        for place in range(width):
            weight = widened(weights[place])
            out[place] = (here[place] - mean) * inverse * weight
    else:
        for place in range(width):
            out[place] = (here[place] - mean) * inverse * floats(gain)[place]
    if shift:
        for place in range(width):
            out[place] += number(shift, place, form)


@exact
def turn(x: int, y: int, plan: int, scale: np.float32) -> None:
    """A head turned by its position, times `scale`: component i is paired with i + D/2."""
    about, here, out = ints(plan), floats(x), floats(y)
    width = about[at.HEAD_DIM]
    if not about[at.COS]:
        for place in range(width):
            out[place] = here[place] * scale
        return
    cos, sin, half = floats(about[at.COS]), floats(about[at.SIN]), width // 2
    for place in range(half):
        low, high = here[place], here[place + half]
        out[place] = (low * cos[place] + high * sin[place]) * scale
        out[place + half] = (high * cos[place + half] + low * sin[place + half]) * scale


@exact
def activate(x: int, count: int, kind: int) -> None:
    values = floats(x)
    if kind == 0:
        for place in range(count):
            values[place] = values[place] / (np.float32(1.0) + raised(-values[place]))
    elif kind == 1:
        for place in range(count):
            half = np.float32(0.5) * values[place]
            values[place] = half * (np.float32(1.0) + np.float32(math.erf(values[place] * np.float32(0.70710678))))
    elif kind == 2:
        for place in range(count):
            x3 = values[place] * values[place] * values[place]
            inner = np.float32(0.79788456) * (values[place] + np.float32(0.044715) * x3)
            values[place] = np.float32(0.5) * values[place] * (np.float32(1.0) + tanh(inner))
    else:
        for place in range(count):
            positive = max(values[place], np.float32(0.0))
            values[place] = positive if kind == 3 else positive * positive
