"""DiT: the denoiser as a plain transformer over patches of the noisy latent (Peebles & Xie 2023).

The noise level shifts, scales and gates every block. The prompt is looked at through cross-attention (Chen et al. 2024,
"PixArt") or lies as further tokens before the patches.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.attention import Attention
from diptych.core.checks import settings_of
from diptych.core.feedforward import FeedForward
from diptych.core.linear import Linear
from diptych.core.norms import LayerNorm
from diptych.core.spelling import unknown
from diptych.image.adaptive import Leave, Modulation, embedder, normed
from diptych.image.clock import CLOCKS, features
from diptych.image.patches import POSITIONS, cropped, from_patches, place_angles, sincos_table, to_patches

PROMPTS = ("cross", "tokens")
TIME_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes and switches.

    Args:
        channels: of the noisy latent and of the prediction.
        patch: places a side of a token.
        widening: how many times wider the feed-forward is.
        context_width: of the prompt's vectors; prompt: "cross" or "tokens", how they are seen.
        pooled_width: of a vector of the whole prompt, which is told with the noise level; 0 is without.
        positions: "rotary", at any size; "table", sines and cosines added, for at most `side` patches a side.
        clock: the unit of the noise level, see `clock.CLOCKS`.
    """

    channels: int = 8
    patch: int = 2
    width: int = 256
    num_layers: int = 8
    num_heads: int = 4
    widening: int = 4
    context_width: int = 256
    prompt: str = "cross"
    pooled_width: int = 0
    has_qk_norm: bool = True
    positions: str = "rotary"
    side: int = 64
    clock: str = "log-snr"

    def __post_init__(self) -> None:
        sizes = ("channels", "patch", "width", "num_layers", "num_heads", "widening", "context_width", "side")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"DiT {name} must be at least 1, not {getattr(self, name)}")
        if self.width % (4 * self.num_heads):
            raise ValueError(f"DiT width must be a multiple of 4 x num_heads ({4 * self.num_heads}), not {self.width}")
        if self.pooled_width < 0:
            raise ValueError(f"DiT pooled_width must be at least 0, not {self.pooled_width}")
        for name, known in (("prompt", PROMPTS), ("positions", POSITIONS), ("clock", CLOCKS)):
            if getattr(self, name) not in known:
                raise unknown(f"DiT {name}", getattr(self, name), known)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises: ValueError for a key that is not known or has an impossible value."""
        return settings_of(cls, "DiT", values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def multiple(self) -> int:
        """What the sides of a latent must be multiples of."""
        return self.patch


class DiTBlock(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, heads, switches = config.width, config.num_heads, {"has_qk_norm": config.has_qk_norm}
        self.modulation = Modulation(width, 6)
        self.attention = Attention(width, heads, has_qkv_bias=True, has_output_bias=True, **switches)
        self.cross_attention: Attention | None = None
        if config.prompt == "cross":
            self.cross_norm = LayerNorm(width)
            self.cross_attention = Attention(
                width, heads, context_width=config.context_width, has_output_bias=True, **switches
            )
            nn.init.zeros_(self.cross_attention.output.weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.cross_attention.output.bias)  # type: ignore[arg-type]
        self.feedforward = FeedForward(
            width, config.widening * width, activation="gelu-tanh", is_gated=False, has_bias=True
        )

    def forward(
        self,
        x: Tensor,
        told: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        context: Tensor,
        mask: Tensor | None,
        mask_of_words: Tensor | None,
    ) -> Tensor:
        """x: (B, T, width); mask of x's own tokens and mask_of_words: bool, (B, 1, 1, T or S), or None."""
        shift, scale, gate, shift_after, scale_after, gate_after = self.modulation(told)
        x = torch.addcmul(x, gate, self.attention(normed(x, shift, scale), rotary=angles, mask=mask))
        if self.cross_attention is not None:
            x = x + self.cross_attention(self.cross_norm(x), context=context, mask=mask_of_words)
        return torch.addcmul(x, gate_after, self.feedforward(normed(x, shift_after, scale_after)))


class DiT(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.clock = config.clock
        width, numbers = config.width, config.channels * config.patch**2
        self.enter = Linear(numbers, width)
        self.time = embedder(TIME_WIDTH, width)
        self.pooled = embedder(config.pooled_width, width) if config.pooled_width else None
        self.words = Linear(config.context_width, width) if config.prompt == "tokens" else None
        if config.positions == "table":
            self.table: Tensor
            self.register_buffer("table", sincos_table(config.side, width), persistent=False)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.leave = Leave(width, numbers)

    @property
    def multiple(self) -> int:
        return self.config.multiple

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        mask: Tensor | None,
        pooled: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> Tensor:
        """Predict what it was trained to.

        Args:
            x: (B, C, H, W), H and W multiples of the patch.
            time: (B,), of each picture's noise level, in the unit of the clock.
            context: (B, S, context_width); mask: (B, S) bool, True where there is a word, or None: all are words.
            pooled: (B, pooled_width), where there is one. numbers: none are told.

        Returns:
            (B, C, H, W), in the dtype of x.
        """
        config = self.config
        height, width = x.shape[-2:]
        grid = height // config.patch, width // config.patch
        told = self.time(features(time, TIME_WIDTH, config.clock).to(x.dtype))
        if self.pooled is not None:
            if pooled is None:
                raise ValueError("this DiT needs the pooled prompt")
            told = told + self.pooled(pooled.to(x.dtype))
        told = F.silu(told)
        h = self.enter(to_patches(x, config.patch))
        if config.positions == "table":
            h = h + cropped(self.table, *grid).to(h.dtype)
        words = 0
        if self.words is not None:
            words = context.shape[1]
            h = torch.cat((self.words(context), h), dim=1)
        angles = None
        if config.positions == "rotary":
            half = config.width // config.num_heads // 2
            angles = place_angles(*grid, (half, half), words=words, device=x.device)
        mask_of_words = None if mask is None else mask[:, None, None, :]
        mask_of_all = None
        if mask is not None and words:
            mask_of_all = torch.cat((mask, mask.new_ones(len(mask), h.shape[1] - words)), dim=1)[:, None, None, :]
        for block in self.blocks:
            h = block(h, told, angles, context, mask_of_all, mask_of_words)
        return from_patches(self.leave(h[:, words:], told), height, width, config.patch)
