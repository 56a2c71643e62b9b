"""Blocks in which the words of the prompt and the patches of the picture look at each other in one attention.

In a joint block each side has weights of its own (Esser et al. 2024, fig. 2b); in a single block both are one row of
tokens, and attention and feed-forward work beside each other (Black Forest Labs 2024, after Dehghani et al. 2023).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.attention import Attention, attend
from diptych.core.feedforward import FeedForward
from diptych.core.linear import Linear
from diptych.core.positions import apply_rotary
from diptych.image.adaptive import Modulation, normed

Angles = tuple[Tensor, Tensor]


class JointAttention(nn.Module):
    """Two attentions whose queries, keys and values lie side by side: words first, then patches.

    Args:
        is_last: the words have looked for the last time, and nothing comes out for them.
    """

    def __init__(self, width: int, heads: int, *, has_qk_norm: bool, is_last: bool) -> None:
        super().__init__()
        switches = {"has_qkv_bias": True, "has_output_bias": True, "has_qk_norm": has_qk_norm}
        self.words = Attention(width, heads, **switches, has_output=not is_last)
        self.patches = Attention(width, heads, **switches)
        self.is_last = is_last

    def forward(
        self, x: Tensor, words: Tensor, angles: Angles | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, N, width) and words (B, S, width); angles and mask are of S + N tokens."""
        q, k, v = self.heads(x, words, angles)
        seen = attend(q, k, v, mask).transpose(1, 2).flatten(2)
        of_words, of_patches = seen.split((words.shape[1], x.shape[1]), dim=1)
        return self.patches.output(of_patches), None if self.is_last else self.words.output(of_words)

    def heads(self, x: Tensor, words: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens: (B, heads, S + N, head_dim)."""
        pairs = zip(self.words.heads(words), self.patches.heads(x), strict=True)
        q, k, v = (torch.cat(pair, dim=2) for pair in pairs)
        if angles is not None:
            q, k = (apply_rotary(turned, *angles, pairs_neighbours=True) for turned in (q, k))
        return q, k, v


class JointBlock(nn.Module):
    """Args:
    is_dual: the patches look at each other in a second attention, too (Stable Diffusion 3.5 medium).
    is_last: see `JointAttention`.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, has_qk_norm: bool, is_dual: bool, is_last: bool) -> None:
        super().__init__()
        self.modulation = Modulation(width, 9 if is_dual else 6)
        self.words_modulation = Modulation(width, 2 if is_last else 6)
        self.attention = JointAttention(width, heads, has_qk_norm=has_qk_norm, is_last=is_last)
        self.second_attention: Attention | None = None
        if is_dual:
            self.second_attention = Attention(
                width, heads, has_qkv_bias=True, has_output_bias=True, has_qk_norm=has_qk_norm
            )
        thinking = {"activation": "gelu-tanh", "is_gated": False, "has_bias": True}
        self.feedforward = FeedForward(width, hidden, **thinking)  # type: ignore[arg-type]
        self.words_feedforward: FeedForward | None = None
        if not is_last:
            self.words_feedforward = FeedForward(width, hidden, **thinking)  # type: ignore[arg-type]

    def forward(
        self, x: Tensor, words: Tensor, told: Tensor, angles: Angles | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Patches (B, N, width) and words (B, S, width) to the same; the words of the last block are as they were."""
        shift, scale, gate, *after = self.modulation(told)
        if self.words_feedforward is None:
            words_scale, words_shift = self.words_modulation(told)
        else:
            words_shift, words_scale, words_gate, *words_after = self.words_modulation(told)
        looked, words_looked = self.attention(
            normed(x, shift, scale), normed(words, words_shift, words_scale), angles, mask
        )
        second = None
        if self.second_attention is not None:
            second = after[5], self.second_attention(normed(x, after[3], after[4]))
        x = torch.addcmul(x, gate, looked)
        if second is not None:
            x = torch.addcmul(x, *second)
        x = torch.addcmul(x, after[2], self.feedforward(normed(x, *after[:2])))
        if self.words_feedforward is not None:
            words = torch.addcmul(words, words_gate, words_looked)
            thought = self.words_feedforward(normed(words, *words_after[:2]))
            words = torch.addcmul(words, words_after[2], thought)
        return x, words


class SingleBlock(nn.Module):
    """Words and patches as one row of tokens: look and think at once, and leave through one layer."""

    def __init__(self, width: int, heads: int, hidden: int, *, has_qk_norm: bool) -> None:
        super().__init__()
        self.modulation = Modulation(width, 3)
        self.attention = Attention(
            width, heads, has_qkv_bias=True, has_qk_norm=has_qk_norm, has_output=False, pairs_neighbours=True
        )
        self.up = Linear(width, hidden)
        self.output = Linear(width + hidden, width)

    def forward(self, x: Tensor, told: Tensor, angles: Angles | None, mask: Tensor | None) -> Tensor:
        shift, scale, gate = self.modulation(told)
        seen = normed(x, shift, scale)
        thought = F.gelu(self.up(seen), approximate="tanh")
        looked = self.attention(seen, rotary=angles, mask=mask)
        return torch.addcmul(x, gate, self.output(torch.cat((looked, thought), dim=-1)))
