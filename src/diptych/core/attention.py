"""Attention, once for both panels: self or cross, grouped heads, rotary, optional normalisation of queries and keys."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core import blocked, flash, long_rows, many_queries
from diptych.core.few_queries import attend_few
from diptych.core.fused import linear_plus
from diptych.core.linear import Linear, linears
from diptych.core.norms import RMSNorm
from diptych.core.positions import apply_rotary
from diptych.core.precision import at_least_float32

Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v (Vaswani et al. 2017, eq. 1) with `num_kv_heads` shared keys and values
    (Ainslie et al. 2023).

    Args:
        width: of the input and the output.
        num_heads: of the queries; a multiple of num_kv_heads.
        num_kv_heads: of keys and values; num_heads when None.
        head_dim: width / num_heads when None.
        context_width: width of what is looked at in cross-attention; None is self-attention.
        has_qk_norm: RMS-normalise each query and key head before the rotation (Henry et al. 2020).
        norm_eps: of those norms.
        has_qkv_bias, has_output_bias: biases on the projections to queries, keys and values, and on the one after them.
        softcap: c bends the scores to c tanh(score / c) before the softmax (Gemma Team 2024, sec. 2); 0 leaves them.
        scale: of the scores, 1 / sqrt(head_dim) when None. T5 has 1.
        has_output: whether there is a projection after the heads; without it they come out side by side.
        pairs_neighbours: rotary positions turn components 2i and 2i + 1 together, see `positions.apply_rotary`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        context_width: int | None = None,
        has_qk_norm: bool = False,
        norm_eps: float = 1e-6,
        has_qkv_bias: bool = False,
        has_output_bias: bool = False,
        softcap: float = 0.0,
        scale: float | None = None,
        has_output: bool = True,
        pairs_neighbours: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or self.num_kv_heads < 1 or num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if head_dim is None and width % num_heads:
            raise ValueError(f"width ({width}) must be a multiple of num_heads ({num_heads}) unless head_dim is given")
        self.head_dim = width // num_heads if head_dim is None else head_dim
        self.softcap, self.scale = softcap, scale
        self.pairs_neighbours = pairs_neighbours
        source = width if context_width is None else context_width
        self.query = Linear(width, num_heads * self.head_dim, bias=has_qkv_bias)
        self.key = Linear(source, self.num_kv_heads * self.head_dim, bias=has_qkv_bias)
        self.value = Linear(source, self.num_kv_heads * self.head_dim, bias=has_qkv_bias)
        self.output: nn.Module = nn.Identity()
        if has_output:
            self.output = Linear(num_heads * self.head_dim, width, bias=has_output_bias)
        self.query_norm = RMSNorm(self.head_dim, norm_eps) if has_qk_norm else None
        self.key_norm = RMSNorm(self.head_dim, norm_eps) if has_qk_norm else None

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        is_causal: bool = False,
        store: Store | None = None,
        kept_rotary: tuple[Tensor, Tensor] | None = None,
        plus: Tensor | None = None,
    ) -> Tensor:
        """Look from x at the context (at x itself when None).

        Args:
            x: (B, T, width).
            context: (B, S, context_width).
            rotary: cos and sin from `positions.rotary`, for queries and keys alike (self-attention).
            mask: bool, broadcast to (B, 1, T, S); True may be looked at. Of a few queries over a cache it is additive.
            bias: what is added to the scores, broadcast to (B, H, T, S); not with a softcap, nor an additive mask.
            is_causal: no query looks at later keys; a mask that comes with it must say so, too.
            store: takes this call's keys and values (B, num_kv_heads, T, head_dim), returns all that may be looked at.
            kept_rotary: cos and sin for all keys that `store` returns; it is then given them unturned.
            plus: what the result is added to, (B, T, width).

        Returns:
            (B, T, width).
        """
        q, k, v = self.heads(x, context, side_by_side=rotary is None and store is None)
        if rotary is not None:
            q = apply_rotary(q, *rotary, self.pairs_neighbours)
            k = apply_rotary(k, *rotary, self.pairs_neighbours) if kept_rotary is None else k
        if store is not None:
            k, v = store(k, v)
        if kept_rotary is not None:
            k = apply_rotary(k, *kept_rotary, self.pairs_neighbours)
        seen = attend(q, k, v, mask, bias, is_causal=is_causal, softcap=self.softcap, scale=self.scale)
        beside = seen.transpose(1, 2).flatten(2)
        mixed: Tensor = self.output(beside) if plus is None else linear_plus(self.output, beside, plus)
        return mixed

    def heads(
        self, x: Tensor, context: Tensor | None = None, *, side_by_side: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x (B, T, width), keys and values of the context or of x, not turned yet: (B, heads, T or S, D).

        Args:
            side_by_side: nothing is done to them before they are looked at, so they may lie in one tensor.
        """
        if context is None:
            is_one = side_by_side and self.query_norm is None
            q, k, v = linears(x, (self.query, self.key, self.value), side_by_side=is_one)
        else:
            q, (k, v) = self.query(x), linears(context, (self.key, self.value))
        q = q.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
        k = k.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        v = v.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return q, k, v


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    is_causal: bool = False,
    softcap: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v by the kernel that is fastest here.

    Args:
        q: (B, H, T, D); k, v: (B, H or a divisor of it, S, D); mask, bias and is_causal as in `Attention.forward`.

    Returns:
        (B, H, T, D).
    """
    if bias is not None or scale is not None:
        return biased_attention(q, k, v, mask, bias, is_causal, scale)
    if mask is not None and mask.is_floating_point():
        return attend_few(q, k, v, mask, softcap)
    if softcap:
        return capped_attention(q, k, v, mask, is_causal, softcap)
    if flash.suits(q, k, v, mask, is_causal):
        return flash.flash_attention(q, k, v, mask, is_causal)
    if blocked.suits(q, k, v, mask, is_causal):
        return blocked.blocked_attention(q, k, v, mask, is_causal)
    if mask is not None and long_rows.suits(q, k, v, mask):
        return long_rows.attend_long(q, k, v, mask)
    if many_queries.suits(q, k, v, mask, is_causal):
        return many_queries.attend_many(q, k, v)
    is_grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal and mask is None, enable_gqa=is_grouped
    )


def capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, softcap: float) -> Tensor:
    """Attention whose scores are bent before the softmax, for which there is no kernel.

    Args:
        q: (B, H, T, D); k, v: (B, H or a divisor of it, S, D).
        mask: bool, broadcast to (B, 1, T, S); None with is_causal is the triangle.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = at_least_float32(q @ k.mT) / math.sqrt(q.shape[-1])
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None and is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    seen: Tensor = torch.softmax(scores, dim=-1).to(v.dtype) @ v
    return seen


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Attention with a bias on the scores, or a scale of its own.

    Args: as `capped_attention`; `bias` is broadcast to (B, H, T, S).
    """
    if bias is not None:
        bias = bias.to(q.dtype)
        if mask is None and is_causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal and mask is None, scale=scale, enable_gqa=is_grouped
    )


def within_window(mask: Tensor | None, places: Tensor, length: int, window: int) -> Tensor:
    """A causal mask in which a token sees itself and no more than the `window` - 1 before it (Beltagy et al. 2020).

    Args:
        mask: bool, broadcast to (B, 1, T, length); None is the triangle.
        places: (B or 1, T), the place of each query among the keys.

    Returns:
        bool, broadcast to (B, 1, T, length).
    """
    distance = places[:, None, :, None] - torch.arange(length, device=places.device)
    is_near = (distance >= 0) & (distance < window)
    return is_near if mask is None else mask & is_near
