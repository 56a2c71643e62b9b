"""What compiled kernels do with memory: numbers at an address, products of whole lanes of them, counting that threads
share.

Numba compiles plain Python loops over numbers; these few words, which Python has not, are given to it as instructions
of LLVM. An address is an int. Lanes are of one width on every processor: LLVM makes of them what the processor has.
"""

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES, SUMS = 16, 4  # numbers of a vector, and vectors that are summed side by side
BLOCK = LANES * SUMS

BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
CONTRACT = ("contract",)

Typed = tuple[Any, Callable[..., Any]]


def _numbers_at(kind: Any) -> Any:
    @intrinsic
    def numbers_at(context: Any, address: Any) -> Typed:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), code

    return numbers_at


floats = _numbers_at(types.float32)
bfloats = _numbers_at(types.uint16)
int8s = _numbers_at(types.int8)
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


def _widened(builder: Any, address: Any, element: Any) -> Any:
    """LANES numbers at an address as float32."""
    read = builder.load(builder.inttoptr(address, ir.VectorType(element, LANES).as_pointer()), align=1)
    if element == FLOAT:
        return read
    words = ir.VectorType(WORD, LANES)
    if element == HALF:  # the upper half of a float32
        raised = builder.shl(builder.zext(read, words), ir.Constant(words, [16] * LANES))
        return builder.bitcast(raised, VECTOR)
    return builder.sitofp(builder.sext(read, words), VECTOR)


def _dot_of(element: Any) -> Any:
    """The product of a row of weights with a row of float32.

    Four sums side by side in one pass from the row's beginning to its end: that is how memory is read fastest.
    """
    size = element.width // 8 if isinstance(element, ir.IntType) else 4

    @intrinsic
    def dot(context: Any, weights: Any, x: Any, count: Any) -> Typed:
        """count is a multiple of BLOCK, and not 0."""

        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            weights, x, count = values
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            place = builder.phi(LONG)
            place.add_incoming(LONG(0), before)
            sums = [builder.phi(VECTOR) for _ in range(SUMS)]
            grown = []
            for index, total in enumerate(sums):
                total.add_incoming(ir.Constant(VECTOR, [0.0] * LANES), before)
                here = builder.add(place, LONG(index * LANES))
                weight = _widened(builder, builder.add(weights, builder.mul(here, LONG(size))), element)
                other = _widened(builder, builder.add(x, builder.mul(here, LONG(4))), FLOAT)
                grown.append(builder.fadd(total, builder.fmul(weight, other, CONTRACT), CONTRACT))
            following = builder.add(place, LONG(BLOCK))
            place.add_incoming(following, loop)
            for total, more in zip(sums, grown, strict=True):
                total.add_incoming(more, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            while len(grown) > 1:
                grown = [builder.fadd(*pair) for pair in zip(grown[::2], grown[1::2], strict=True)]
            kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
            add_up = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
            return builder.call(add_up, [FLOAT(0.0), grown[0]], fastmath=("reassoc",))

        return types.float32(types.int64, types.int64, types.int64), code

    return dot


dot_float, dot_bfloat, dot_int8 = (_dot_of(element) for element in (FLOAT, HALF, BYTE))


@intrinsic
def read_shared(context: Any, address: Any) -> Typed:
    """An int that other threads write; what they wrote before it is there, too."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(values[0], LONG.as_pointer()), "acquire", 8)

    return types.int64(types.int64), code


@intrinsic
def write_shared(context: Any, address: Any, value: Any) -> Typed:
    """An int that other threads read; what was written before it is there for them, what is written after it not."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], builder.inttoptr(values[0], LONG.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def add_shared(context: Any, address: Any, value: Any) -> Typed:
    """Add to an int that other threads read and write."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.atomic_rmw("add", builder.inttoptr(values[0], LONG.as_pointer()), values[1], "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def swap_shared(context: Any, address: Any, old: Any, new: Any) -> Typed:
    """Write `new` if `old` is there still; whether it was."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], LONG.as_pointer())
        found = builder.cmpxchg(pointer, values[1], values[2], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), code


@intrinsic
def pause(context: Any) -> Typed:
    """Let a moment pass, for whom the core is shared with."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), code
