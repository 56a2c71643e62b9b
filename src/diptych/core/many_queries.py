"""Attention of many places to each other on a CPU in bfloat16, in blocks whose scores stay in the cache.

For pictures: nothing is hidden, and every query sees all keys. The scores of `SCORES` pairs at a time are a product of
batches of matrices, which become odds in place. torch's own kernel works on a few queries of one head, whose products
are too small for the CPU's bfloat16 units. Scores are rounded to bfloat16 before the softmax, as in `core.blocked`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.kernels import is_ours

ROWS = 512  # queries in a block
SCORES = 2**21  # of a block: 4 MB of bfloat16
MANY = 1024  # keys from which this is the faster way
LANES = 16  # oneDNN is slower with other widths than multiples of it


def suits(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Whether `attend_many` takes these, and is the faster way."""
    return (
        mask is None
        and not is_causal
        and k.shape[2] >= MANY
        and q.shape[2] >= ROWS // 4
        and is_ours(q)
        and q.dtype == k.dtype == v.dtype
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def attend_many(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, H, T, D), bfloat16; k, v: (B, H or a divisor of it, S, D).

    Returns:
        (B, H, T, D), laid in memory as (B, T, H, D).
    """
    batch, heads, count, width = q.shape
    rows = min(ROWS, count)
    shared = heads // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    together = min(heads, max(1, SCORES // (rows * k.shape[2])))
    attended = torch.empty(batch, count, heads, width, dtype=q.dtype).transpose(1, 2)
    scores = torch.empty(together, rows, k.shape[2], dtype=q.dtype)
    for row in range(batch):
        for first in range(0, heads, together):
            some = slice(first, first + together)
            keys, values = k[row, some].contiguous().mT, F.pad(v[row, some], (0, -width % LANES))
            for start in range(0, count, rows):
                queries = q[row, some, start : start + rows]
                part = scores[: len(queries), : queries.shape[1]]
                torch.baddbmm(part, queries, keys, beta=0, alpha=1 / math.sqrt(width), out=part)
                torch.softmax(part, dim=-1, out=part)
                attended[row, some, start : start + rows] = torch.bmm(part, values)[..., :width]
    return attended
