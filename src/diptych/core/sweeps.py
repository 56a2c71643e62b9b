"""Activations and the loss on a CPU in bfloat16, in one pass over memory each (`core.sweep_kernel`).

torch reads and writes all numbers once for every operation, keeps what lies between for the backward pass, and has the
loss in float32. Here a gate is one pass forward and one back, and keeps what it was given; the numbers in between are
float32 and stay in registers.
"""

from typing import Any

import torch
from torch import Tensor

from diptych.core import sweep_plan as at
from diptych.core import together
from diptych.core.kernels import is_ours
from diptych.core.together import new_table, run_together

_LIBRARY = torch.library.Library("diptych", "FRAGMENT")
_LIBRARY.define("bend(Tensor x, Tensor? times, int kind) -> Tensor")
_LIBRARY.define("bend_backward(Tensor pull, Tensor x, Tensor? times, int kind) -> (Tensor, Tensor?)")
_LIBRARY.define("score(Tensor logits, Tensor targets, Tensor(a!) gradient) -> Tensor")


def bends(activation: str, x: Tensor, times: Tensor | None) -> bool:
    """Whether `bend` takes these, and is the faster way."""
    return (
        activation in at.BENDS
        and _suits(x)
        and (times is None or (times.dtype == x.dtype and times.shape == x.shape and times.is_contiguous()))
    )


def scores(logits: Tensor) -> bool:
    """Whether `score` takes these."""
    return _suits(logits) and logits.ndim == 2


def _suits(x: Tensor) -> bool:
    return together.IS_HERE and is_ours(x) and x.is_contiguous() and x.shape[-1] % at.STEP == 0


def bend(activation: str, x: Tensor, times: Tensor | None = None) -> Tensor:
    """f(x), or f(x) times another factor, differentiable; what `bends` says of them is true.

    Args:
        activation: one of at.BENDS, as `feedforward.ACTIVATIONS` has it.
        x, times: bfloat16, of one shape, whose last axis is a multiple of 32.
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
        return *torch.ops.diptych.bend_backward(pull.contiguous(), x, times, ctx.kind), None


def score(logits: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each row in nats, (N,) float32, and its gradient by the logits.

    Args:
        logits: (N, V), bfloat16; gradient: the same, or the logits themselves.
        targets: (N,), int64; below 0 where there is none, and both are 0.
    """
    found: Tensor = torch.ops.diptych.score(logits, targets, gradient)
    return found


def _bend(x: Tensor, times: Tensor | None, kind: int) -> Tensor:
    out = torch.empty_like(x)
    _run(at.BEND_FORWARD, x, {at.BEND: kind, at.TIMES: times, at.OUT: out})
    return out


def _bend_backward(pull: Tensor, x: Tensor, times: Tensor | None, kind: int) -> tuple[Tensor, Tensor | None]:
    to_x, to_times = _like_x(pull, x, times, kind)
    _run(at.BEND_BACKWARD, x, {at.BEND: kind, at.TIMES: times, at.PULL: pull, at.OUT: to_x, at.TO_TIMES: to_times})
    return to_x, to_times


def _score(logits: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
    found = torch.empty(len(logits), dtype=torch.float32)
    _run(at.SCORE, logits, {at.TARGETS: targets.contiguous(), at.PULL: gradient, at.OUT: found})
    return found


def _like_x(pull: Tensor, x: Tensor, times: Tensor | None, kind: int) -> tuple[Tensor, Tensor | None]:
    return torch.empty_like(x), None if times is None else torch.empty_like(times)


def _run(work: int, x: Tensor, columns: dict[int, Tensor | int | None]) -> None:
    """Go over all rows of x, with an address or a number in each of these columns."""
    table = new_table(at.TABLE)
    table[at.WORK], table[at.ROWS], table[at.WIDTH] = work, x.numel() // x.shape[-1], x.shape[-1]
    for column, value in (columns | {at.X: x}).items():
        table[column] = value.data_ptr() if isinstance(value, Tensor) else value or 0
    run_together("sweep", table, torch.get_num_threads())


for _name, _kernel, _shape in (
    ("bend", _bend, lambda x, times, kind: torch.empty_like(x)),
    ("bend_backward", _bend_backward, _like_x),
    ("score", _score, lambda logits, targets, gradient: logits.new_empty(len(logits), dtype=torch.float32)),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _shape, "Meta")
