"""What compiled sweeps do with whole lanes: bent numbers and their slopes, odds of a vocabulary."""

import itertools
from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from diptych.core import sweep_plan as at
from diptych.core.attention_lanes import constant, store
from diptych.core.lanes import (
    INT,
    LANES,
    LINE,
    LONG,
    VECTOR,
    ZEROS,
    Typed,
    carried,
    higher,
    lanes_largest,
    lanes_sum,
    llvm,
    read_bfloats,
    spread,
    times_plus,
)
from diptych.core.tiles import LOG2_E, floats_at, give, power_of_two, with_and_without

ONE = constant(1.0)


def _logistic(rate: float) -> Callable[..., tuple[Any, Any]]:
    """x s, s the logistic function of rate x, and its slope s + rate x s (1 - s)."""

    def bend(builder: Any, x: Any) -> tuple[Any, Any]:
        fade = power_of_two(builder, builder.fmul(x, constant(-LOG2_E * rate)))
        share = builder.fdiv(ONE, builder.fadd(ONE, fade))
        bent = builder.fmul(x, share)
        return bent, times_plus(builder, bent, builder.fmul(builder.fsub(ONE, share), constant(rate)), share)

    return bend


def _gelu(builder: Any, x: Any) -> tuple[Any, Any]:
    """x P and its slope P + x p, P and p a normal distribution and its density (Hendrycks & Gimpel 2016, eq. 2).

    P is to 1e-7 what Abramowitz & Stegun have for the error function (eq. 7.1.26).
    """
    size = builder.call(llvm(builder, f"fabs.v{LANES}f32", VECTOR, VECTOR), [x])
    density = power_of_two(builder, builder.fmul(builder.fmul(x, x), constant(-LOG2_E / 2)))
    t = builder.fdiv(ONE, times_plus(builder, size, constant(0.3275911 * 0.5**0.5), ONE))
    series = constant(1.061405429 / 2)
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = times_plus(builder, series, t, constant(term / 2))
    tail = builder.fmul(builder.fmul(series, t), density)
    share = builder.select(builder.fcmp_ordered("<", x, ZEROS), tail, builder.fsub(ONE, tail))
    slope = times_plus(builder, builder.fmul(x, constant(0.39894228)), density, share)
    return builder.fmul(x, share), slope


def _gelu_tanh(builder: Any, x: Any) -> tuple[Any, Any]:
    """x s and its slope, s the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3): the same as 1 + tanh halved."""
    twice, far = 2 * 0.7978845608, constant(16.0)  # s is 0 or 1 beyond, and a cube might be no number
    near = builder.call(llvm(builder, f"minnum.v{LANES}f32", VECTOR, VECTOR, VECTOR), [x, far])
    near = builder.call(llvm(builder, f"maxnum.v{LANES}f32", VECTOR, VECTOR, VECTOR), [near, builder.fneg(far)])
    square = builder.fmul(near, near)
    inner = builder.fmul(near, times_plus(builder, square, constant(0.044715 * twice), constant(twice)))
    fade = power_of_two(builder, builder.fmul(inner, constant(-LOG2_E)))
    share = builder.fdiv(ONE, builder.fadd(ONE, fade))
    bent = builder.fmul(x, share)
    rise = times_plus(builder, square, constant(3 * 0.044715 * twice), constant(twice))
    return bent, times_plus(builder, builder.fmul(bent, builder.fsub(ONE, share)), rise, share)


def _relu_squared(builder: Any, x: Any) -> tuple[Any, Any]:
    """x^2 and its slope where x > 0, else 0; what is no number stays so."""
    positive = builder.select(builder.fcmp_ordered("<", x, ZEROS), ZEROS, x)
    return builder.fmul(positive, positive), builder.fadd(positive, positive)


_BENDS = {
    "silu": _logistic(1.0),
    "quick-gelu": _logistic(1.702),
    "gelu": _gelu,
    "gelu-tanh": _gelu_tanh,
    "relu2": _relu_squared,
}


def _at(builder: Any, addresses: list[Any], place: Any) -> list[list[Any]]:
    """The two vectors of bfloat16 at a place of each address."""
    offset = builder.mul(place, LONG(LINE))
    return [
        [read_bfloats(builder, builder.add(builder.add(address, offset), LONG(half))) for half in (0, LINE // 2)]
        for address in addresses
    ]


def _each_bend(builder: Any, kind: Any, has_times: Any, code: Callable[[Callable[..., Any], bool], None]) -> None:
    """The code for each kind of bend, with another factor and without: one of them runs."""
    for (name, bend), is_gated in itertools.product(_BENDS.items(), (False, True)):
        is_kind = builder.icmp_signed("==", kind, LONG(at.BENDS[name]))
        is_this = builder.and_(is_kind, builder.icmp_signed("==" if not is_gated else "!=", has_times, LONG(0)))
        with builder.if_then(is_this):
            code(bend, is_gated)


@intrinsic
def bend(context: Any, kind: Any, x: Any, times: Any, out: Any, count: Any) -> Typed:
    """f(x), or f(x) times what is at another address, if that is not 0; `count` is a multiple of at.STEP."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind, x, times, out, count = given

        def forward(function: Callable[..., Any], is_gated: bool) -> None:
            def step(place: Any, _: list[Any]) -> list[Any]:
                read = _at(builder, [x, times] if is_gated else [x], place)
                found = [function(builder, one)[0] for one in read[0]]
                if is_gated:
                    found = [builder.fmul(one, other) for one, other in zip(found, read[1], strict=True)]
                give(builder, found, out, place)
                return []

            carried(builder, builder.udiv(count, LONG(at.STEP)), [], step)

        _each_bend(builder, kind, times, forward)
        return context.get_dummy_value()

    return types.void(*[INT] * 5), code


@intrinsic
def bend_back(context: Any, kind: Any, x: Any, times: Any, pull: Any, to_x: Any, to_times: Any, count: Any) -> Typed:
    """The gradients of what `bend` was given, for that of what it gave."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind, x, times, pull, to_x, to_times, count = given

        def backward(function: Callable[..., Any], is_gated: bool) -> None:
            def step(place: Any, _: list[Any]) -> list[Any]:
                read = _at(builder, [x, pull, times] if is_gated else [x, pull], place)
                bent, pulls = [function(builder, one) for one in read[0]], read[1]
                if is_gated:
                    found = [builder.fmul(one, value) for one, (value, _) in zip(pulls, bent, strict=True)]
                    give(builder, found, to_times, place)
                    pulls = [builder.fmul(one, other) for one, other in zip(pulls, read[2], strict=True)]
                give(
                    builder,
                    [builder.fmul(one, slope) for one, (_, slope) in zip(pulls, bent, strict=True)],
                    to_x,
                    place,
                )
                return []

            carried(builder, builder.udiv(count, LONG(at.STEP)), [], step)

        _each_bend(builder, kind, times, backward)
        return context.get_dummy_value()

    return types.void(*[INT] * 7), code


@intrinsic
def largest_of(context: Any, numbers: Any, count: Any) -> Typed:
    """The largest of a row of bfloat16; `count` is a multiple of at.STEP."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, count = given

        def step(place: Any, so_far: list[Any]) -> list[Any]:
            (both,) = _at(builder, [numbers], place)
            pairs = zip(both, so_far, strict=True)
            return [higher(builder, one, most) for one, most in pairs]

        first, second = carried(builder, builder.udiv(count, LONG(at.STEP)), [constant(-3e38)] * 2, step)
        return lanes_largest(builder, higher(builder, first, second))

    return types.float32(INT, INT), code


@intrinsic
def sum_of_powers(context: Any, numbers: Any, level: Any, count: Any) -> Typed:
    """The sum of e^x 2^-level over a row of bfloat16."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, level, count = given
        less = spread(builder, builder.fneg(level))

        def power(one: Any) -> Any:
            return power_of_two(builder, times_plus(builder, one, constant(LOG2_E), less))

        return _summed(builder, numbers, count, power)

    return types.float32(INT, types.float32, INT), code


@intrinsic
def powers(context: Any, numbers: Any, level: Any, out: Any, count: Any) -> Typed:
    """e^x 2^-level of a row of bfloat16, as bfloat16."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, level, out, count = given
        less = spread(builder, builder.fneg(level))

        def step(place: Any, _: list[Any]) -> list[Any]:
            (both,) = _at(builder, [numbers], place)
            found = [power_of_two(builder, times_plus(builder, one, constant(LOG2_E), less)) for one in both]
            give(builder, found, out, place)
            return []

        carried(builder, builder.udiv(count, LONG(at.STEP)), [], step)
        return context.get_dummy_value()

    return types.void(INT, types.float32, INT, INT), code


def _summed(builder: Any, numbers: Any, count: Any, of: Callable[[Any], Any]) -> Any:
    """The sum of `of` each vector of a row."""

    def step(place: Any, totals: list[Any]) -> list[Any]:
        (both,) = _at(builder, [numbers], place)
        return [builder.fadd(total, of(one)) for total, one in zip(totals, both, strict=True)]

    return lanes_sum(builder, builder.fadd(*carried(builder, builder.udiv(count, LONG(at.STEP)), [ZEROS] * 2, step)))


@intrinsic
def row_sum(context: Any, numbers: Any, count: Any) -> Typed:
    """The sum of a row of bfloat16."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, count = given
        return _summed(builder, numbers, count, lambda one: one)

    return types.float32(INT, INT), code


@intrinsic
def squares(context: Any, numbers: Any, mean: Any, count: Any) -> Typed:
    """The sum of the squares of what a row differs from a number by."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers, mean, count = given
        less = spread(builder, mean)

        def square(one: Any) -> Any:
            apart = builder.fsub(one, less)
            return builder.fmul(apart, apart)

        return _summed(builder, numbers, count, square)

    return types.float32(INT, types.float32, INT), code


@intrinsic
def scale_row(context: Any, x: Any, mean: Any, inverse: Any, gain: Any, shift: Any, out: Any, count: Any) -> Typed:
    """(x - mean) inverse gain + shift of a row; a shift at an address of 0 is none."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, mean, inverse, gain, shift, out, count = given
        less, each = spread(builder, mean), spread(builder, inverse)

        def body(shift: Any) -> None:
            def step(place: Any, _: list[Any]) -> list[Any]:
                (both,) = _at(builder, [x], place)
                units = [builder.fmul(builder.fsub(one, less), each) for one in both]
                found = [builder.fmul(one, g) for one, g in zip(units, floats_at(builder, gain, place), strict=True)]
                if shift is not None:
                    found = [builder.fadd(*p) for p in zip(found, floats_at(builder, shift, place), strict=True)]
                give(builder, found, out, place)
                return []

            carried(builder, builder.udiv(count, LONG(at.STEP)), [], step)

        with_and_without(builder, shift, body)
        return context.get_dummy_value()

    number = types.float32
    return types.void(INT, number, number, INT, INT, INT, INT), code


@intrinsic
def pulls(
    context: Any, x: Any, pull: Any, mean: Any, inverse: Any, gain: Any, to_gain: Any, to_shift: Any, count: Any
) -> Typed:
    """Sums over a row of p u and of p, where u is (x - mean) inverse and p the gradient of it: the pull times the gain.
    To what is at `to_gain` and `to_shift` the pull times u and the pull are added."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, pull, mean, inverse, gain, to_gain, to_shift, count = given
        less, each = spread(builder, mean), spread(builder, inverse)

        def step(place: Any, totals: list[Any]) -> list[Any]:
            read, gains, grown = _at(builder, [x, pull], place), floats_at(builder, gain, place), list(totals)
            sums = [floats_at(builder, address, place) for address in (to_gain, to_shift)]
            for half in range(2):
                unit, its_pull = builder.fmul(builder.fsub(read[0][half], less), each), read[1][half]
                there = builder.add(builder.mul(place, LONG(2 * LINE)), LONG(half * LINE))
                along = times_plus(builder, its_pull, unit, sums[0][half])
                store(builder, along, builder.add(to_gain, there))
                store(builder, builder.fadd(its_pull, sums[1][half]), builder.add(to_shift, there))
                its = builder.fmul(its_pull, gains[half])
                grown[half] = times_plus(builder, its, unit, grown[half])
                grown[2 + half] = builder.fadd(its, grown[2 + half])
            return grown

        found = carried(builder, builder.udiv(count, LONG(at.STEP)), [ZEROS] * 4, step)
        both = [lanes_sum(builder, builder.fadd(*found[part : part + 2])) for part in (0, 2)]
        return context.make_tuple(builder, signature.return_type, both)

    number = types.float32
    return types.UniTuple(number, 2)(INT, INT, number, number, INT, INT, INT, INT), code


@intrinsic
def pull_row(
    context: Any,
    x: Any,
    pull: Any,
    mean: Any,
    inverse: Any,
    gain: Any,
    along: Any,
    level: Any,
    beside: Any,
    out: Any,
    count: Any,
) -> Typed:
    """(p - level - u along) inverse of a row, u and p as in `pulls`, and what is beside it, if its address is not 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, pull, mean, inverse, gain, along, level, beside, out, count = given
        less, each, share, flat = (spread(builder, one) for one in (mean, inverse, along, level))

        def body(beside: Any) -> None:
            def step(place: Any, _: list[Any]) -> list[Any]:
                read, found = _at(builder, [x, pull], place), []
                for one, its, g in zip(*read, floats_at(builder, gain, place), strict=True):
                    unit = builder.fmul(builder.fsub(one, less), each)
                    rest = builder.fsub(builder.fmul(its, g), flat)
                    found.append(builder.fmul(builder.fsub(rest, builder.fmul(unit, share)), each))
                if beside is not None:
                    (other,) = _at(builder, [beside], place)
                    found = [builder.fadd(*both) for both in zip(found, other, strict=True)]
                give(builder, found, out, place)
                return []

            carried(builder, builder.udiv(count, LONG(at.STEP)), [], step)

        with_and_without(builder, beside, body)
        return context.get_dummy_value()

    number = types.float32
    return types.void(INT, INT, number, number, INT, number, number, INT, INT, INT), code
