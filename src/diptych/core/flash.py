"""Attention on a CPU that multiplies pairs of bfloat16, as one call of compiled code each way
(`core.flash_kernel`, `core.flash_gradients`).

Scores never leave the cache of a core, neither forward nor backward, where they are computed again from what is kept
of each row, the logarithm of a sum (Dao et al. 2022, alg. 1 and 4). They are float32, and what is multiplied is
bfloat16: odds before they are divided by their sum. Queries, keys and values are read where a projection left them.

It works with the threads that torch works with, and on each head of keys by itself: results are the same to the last
bit however many threads there are. Where it does not suit, there are `core.blocked`, `core.long_rows` and
`core.many_queries`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core import flash_plan as at
from diptych.core import together
from diptych.core.kernels import is_ours
from diptych.core.linear import joined
from diptych.core.share_plan import LINE
from diptych.core.together import bits_of, new_table, run_together

SHARES, ENOUGH = 4, 128  # shares of a thread, and queries that are worth one
FEW = 8  # queries below which it is no product of tiles
MOST = 2**14  # keys whose matrices the last cache has room for

_LIBRARY = torch.library.Library("diptych", "FRAGMENT")
_LIBRARY.define("flash(Tensor q, Tensor k, Tensor v, Tensor? mask, bool is_causal, float scale) -> (Tensor, Tensor)")
_LIBRARY.define(
    "flash_backward(Tensor pull, Tensor q, Tensor k, Tensor v, Tensor levels, Tensor? mask,"
    " bool is_causal, float scale) -> (Tensor, Tensor, Tensor)"
)


def suits(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Whether `flash_attention` takes these, and is the faster way."""
    return (
        together.is_used()
        and is_ours(q)
        and q.dtype == k.dtype == v.dtype
        and (mask is None or mask.dtype == torch.bool)
        and (not is_causal or q.shape[2] == k.shape[2] or mask is not None)
        and q.shape[2] >= FEW
        and (k.shape[2] <= MOST or not (_is_learning(q, k, v) or (is_causal and mask is None)))
        and (len(k) * k.shape[1] >= torch.get_num_threads() or not _is_learning(q, k, v))  # each has something to do
    )


def _is_learning(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, differentiable.

    Args:
        q: (B, H, T, D), bfloat16; k, v: (B, H or a divisor of it, S, D).
        mask: bool, broadcast to (B, 1, T, S); True may be looked at. What may look at nothing finds 0.
        is_causal: no query looks at later keys, and T = S; a mask that comes with it must say so, too, and T may then
            be less: of the last places.

    Returns:
        (B, H, T, D), laid in memory as (B, T, H, D).
    """
    width, spare = q.shape[3], -q.shape[3] % at.ACROSS
    is_causal = is_causal and q.shape[2] == k.shape[2]  # else the mask says it
    if mask is not None:
        mask = _with_rows(mask.expand(len(q), 1, q.shape[2], k.shape[2]))
        if k.shape[2] % at.ACROSS:  # padding by nothing would copy all of it
            mask = F.pad(mask, (0, -k.shape[2] % at.ACROSS))
    if spare:
        q, k, v = (F.pad(one, (0, spare)) for one in (q, k, v))
    q, k, v = map(_with_rows, (q, k, v))
    scale = 1 / math.sqrt(width)
    attended: Tensor
    if _is_learning(q, k, v):
        attended = _Flash.apply(q, k, v, mask, is_causal, scale)  # type: ignore[no-untyped-call]
    elif k.shape[2] <= MOST:
        attended, _ = torch.ops.diptych.flash(q, k, v, mask, is_causal, scale)
    else:
        attended = _in_parts(q, k, v, mask, scale)
    return attended[..., :width] if spare else attended


def _in_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same over MOST keys at a time: each part counts as much as the sum of its odds."""
    found = []
    for start in range(0, k.shape[2], MOST):
        some = slice(start, start + MOST)
        shown = None if mask is None else mask[..., some]
        found.append(torch.ops.diptych.flash(q, k[:, :, some], v[:, :, some], shown, False, scale))
    shares = torch.stack([levels for _, levels in found])
    shares = shares.sub_(shares.amax(0)).exp2_()  # each over that of the largest
    shares /= shares.sum(0)
    attended: Tensor = sum(share[..., None] * part for share, (part, _) in zip(shares, found, strict=True))
    return attended.to(q.dtype)


def _with_rows(x: Tensor) -> Tensor:
    """The same, with the numbers of the last axis one after the other."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
    ) -> Tensor:
        attended: Tensor
        attended, levels = torch.ops.diptych.flash(q, k, v, mask, is_causal, scale)
        ctx.save_for_backward(q, k, v, levels, mask)
        ctx.about = is_causal, scale
        return attended

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, levels, mask = ctx.saved_tensors
        pull = _with_rows(pull)
        return *torch.ops.diptych.flash_backward(pull, q, k, v, levels, mask, *ctx.about), None, None, None


def _flash(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """What `flash_attention` gives, and the logarithm to the base of 2 of the sum over each row's keys of e^score:
    (B, H, T), float32."""
    attended, levels = _like_attended(q, k, v, mask, is_causal, scale)
    tensors = {at.Q: q, at.K: k, at.V: v, at.MASK: mask, at.LEVELS: levels, at.OUT: attended}
    _run(q, k, tensors, is_causal, scale)
    return attended, levels


def _flash_backward(
    pull: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    levels: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, for that of what was attended."""
    found = _like_gradients(pull, q, k, v, levels, mask, is_causal, scale)
    tensors = {at.Q: q, at.K: k, at.V: v, at.MASK: mask, at.LEVELS: levels, at.TO_OUT: pull}
    _run(q, k, tensors | dict(zip((at.TO_Q, at.TO_K, at.TO_V), found, strict=True)), is_causal, scale)
    return found


def _like_attended(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = q.shape
    attended = q.new_empty(batch, length, heads, width).transpose(1, 2)
    return attended, q.new_empty(batch, heads, length, dtype=torch.float32)


def _like_gradients(pull: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """They lie side by side where the three do, which a projection to all of them has as one product."""
    rows = [one.transpose(1, 2) for one in (q, k, v)]  # (B, T or S, heads, D)
    sizes = [one.shape[2] * one.shape[3] for one in rows]
    is_one = all(one.stride()[2:] == (one.shape[3], 1) for one in rows)
    if is_one and joined([one.flatten(2) for one in rows]) is not None:
        found = q.new_empty(*rows[0].shape[:2], sum(sizes)).split(sizes, -1)
        shaped = [to_one.unflatten(-1, one.shape[2:]) for to_one, one in zip(found, rows, strict=True)]
    else:
        shaped = [one.new_empty(one.shape) for one in rows]
    to_q, to_k, to_v = (to_one.transpose(1, 2) for to_one in shaped)
    return to_q, to_k, to_v


def _run(q: Tensor, k: Tensor, tensors: Mapping[int, Tensor | None], is_causal: bool, scale: float) -> None:
    """Go through all heads with the tensors at their columns of the table."""
    is_backward, threads = at.TO_OUT in tensors, torch.get_num_threads()
    table = new_table(at.TABLE)
    table[at.ROWS], table[at.HEADS], table[at.QUERIES], table[at.WIDTH] = q.shape
    table[at.KV_HEADS], table[at.KEYS] = k.shape[1:3]
    table[at.IS_CAUSAL], table[at.IS_BACKWARD], table[at.THREADS] = is_causal, is_backward, threads
    table[at.PADDED], table[at.PIECES] = at.padded(k.shape[2]), 1 if is_backward else _pieces(q, k, threads)
    table[at.SCALE] = bits_of(scale)
    for column, tensor in tensors.items():
        if tensor is not None:
            strides = [stride * tensor.element_size() for stride in tensor.stride()[:3]]
            table[column : column + len(at.TENSOR)] = [tensor.data_ptr(), *strides]
    size = 0
    table[at.BLOCK] = at.block(q.shape[2], k.shape[2])
    for column, count in at.areas(q.shape[2], k.shape[2], q.shape[3], is_backward).items():
        table[column], size = size, size + -(-count // LINE) * LINE
    run_together("differentiate_heads" if is_backward else "attend_heads", table, threads, size)


def _pieces(q: Tensor, k: Tensor, threads: int) -> int:
    """How many pieces make shares enough for the threads; not so many that laying out keys for each takes long."""
    wanted = math.ceil(SHARES * threads / (len(k) * k.shape[1]))
    return max(1, min(wanted, q.shape[1] * q.shape[2] // (k.shape[1] * ENOUGH)))


for _name, _kernel, _shape in (("flash", _flash, _like_attended), ("flash_backward", _flash_backward, _like_gradients)):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _shape, "Meta")
