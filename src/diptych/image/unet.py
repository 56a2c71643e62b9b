"""The U-Net: sees a noisy picture, the noise level and the prompt, and predicts the noise.

Down to half the size and up again, with a straight way across at each size (Ronneberger et al. 2015; for diffusion, Ho
et al. 2020, app. B), and at each size a transformer that lets places look at each other and at the words of the prompt
(Rombach et al. 2022, sec. 3.3).
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.attention import Attention
from diptych.core.feedforward import FeedForward
from diptych.core.norms import RMSNorm
from diptych.core.spelling import unknown


@dataclass(frozen=True)
class UNetConfig:
    """Args:
    channels: of the noisy picture and of the predicted noise.
    widths: channels at full, half, ... size.
    blocks: residual blocks at each size on the way down; one more on the way up.
    has_attention: for each size, whether a transformer block follows each residual block.
    head_dim: of the attention.
    context_width: of the prompt's vectors.
    """

    channels: int = 8
    widths: tuple[int, ...] = (128, 256)
    blocks: int = 1
    has_attention: tuple[bool, ...] = (True, True)
    head_dim: int = 64
    context_width: int = 256

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "UNetConfig":
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("U-Net setting", key, known)
        lists = {key: tuple(values.get(key, getattr(cls, key))) for key in ("widths", "has_attention")}
        config = cls(**{**values, **lists})
        if not config.widths or any(width < 32 or width % 32 or width % config.head_dim for width in config.widths):
            raise ValueError(f"U-Net widths must be multiples of 32 and of head_dim, not {list(config.widths)}")
        if len(config.has_attention) != len(config.widths):
            raise ValueError("U-Net has_attention needs one entry for each of widths")
        if min(config.channels, config.blocks, config.context_width) < 1:
            raise ValueError("U-Net channels, blocks and context_width must be at least 1")
        return config

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "widths": list(self.widths), "has_attention": list(self.has_attention)}


def time_features(log_snr: Tensor, width: int) -> Tensor:
    """Sines and cosines of the noise level (B,) at geometric frequencies (Vaswani et al. 2017, sec. 3.5): (B, width).

    The level is its log signal-to-noise ratio, which means the same on every path.
    """
    frequencies = torch.exp(-math.log(1000.0) * torch.arange(width // 2, device=log_snr.device) / (width // 2))
    angles = 8 * log_snr.float()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class ResidualBlock(nn.Module):
    """Two convolutions; the noise level scales and shifts the second one's norm (Dhariwal & Nichol 2021, sec. 3)."""

    def __init__(self, source: int, width: int, time_width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, source)
        self.conv1 = nn.Conv2d(source, width, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * width)
        self.norm2 = nn.GroupNorm(32, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(source, width, 1) if source != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        kept: Tensor = self.skip(x)
        return kept + h


class TransformerBlock(nn.Module):
    """Places look at each other, then at the prompt, then think: (B, C, H, W) to the same."""

    def __init__(self, width: int, head_dim: int, context_width: int) -> None:
        super().__init__()
        heads = width // head_dim
        self.self_norm = RMSNorm(width)
        self.self_attention = Attention(width, heads, has_qk_norm=True)
        self.cross_norm = RMSNorm(width)
        self.cross_attention = Attention(width, heads, context_width=context_width, has_qk_norm=True)
        self.feedforward_norm = RMSNorm(width)
        self.feedforward = FeedForward(width, 2 * width)
        for last in (self.self_attention.output, self.cross_attention.output, self.feedforward.down):
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        h = x.permute(0, 2, 3, 1).reshape(batch, height * columns, width)
        h = h + self.self_attention(self.self_norm(h))
        h = h + self.cross_attention(self.cross_norm(h), context=context, mask=mask[:, None, None, :])
        h = h + self.feedforward(self.feedforward_norm(h))
        picture: Tensor = h.reshape(batch, height, columns, width).permute(0, 3, 1, 2)
        return picture


class Stage(nn.Module):
    """A residual block, and the transformer block after it where this size has one."""

    def __init__(self, source: int, width: int, time_width: int, config: UNetConfig, has_attention: bool) -> None:
        super().__init__()
        self.residual = ResidualBlock(source, width, time_width)
        self.transformer = TransformerBlock(width, config.head_dim, config.context_width) if has_attention else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        h: Tensor = self.residual(x, time)
        return h if self.transformer is None else self.transformer(h, context, mask)


class UNet(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, first = config.widths, config.widths[0]
        time_width = 4 * first
        self.time = nn.Sequential(nn.Linear(first, time_width), nn.SiLU(), nn.Linear(time_width, time_width), nn.SiLU())
        self.enter = nn.Conv2d(config.channels, first, 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        crossing = [first]
        source = first
        for level, width in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(config.blocks):
                stages.append(Stage(source, width, time_width, config, config.has_attention[level]))
                source = width
                crossing.append(source)
            self.down.append(stages)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(source, source, 3, stride=2, padding=1))
                crossing.append(source)
        self.middle = nn.ModuleList(
            [Stage(source, source, time_width, config, True), Stage(source, source, time_width, config, False)]
        )
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(config.blocks + 1):
                stages.append(Stage(source + crossing.pop(), width, time_width, config, config.has_attention[level]))
                source = width
            self.up.append(stages)
            if level > 0:
                self.grow.append(nn.Conv2d(source, source, 3, padding=1))
        last = nn.Conv2d(source, config.channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.leave = nn.Sequential(nn.GroupNorm(32, source), nn.SiLU(), last)

    @property
    def multiple(self) -> int:
        """What the sides of a latent must be multiples of."""
        return 1 << (len(self.config.widths) - 1)

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        context: Tensor,
        mask: Tensor,
        pooled: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise.

        Args:
            x: (B, C, H, W), H and W multiples of 2^(len(widths) - 1).
            log_snr: (B,), of each picture's noise level.
            context: (B, S, context_width), mask: (B, S) bool, True where there is a word.

        Returns:
            (B, C, H, W), in the dtype of x.
        """
        time = self.time(time_features(log_snr, self.config.widths[0]).to(x.dtype))
        x = self.enter(x)
        crossing = [x]
        for level, stages in enumerate(self.down):
            for stage in stages:  # type: ignore[attr-defined]
                x = stage(x, time, context, mask)
                crossing.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
                crossing.append(x)
        for stage in self.middle:
            x = stage(x, time, context, mask)
        for level, stages in enumerate(self.up):
            for stage in stages:  # type: ignore[attr-defined]
                x = stage(torch.cat((x, crossing.pop()), dim=1), time, context, mask)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        predicted: Tensor = self.leave(x)
        return predicted
