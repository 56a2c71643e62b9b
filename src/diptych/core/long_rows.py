"""Attention of many queries over a long text on a CPU in bfloat16, in blocks whose scores stay in the cache.

Here all heads of `ROWS` queries meet `KEYS` keys in one product of batches of matrices, and the softmax is put together
block by block (Milakov & Gimelshein 2018; Dao et al. 2022, alg. 1): twice as fast as torch's own kernel on 2 cores. A
block that the mask hides is left out, one that it shows whole is not masked. Scores are rounded to bfloat16 before the
softmax, as in `core.blocked`; sums are float32.
"""

import math

import torch
from torch import Tensor

from diptych.core.kernels import is_ours

ROWS, KEYS = 512, 512  # of a block
LONG = 4096  # keys from which this is the faster way


def suits(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> bool:
    """Whether `attend_long` takes these, and is the faster way."""
    return (
        is_ours(q)
        and q.dtype == k.dtype == v.dtype
        and not torch.is_grad_enabled()
        and mask.dtype == torch.bool
        and q.shape[2] >= ROWS // 4
        and k.shape[2] >= LONG
    )


def attend_long(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, H, T, D), bfloat16; k, v: (B, H or a divisor of it, S, D).
        mask: bool, (B or 1, 1, T, S); True may be looked at, and every query sees something.

    Returns:
        (B, H, T, D), laid in memory as (B, T, H, D).
    """
    batch, heads, count, width = q.shape
    attended = torch.empty(batch, count, heads, width, dtype=q.dtype).transpose(1, 2)
    for row in range(batch):
        for start in range(0, count, ROWS):
            some = slice(start, start + ROWS)
            seen = mask[row % len(mask), 0, some]
            attended[row, :, some] = _attend(q[row, :, some] / math.sqrt(width), k[row], v[row], seen)
    return attended


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q (H, R, D) over k and v (G, S, D): (H, R, D)."""
    heads, rows, width = q.shape
    shared = heads // len(k)  # queries that share a head of keys are rows of one matrix
    q = q.reshape(len(k), shared * rows, width)
    largest = q.new_full((len(k), shared * rows, 1), -1e30)
    total, sums = torch.zeros(largest.shape), torch.zeros(q.shape)
    for start in range(0, k.shape[1], KEYS):
        some = slice(start, start + KEYS)
        seen = mask[:, some]
        if not seen.any():
            continue
        scores = torch.bmm(q, k[:, some].mT)
        if not seen.all():
            scores.unflatten(1, (shared, rows)).masked_fill_(~seen, -math.inf)
        risen = torch.maximum(largest, scores.amax(-1, keepdim=True))
        odds = scores.sub_(risen).exp_()
        faded = (largest - risen).float().exp_()
        total = total.mul_(faded).add_(odds.sum(-1, keepdim=True, dtype=torch.float32))
        sums = sums.mul_(faded).add_(torch.bmm(odds, v[:, some]))
        largest = risen
    return (sums / total).to(q.dtype).view(heads, rows, width)
