"""Attention for training on a CPU in bfloat16, in blocks whose scores stay in the cache.

torch's own kernel for the CPU is made for long rows and for generation: its backward pass works on one head at a time
and takes two to seven times as long as the products in it. Here the scores of some heads and of `ROWS` queries at a
time are products of batches of matrices, which the CPU's bfloat16 units are fast at. Those of long rows are computed
again in the backward pass instead of kept (Dao et al. 2022, sec. 3.1), and a causal block never looks at keys that come
later. Scores are rounded to bfloat16 before the softmax, as in attention that is written out.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diptych.core.kernels import is_ours

ROWS = 128  # queries in a block
SCORES = 2**21  # of a block: 4 MB of bfloat16
KEPT = 256  # keys in a row whose odds are kept for the backward pass: at most 512 bytes a query and head


def suits(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Whether `blocked_attention` takes these, and is the faster way."""
    return (
        is_ours(q)
        and q.dtype == k.dtype == v.dtype
        and torch.is_grad_enabled()
        and (q.requires_grad or k.requires_grad or v.requires_grad)
        and (mask is None or mask.dtype == torch.bool)
        and (not is_causal or q.shape[2] == k.shape[2])
    )


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, H, T, D), bfloat16; k, v: (B, H or a divisor of it, S, D).
        mask: bool, broadcast to (B, 1, T, S); True may be looked at.
        is_causal: no query looks at later keys; a mask that comes with it must say so, too.

    Returns:
        (B, H, T, D), laid in memory as (B, T, H, D).
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, torch.finfo(q.dtype).min)
        bias = bias.expand(len(q), 1, q.shape[2], k.shape[2])
    elif is_causal:
        rows = min(ROWS, q.shape[2])
        bias = torch.full((rows, rows), torch.finfo(q.dtype).min, dtype=q.dtype).triu_(1)
    return _attend(q, k, v, bias, is_causal)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool) -> Tensor:
    attended: Tensor = _Blocked.apply(q, k, v, bias, is_causal)  # type: ignore[no-untyped-call]
    return attended


def leave_uncompiled() -> None:
    """Before something that uses it is compiled: the blocks are made for the cache and stay as they are. Not said
    where it is defined, since that would load the whole compiler."""
    global _attend
    _attend = torch.compiler.disable(_attend)


def _groups(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """The heads that are worked on together: all of some rows of the batch, or some of one."""
    batch, heads, length, _ = q.shape
    together = max(1, SCORES // (min(ROWS, length) * k.shape[2]))
    rows, some = max(1, together // heads), min(together, heads)
    rows = math.ceil(batch / math.ceil(batch / rows))  # of one size, as near as they come
    for row in range(0, batch, rows):
        for head in range(0, heads, some):
            yield slice(row, row + rows), slice(head, head + some)


def _runs(q: Tensor, k: Tensor, is_causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries of a block, and the keys that they may look at."""
    for start in range(0, q.shape[2], ROWS):
        end = min(start + ROWS, q.shape[2])
        yield slice(start, end), slice(0, end if is_causal else k.shape[2])


def _odds(q: Tensor, k: Tensor, bias: Tensor | None, heads: tuple[slice, slice], queries: slice, keys: slice) -> Tensor:
    """How much each query looks at each key: (N, queries, keys) from q (N, queries, D) and k (N, keys, D)."""
    scores = torch.empty(len(q), q.shape[1], k.shape[1], dtype=q.dtype)
    torch.baddbmm(scores, q, k.mT, beta=0, alpha=1 / math.sqrt(q.shape[-1]), out=scores)
    if bias is not None and bias.ndim == 2:  # causal: only the last square of a block has a corner to hide
        rows = q.shape[1]
        scores[:, :, -rows:] += bias[:rows, :rows]
    elif bias is not None:
        here = bias[heads[0], :, queries, keys]
        scores.unflatten(0, (len(here), -1)).add_(here)
    return torch.softmax(scores, dim=-1)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool) -> Tensor:
        batch, heads, length, width = q.shape
        attended = torch.empty(batch, length, heads, width, dtype=q.dtype).transpose(1, 2)
        kept: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for group in _groups(q, k):
                keys, values = _flat(k[group]), _flat(v[group])
                for rows, seen in _runs(q, k, is_causal):
                    part = attended[(*group, rows)]
                    odds = _odds(_flat(q[(*group, rows)]), keys[:, seen], bias, group, rows, seen)
                    part.copy_(torch.bmm(odds, values[:, seen]).view(part.shape))
                    if k.shape[2] <= KEPT:
                        kept.append(odds)
        ctx.save_for_backward(q, k, v, bias, *kept)
        ctx.is_causal = is_causal
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, *kept = ctx.saved_tensors
        before = iter(kept)
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        scale = 1 / math.sqrt(q.shape[-1])
        for group in _groups(q, k):
            keys, values = _flat(k[group]), _flat(v[group])
            # Sums over the blocks of queries are kept in float32.
            sum_k, sum_v = torch.zeros_like(keys, dtype=torch.float32), torch.zeros_like(values, dtype=torch.float32)
            for rows, seen in _runs(q, k, ctx.is_causal):
                queries, wanted = _flat(q[(*group, rows)]), _flat(gradient[(*group, rows)])
                odds = next(before, None)
                if odds is None:
                    odds = _odds(queries, keys[:, seen], bias, group, rows, seen)
                to_odds = torch.bmm(wanted, values[:, seen].mT)
                to_scores = torch._softmax_backward_data(to_odds, odds, -1, odds.dtype).mul_(scale)
                sum_v[:, seen] += torch.bmm(odds.mT, wanted)
                sum_k[:, seen] += torch.bmm(to_scores.mT, queries)
                part = to_q[(*group, rows)]
                part.copy_(torch.bmm(to_scores, keys[:, seen]).view(part.shape))
            to_k[group].copy_(sum_k.view(k[group].shape))
            to_v[group].copy_(sum_v.view(v[group].shape))
        return to_q, to_k, to_v, None, None


def _flat(heads: Tensor) -> Tensor:
    """(b, h, T, D) -> (b h, T, D), contiguous."""
    return heads.reshape(-1, *heads.shape[2:])
