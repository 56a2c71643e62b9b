"""What compiled kernels do with memory: numbers at an address, products of whole lanes of them, counting that threads
share.

Numba compiles plain Python loops over numbers; these few words, which Python has not, are given to it as instructions
of LLVM. An address is an int. Lanes are of one width on every processor: LLVM makes of them what the processor has.

How fast memory is read depends on how little is done with each number, since a processor looks but a few hundred
instructions ahead. So there are two more products, for processors that multiply pairs of bfloat16 or of 16-bit integers
in one instruction: they take the other factor in two halves, or in steps of the largest of BLOCK numbers over 2^15.
"""

import itertools
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from diptych.core import row_plan as at
from diptych.core.machine_code import features, multiplies_bfloats, multiplies_tiles

BLOCK, LANES = at.BLOCK, 16  # numbers of a row that are taken at a time, and those of a vector
LINE = 64  # bytes of a line of memory

BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT = ir.FloatType()
ZERO = LONG(0)
VECTOR, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(WORD, LANES)
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
CONTRACT = ("contract",)

PAIRS_BFLOATS = multiplies_bfloats()
HAS_TILES = multiplies_tiles()
PAIRS_INTEGERS = features().get("avx512vnni", False)
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

Typed = tuple[Any, Callable[..., Any]]
INT = types.int64


def _numbers_at(kind: Any) -> Any:
    @intrinsic
    def numbers_at(context: Any, address: Any) -> Typed:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(INT), code

    return numbers_at


floats = _numbers_at(types.float32)
bfloats = _numbers_at(types.uint16)
int16s = _numbers_at(types.int16)
int8s = _numbers_at(types.int8)
bytes_at = _numbers_at(types.uint8)
int32s = _numbers_at(types.int32)
ints = _numbers_at(types.int64)


@intrinsic
def float_of_bits(context: Any, bits: Any) -> Typed:
    """The float32 of 32 bits."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], FLOAT)

    return types.float32(types.uint32), code


@intrinsic
def bits_of_float(context: Any, number: Any) -> Typed:
    """The 32 bits of a float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], WORD)

    return types.uint32(types.float32), code


def llvm(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function that LLVM knows by name, by the types of what it gives and takes."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), f"llvm.{name}")


def read_at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def read_floats(builder: Any, address: Any) -> Any:
    return read_at(builder, address, VECTOR)


def read_bfloats(builder: Any, address: Any) -> Any:
    """A bfloat16 is the upper half of a float32."""
    words = builder.zext(read_at(builder, address, ir.VectorType(HALF, LANES)), WORDS)
    return builder.bitcast(builder.shl(words, ir.Constant(WORDS, [16] * LANES)), VECTOR)


def read_int8s(builder: Any, address: Any) -> Any:
    return builder.sitofp(builder.sext(read_at(builder, address, ir.VectorType(BYTE, LANES)), WORDS), VECTOR)


def each_lane(builder: Any, address: Any, kind: Any = VECTOR) -> Any:
    """The float32 at an address, or the integer, LANES times."""
    return spread(builder, read_at(builder, address, kind.element), kind)


def spread(builder: Any, number: Any, kind: Any = VECTOR) -> Any:
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, number, WORD(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(WORDS, [0] * LANES))


def _one_of(builder: Any, sums: list[Any]) -> Any:
    """The sum of vectors that were made side by side."""
    while len(sums) > 1:
        sums = [builder.fadd(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]


def added_up(builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of up to LANES vectors. Each is halved, and its halves are added, until one number is left:
    always in this order, so that a sum is the same alone and among others."""
    width = LANES
    while width > 1:
        parts = [range(first, first + width // 2) for first in range(0, 2 * LANES, width)]
        lower = ir.Constant(WORDS, [lane for part in parts for lane in part])
        upper = ir.Constant(WORDS, [lane + width // 2 for part in parts for lane in part])
        pairs = itertools.zip_longest(vectors[::2], vectors[1::2], fillvalue=ir.Constant(VECTOR, ir.Undefined))
        vectors = [builder.fadd(builder.shuffle_vector(*p, lower), builder.shuffle_vector(*p, upper)) for p in pairs]
        width //= 2
    return vectors[0]


def loop_of(builder: Any, count: Any, sums: int, step: Callable[..., Any], kind: Any = VECTOR) -> list[Any]:
    """`sums` vectors out of zeros and `count` steps: (place, vectors so far) -> vectors."""
    return carried(builder, count, [ir.Constant(kind, None)] * sums, step)


def carried(builder: Any, end: Any, first: list[Any], step: Callable[..., Any], begin: Any = ZERO) -> list[Any]:
    """What becomes of some values by the steps from one place to another: (place, values so far) -> values."""
    start, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", begin, end), loop, after)
    builder.position_at_end(loop)
    place, so_far = builder.phi(LONG), [builder.phi(value.type) for value in first]
    grown = step(place, so_far)
    following, last = builder.add(place, LONG(1)), builder.block
    for phi, before, later in zip([place, *so_far], [begin, *first], [following, *grown], strict=True):
        phi.add_incoming(before, start)
        phi.add_incoming(later, last)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
    builder.position_at_end(after)
    found = [builder.phi(value.type) for value in first]
    for phi, before, later in zip(found, first, grown, strict=True):
        phi.add_incoming(before, start)
        phi.add_incoming(later, last)
    return found


def _row_product(sizes: tuple[float, ...], sums: int, step: Callable[..., Any]) -> Any:
    """An intrinsic: what `step` adds up over a row, in one pass from its beginning to its end, for so memory is read
    fastest. It takes the addresses, and the count of numbers: a multiple of BLOCK, and not 0.

    Args:
        sizes: bytes that a number takes at each of the addresses.
        sums: that are made side by side.
        step: (builder, sum, addresses) -> sum, from the BLOCK / sums numbers that begin there.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        *addresses, count = values

        def grow(block: Any, totals: list[Any]) -> list[Any]:
            grown = []
            for index, total in enumerate(totals):
                there = [
                    builder.add(address, builder.add(builder.mul(block, LONG(int(BLOCK * size))), LONG(int(share))))
                    for address, size in zip(addresses, sizes, strict=True)
                    for share in [BLOCK // sums * index * size]
                ]
                grown.append(step(builder, total, there))
            return grown

        grown = loop_of(builder, builder.udiv(count, LONG(BLOCK)), sums, grow)
        return builder.extract_element(added_up(builder, [_one_of(builder, grown)]), WORD(0))

    typed = types.float32(*[INT] * (len(sizes) + 1)), code
    if len(sizes) == 2:
        return intrinsic(lambda context, weights, x, count: typed)
    return intrinsic(lambda context, weights, x, more, count: typed)


def _tile_product(sizes: tuple[float, ...], sums: int, step: Callable[..., Any]) -> Any:
    """An intrinsic: what `_row_product` makes of a row of weights, for TILE_DOWN of them and TILE_ACROSS rows of the
    other factor at once, each number being read from memory once; the sums are the same to the last bit.

    It takes the address and the stride of the weights, those of the other factor, the bytes of it between a row's
    numbers and what is read beside them, the count of numbers, where the sums go (LANES float32), and the
    address of weights that are used soon: they are brought closer.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        weights, down_stride, others, across_stride, beside, count, found, soon = values
        rows = [builder.add(weights, builder.mul(down_stride, LONG(row))) for row in range(at.TILE_DOWN)]
        coming = [builder.add(soon, builder.mul(down_stride, LONG(row))) for row in range(at.TILE_DOWN)]
        columns = [builder.add(others, builder.mul(across_stride, LONG(row))) for row in range(at.TILE_ACROSS)]
        begins = [[row, column, builder.add(column, beside)] for row in rows for column in columns]

        def grow(block: Any, totals: list[Any]) -> list[Any]:
            offsets = [builder.mul(block, LONG(int(BLOCK * size))) for size in sizes]
            for line in range(0, int(BLOCK * sizes[0]), LINE):
                for row in coming:
                    bring_line(builder, builder.add(row, builder.add(offsets[0], LONG(line))))
            grown: list[Any] = []
            for addresses, index in itertools.product(begins, range(sums)):
                there = [
                    builder.add(address, builder.add(offset, LONG(int(BLOCK // sums * index * size))))
                    for address, offset, size in zip(addresses, offsets, sizes, strict=True)
                ]
                grown.append(step(builder, totals[len(grown)], there))  # LLVM reads once what several steps read
            return grown

        found_sums = loop_of(builder, builder.udiv(count, LONG(BLOCK)), len(begins) * sums, grow)
        vectors = [_one_of(builder, found_sums[first : first + sums]) for first in range(0, len(found_sums), sums)]
        builder.store(added_up(builder, vectors), builder.inttoptr(found, VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    typed = types.void(*[INT] * 8), code
    return intrinsic(lambda context, weights, down, others, across, beside, count, found, soon: typed)


def bring_line(builder: Any, address: Any) -> None:
    """Ask for a line of memory without waiting for it: into the second cache, once."""
    pointer = BYTE.as_pointer()
    prefetch = llvm(builder, "prefetch.p0i8", ir.VoidType(), pointer, WORD, WORD, WORD)
    builder.call(prefetch, [builder.inttoptr(address, pointer), WORD(0), WORD(2), WORD(1)])


def times_plus(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, never in two roundings."""
    return builder.call(llvm(builder, f"fma.v{LANES}f32", VECTOR, VECTOR, VECTOR, VECTOR), [x, y, z])


def times_floats(read: Callable[..., Any]) -> Callable[..., Any]:
    def step(builder: Any, total: Any, addresses: Any) -> Any:
        weight, other = read(builder, addresses[0]), read_floats(builder, addresses[1])
        return builder.fadd(total, builder.fmul(weight, other, flags=CONTRACT), flags=CONTRACT)

    return step


class Bfloat(ir.Type):
    """bfloat16, which llvmlite has not."""

    def _to_string(self) -> str:
        return "bfloat"


PAIRED_BFLOATS = ir.VectorType(Bfloat(), 2 * LANES)


def pairs_plus(builder: Any, total: Any, pairs: Any, others: Any) -> Any:
    """A vector and the products of LANES pairs of bfloat16, two to a lane."""
    kind = PAIRED_BFLOATS
    multiply = llvm(builder, "x86.avx512bf16.dpbf16ps.512", VECTOR, VECTOR, kind, kind)
    return builder.call(multiply, [total, *(builder.bitcast(one, kind) for one in (pairs, others))])


def bfloat_pairs(builder: Any, total: Any, addresses: Any) -> Any:
    """Weights times the upper halves of numbers, and times what these leave."""
    weights, *halves = (read_at(builder, address, PAIRED_BFLOATS) for address in addresses)
    for half in halves:
        total = pairs_plus(builder, total, weights, half)
    return total


def higher(builder: Any, x: Any, y: Any) -> Any:
    """The larger of each lane; y where x is no number."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def lanes_largest(builder: Any, vector: Any) -> Any:
    """The largest of the numbers of a vector, all of which are numbers."""
    reduce = llvm(builder, f"vector.reduce.fmax.v{LANES}f32", FLOAT, VECTOR)
    return builder.call(reduce, [vector], fastmath=("nnan",))


def lanes_sum(builder: Any, vector: Any) -> Any:
    add_up = llvm(builder, f"vector.reduce.fadd.v{LANES}f32", FLOAT, FLOAT, VECTOR)
    return builder.call(add_up, [FLOAT(0.0), vector], fastmath=("reassoc",))


def _integer_pairs(builder: Any, total: Any, addresses: Any) -> Any:
    """BLOCK weights times as many 16-bit integers, times what one of these is worth."""
    weights, others, worth = addresses
    multiply = llvm(builder, "x86.avx512.vpdpwssd.512", WORDS, WORDS, WORDS, WORDS)
    found = ir.Constant(WORDS, [0] * LANES)
    for half in range(2):
        bytes_ = read_at(builder, builder.add(weights, LONG(half * 32)), ir.VectorType(BYTE, 32))
        wide = builder.bitcast(builder.sext(bytes_, ir.VectorType(HALF, 32)), WORDS)
        other = read_at(builder, builder.add(others, LONG(half * 64)), WORDS)
        found = builder.call(multiply, [found, wide, other])
    return times_plus(builder, builder.sitofp(found, VECTOR), each_lane(builder, worth), total)


dot_float = _row_product((4, 4), 4, times_floats(read_floats))
dot_bfloat = _row_product((2, 4), 4, times_floats(read_bfloats))
dot_int8 = _row_product((1, 4), 4, times_floats(read_int8s))
dot_bfloat_pairs = _row_product((2, 2, 2), 2, bfloat_pairs)
dot_int8_pairs = _row_product((1, 2, 4 / BLOCK), 1, _integer_pairs)
tile_bfloats = _tile_product((2, 2, 2), 2, bfloat_pairs)
tile_int8s = _tile_product((1, 2, 4 / BLOCK), 1, _integer_pairs)


@intrinsic
def read_shared(context: Any, address: Any) -> Typed:
    """An int that other threads write; what they wrote before it is there, too."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(values[0], LONG.as_pointer()), "acquire", 8)

    return INT(INT), code


@intrinsic
def write_shared(context: Any, address: Any, value: Any) -> Typed:
    """An int that other threads read; what was written before it is there for them, what is written after it not."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], builder.inttoptr(values[0], LONG.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(INT, INT), code


@intrinsic
def add_shared(context: Any, address: Any, value: Any) -> Typed:
    """Add to an int that other threads read and write; what it was before."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(values[0], LONG.as_pointer()), values[1], "acq_rel")

    return INT(INT, INT), code


@intrinsic
def swap_shared(context: Any, address: Any, old: Any, new: Any) -> Typed:
    """Write `new` if `old` is there still; whether it was."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], LONG.as_pointer())
        found = builder.cmpxchg(pointer, values[1], values[2], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(INT, INT, INT), code


@intrinsic
def pause(context: Any) -> Typed:
    """Let a moment pass, for whom the core is shared with."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if IS_X86:
            builder.call(llvm(builder, "x86.sse2.pause", ir.VoidType()), [])
        return context.get_dummy_value()

    return types.void(), code
