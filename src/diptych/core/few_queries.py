"""Attention of a few new tokens over many that a cache keeps, as two products of batches of matrices.

When a text is written there is one query a head, and torch's kernel for the CPU, made for long rows, takes three to
twenty times as long as reading the keys and values would. Here the queries of all heads that share keys are the rows of
one matrix, so that each key is read once. Keys and values are taken as the cache holds them, its unused end included:
what may not be looked at gets a score of -inf, and the products need no copy.
"""

import math

import torch
from torch import Tensor

from diptych.core.kernels import onednn
from diptych.core.precision import at_least_float32

FEW = 16  # new tokens of a text up to which this is the faster way
SMALL = 2**17  # numbers of keys up to which float32 is faster: its products begin sooner


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: 0 where a bool mask is True, -inf where it is False."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


def attend_few(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, softcap: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v; with a softcap c, of c tanh(q k^T / (sqrt(D) c)) + bias.

    Args:
        q: (B, H, T, D); k, v: (B, H or a divisor of it, S, D).
        bias: broadcast to (B, H, T, S), of the dtype of q.

    Returns:
        (B, H, T, D).
    """
    batch, heads, count, width = q.shape
    shared = batch * k.shape[1]
    queries, keys, values = q.reshape(shared, -1, width), k.flatten(0, 1), v.flatten(0, 1)
    if keys.is_cuda and not softcap:  # the scores leave the matrix units in float32, and the bias needs no copy
        scores = torch.bmm(queries, keys.mT, out_dtype=torch.float32).view(batch, heads, count, -1)
        odds = torch.softmax(torch.add(bias, scores, alpha=1 / math.sqrt(width)), dim=-1).to(v.dtype)
        return torch.bmm(odds.view(shared, -1, k.shape[2]), values).view(batch, heads, count, width)
    if keys.numel() <= SMALL and keys.itemsize < 4:
        queries, keys, values, bias = queries.float(), keys.float(), values.float(), bias.float()
    bias = bias.expand(batch, heads, count, k.shape[2]).reshape(shared, -1, k.shape[2])
    if torch.compiler.is_compiling():  # which cannot see what oneDNN is told, and need not
        seen = _attended(queries, keys, values, bias, softcap)
    else:
        with onednn(True):
            seen = _attended(queries, keys, values, bias, softcap)
    return seen.view(batch, heads, count, width).to(v.dtype)


def _attended(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, softcap: float) -> Tensor:
    """The same for matrices in a row: (N, T, D) from queries (N, T, D), keys and values (N, S, D), bias (N, T, S)."""
    scale = 1 / math.sqrt(queries.shape[-1])
    if softcap:
        scores = at_least_float32(torch.bmm(queries, keys.mT)) * (scale / softcap)
        scores = scores.tanh_().mul_(softcap).add_(bias)
    else:
        scores = torch.baddbmm(bias, queries, keys.mT, alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1).to(values.dtype), values)
