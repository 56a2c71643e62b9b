"""Activations, norms and the loss on a CPU in bfloat16, in one pass over memory each (`core.sweep_kernel`).

torch reads and writes all numbers once for every operation, keeps what lies between for the backward pass, and has the
loss in float32. Here a gate is one pass forward and one back, and keeps what it was given; the numbers in between are
float32 and stay in registers.
"""

import math
from typing import Any

import torch
from torch import Tensor

from diptych.core import sweep_plan as at
from diptych.core import together
from diptych.core.kernels import is_ours
from diptych.core.together import bits_of, new_table, run_together

Columns = dict[int, Tensor | int | None]
_LIBRARY = torch.library.Library("diptych", "FRAGMENT")
_LIBRARY.define("bend(Tensor x, Tensor? times, int kind) -> Tensor")
_LIBRARY.define("bend_backward(Tensor pull, Tensor x, Tensor? times, int kind) -> (Tensor, Tensor?)")
_LIBRARY.define("norm(Tensor x, Tensor gain, Tensor? shift, float eps, bool is_layer) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "norm_backward(Tensor pull, Tensor x, Tensor gain, Tensor means, Tensor inverses, bool is_layer, Tensor? beside)"
    " -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define("score(Tensor logits, Tensor targets, Tensor(a!) gradient) -> Tensor")


def bends(activation: str, x: Tensor, times: Tensor | None) -> bool:
    """Whether `bend` takes these, and is the faster way."""
    return (
        activation in at.BENDS
        and _suits(x)
        and x.numel() % at.STEP == 0
        and (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)))
        and (times is None or (times.dtype == x.dtype and _lies_like(times, x)))
    )


def scores(logits: Tensor, gradient: Tensor) -> bool:
    """Whether `score` takes these."""
    has_steps = logits.ndim == 2 and logits.shape[1] % at.STEP == 0
    return _suits(logits) and has_steps and logits.is_contiguous() and _lies_like(gradient, logits)


def norms(x: Tensor) -> bool:
    """Whether `norm` takes these: rows that lie in whatever order, with nothing between them."""
    return (
        _suits(x)
        and x.shape[-1] % at.STEP == 0
        and x.numel() > 0
        and (x.is_contiguous() or (x.ndim == 4 and x.transpose(1, 2).is_contiguous()))
    )


def _suits(x: Tensor) -> bool:
    """What torch compiles becomes one pass by itself."""
    return together.is_used() and is_ours(x) and not torch.compiler.is_compiling()


def _lies_like(x: Tensor, other: Tensor) -> bool:
    return x.shape == other.shape and x.stride() == other.stride()


def _laid_like(pull: Tensor, x: Tensor) -> Tensor:
    return pull if _lies_like(pull, x) else torch.empty_like(x).copy_(pull)


def bend(activation: str, x: Tensor, times: Tensor | None = None) -> Tensor:
    """f(x), or f(x) times another factor, differentiable; what `bends` says of them is true.

    Args:
        activation: one of at.BENDS, as `feedforward.ACTIVATIONS` has it.
        x, times: bfloat16, of one shape and layout, without gaps; their numbers are a multiple of 32.
    """
    kind = at.BENDS[activation]
    if not torch.is_grad_enabled():
        alone: Tensor = torch.ops.diptych.bend.default(x, times, kind)
        return alone
    bent: Tensor = _Bend.apply(x, times, kind)  # type: ignore[no-untyped-call]
    return bent


class _Bend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, times: Tensor | None, kind: int) -> Tensor:
        ctx.save_for_backward(x, times)
        ctx.kind = kind
        bent: Tensor = torch.ops.diptych.bend(x, times, kind)
        return bent

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        x, times = ctx.saved_tensors
        return *torch.ops.diptych.bend_backward(_laid_like(pull, x), x, times, ctx.kind), None


def norm(x: Tensor, gain: Tensor, shift: Tensor | None, eps: float, *, is_layer: bool) -> Tensor:
    """A layer norm over the last axis, or an RMS norm, differentiable; what `norms` says of x is true.

    Args:
        x: (..., C), bfloat16; gain, shift: (C,).
    """
    if not torch.is_grad_enabled():
        shift = None if shift is None else shift.float()
        alone: Tensor = torch.ops.diptych.norm.default(x, gain.float(), shift, eps, is_layer)[0]
        return alone
    return norm_of_branch(x, gain, shift, eps, is_layer=is_layer)[1]


def norm_of_branch(
    x: Tensor, gain: Tensor, shift: Tensor | None, eps: float, *, is_layer: bool
) -> tuple[Tensor, Tensor]:
    """x and its norm, as `norm` has it, for what both are used by: the gradient of x is one pass over memory."""
    shift = None if shift is None else shift.float()
    both: tuple[Tensor, Tensor] = _Norm.apply(x, gain.float(), shift, eps, is_layer)  # type: ignore[no-untyped-call]
    return both


class _Norm(torch.autograd.Function):
    """Kept are x and two numbers a row."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None, eps: float, is_layer: bool
    ) -> tuple[Tensor, Tensor]:
        normed, means, inverses = torch.ops.diptych.norm(x, gain, shift, eps, is_layer)
        ctx.save_for_backward(x, gain, means, inverses)
        ctx.is_layer = is_layer
        ctx.set_materialize_grads(False)
        return x, normed

    @staticmethod
    def backward(ctx: Any, beside: Tensor | None, pull: Tensor | None) -> tuple[Tensor | None, ...]:
        if pull is None:
            return beside, None, None, None, None
        x, gain, means, inverses = ctx.saved_tensors
        pull, beside = _laid_like(pull, x), None if beside is None else _laid_like(beside, x)
        to_x, to_gain, to_shift = torch.ops.diptych.norm_backward(pull, x, gain, means, inverses, ctx.is_layer, beside)
        return to_x, to_gain, to_shift if ctx.needs_input_grad[2] else None, None, None


def score(logits: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each row in nats, (N,) float32, and its gradient by the logits.

    Args:
        logits: (N, V), bfloat16; gradient: of the same layout, or the logits themselves.
        targets: (N,), int64; below 0 where there is none, and both are 0.

    Raises: IndexError for a target that is not among the V.
    """
    found: Tensor = torch.ops.diptych.score(logits, targets, gradient)
    return found


def _bend(x: Tensor, times: Tensor | None, kind: int) -> Tensor:
    out = torch.empty_like(x)
    _run(at.BEND_FORWARD, x, at.STEP, {at.BEND: kind, at.TIMES: times, at.OUT: out})
    return out


def _bend_backward(pull: Tensor, x: Tensor, times: Tensor | None, kind: int) -> tuple[Tensor, Tensor | None]:
    to_x, to_times = _like_x(pull, x, times, kind)
    _run(
        at.BEND_BACKWARD,
        x,
        at.STEP,
        {at.BEND: kind, at.TIMES: times, at.PULL: pull, at.OUT: to_x, at.TO_TIMES: to_times},
    )
    return to_x, to_times


def _norm(x: Tensor, gain: Tensor, shift: Tensor | None, eps: float, is_layer: bool) -> tuple[Tensor, Tensor, Tensor]:
    out, means, inverses = _like_norm(x)
    about: Columns = {at.GAIN: gain, at.SHIFT: shift, at.EPS: bits_of(eps), at.IS_LAYER: int(is_layer)}
    _run(at.NORM_FORWARD, x, x.shape[-1], about | {at.OUT: out, at.MEANS: means, at.INVERSES: inverses})
    return out, means, inverses


def _norm_backward(
    pull: Tensor,
    x: Tensor,
    gain: Tensor,
    means: Tensor,
    inverses: Tensor,
    is_layer: bool,
    beside: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    width, to_x = x.shape[-1], torch.empty_like(x)
    shares = math.ceil(x.numel() // width / at.rows_of_share(width))
    to_gain, to_shift = torch.zeros(2, shares, width).unbind()
    given: Columns = {at.GAIN: gain, at.MEANS: means, at.INVERSES: inverses, at.IS_LAYER: int(is_layer), at.PULL: pull}
    found: Columns = {at.OUT: to_x, at.TO_GAIN: to_gain, at.TO_SHIFT: to_shift, at.BESIDE: beside}
    _run(at.NORM_BACKWARD, x, width, given | found)
    return to_x, to_gain.sum(0), to_shift.sum(0)


def _score(logits: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
    most = int(targets.max()) if len(targets) else 0
    if most >= logits.shape[1]:
        raise IndexError(f"targets must be below {logits.shape[1]}, not {most}")
    found = torch.empty(len(logits), dtype=torch.float32)
    _run(at.SCORE, logits, logits.shape[1], {at.TARGETS: targets.contiguous(), at.PULL: gradient, at.OUT: found})
    return found


def _like_x(pull: Tensor, x: Tensor, times: Tensor | None, kind: int) -> tuple[Tensor, Tensor | None]:
    return torch.empty_like(x), None if times is None else torch.empty_like(times)


def _like_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    means, inverses = (x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), means, inverses


def _like_norm_gradients(pull: Tensor, x: Tensor, gain: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)


def _run(work: int, x: Tensor, width: int, columns: Columns) -> None:
    """Go over all of x in rows of `width` numbers as they lie, with an address or a number in each of these columns."""
    table = new_table(at.TABLE)
    table[at.WORK], table[at.ROWS], table[at.WIDTH] = work, x.numel() // width, width
    table[at.SHARE_ROWS] = at.rows_of_share(width)
    for column, value in (columns | {at.X: x}).items():
        table[column] = value.data_ptr() if isinstance(value, Tensor) else value or 0
    run_together("sweep", table, torch.get_num_threads())


for _name, _kernel, _shape in (
    ("bend", _bend, lambda x, times, kind: torch.empty_like(x)),
    ("bend_backward", _bend_backward, _like_x),
    ("norm", _norm, _like_norm),
    ("norm_backward", _norm_backward, _like_norm_gradients),
    ("score", _score, lambda logits, targets, gradient: logits.new_empty(len(logits), dtype=torch.float32)),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _shape, "Meta")
