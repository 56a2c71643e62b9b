"""The U-Net: sees a noisy picture, the noise level and the prompt, and predicts the noise.

Down to half the size and up again, with a straight way across at each size (Ronneberger et al. 2015; for diffusion, Ho
et al. 2020, app. B), and at each size a transformer that lets places look at each other and at the words of the prompt
(Rombach et al. 2022, sec. 3.3). The house's own and those of Stable Diffusion 1, 2 and XL (Podell et al. 2023) are
settings of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.checks import settings_of
from diptych.core.feedforward import ACTIVATIONS
from diptych.core.linear import Linear
from diptych.core.norms import NORMS
from diptych.core.spelling import unknown
from diptych.image.clock import CLOCKS, features
from diptych.image.unet_blocks import BlockSwitches, Stage


@dataclass(frozen=True, kw_only=True)
class UNetConfig(BlockSwitches):
    """Sizes and switches; see `BlockSwitches` for how a block is built.

    Args:
        channels: of the noisy picture and of the predicted noise.
        widths: channels at full, half, ... size.
        blocks: residual blocks at each size on the way down; one more on the way up.
        has_attention: for each size, whether a transformer follows each residual block. In the middle one always does.
        depths: for each size, blocks of its transformers, where they are framed; () is one each.
        head_dim: of the attention; heads: for each size, how many instead; () has as many as head_dim comes to.
        clock: the unit of the noise level, see `clock.CLOCKS`.
        has_cosines_first, frequency_shift: how it becomes a vector, see `clock.features`.
        addition_width: of the pooled prompt and the vectors of further numbers together, which are added to that of the
            noise level (Podell et al. 2023, sec. 2.2); 0 is without.
        number_width: of the vector of each of those numbers.
        has_convolved_frame: those who publish it keep the linear layers of its frames as convolutions of 1 x 1; what
            is written for them has to fit. Nothing else depends on it.
    """

    channels: int = 8
    widths: tuple[int, ...] = (128, 256)
    blocks: int = 1
    has_attention: tuple[bool, ...] = (True, True)
    depths: tuple[int, ...] = ()
    head_dim: int = 64
    heads: tuple[int, ...] = ()
    clock: str = "log-snr"
    has_cosines_first: bool = False
    frequency_shift: float = 0.0
    addition_width: int = 0
    number_width: int = 256
    has_convolved_frame: bool = False

    def __post_init__(self) -> None:
        counts = self.heads or (1,) * len(self.widths)
        divisors = [self.groups, *(() if self.heads else (self.head_dim,))]
        if min(divisors) < 1 or not self.widths or any(w < 1 or w % n for w in self.widths for n in divisors):
            of_heads = "" if self.heads else " and of head_dim"
            raise ValueError(f"U-Net widths must be multiples of {self.groups}{of_heads}, not {list(self.widths)}")
        for name in ("has_attention", "depths", "heads"):
            if len(getattr(self, name)) != len(self.widths) and (getattr(self, name) or name == "has_attention"):
                raise ValueError(f"U-Net {name} needs one entry for each of widths")
        if min(counts) < 1 or any(width % count for width, count in zip(self.widths, counts, strict=True)):
            raise ValueError(f"U-Net heads must divide the widths {list(self.widths)}, not be {list(self.heads)}")
        if min(self.channels, self.blocks, self.widening, self.number_width, *self.depths) < 1:
            raise ValueError("U-Net channels, blocks, widening, number_width and depths must be at least 1")
        if not self.is_framed and max(self.depths, default=1) > 1:
            raise ValueError("U-Net depths above 1 need is_framed")
        if self.widths[0] % 2 or self.number_width % 2 or self.frequency_shift >= self.widths[0] // 2:
            raise ValueError("U-Net widths[0] and number_width must be even, frequency_shift below half of widths[0]")
        for name, known in (("clock", CLOCKS), ("norm", NORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise unknown(f"U-Net {name}", getattr(self, name), known)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises: ValueError for a key that is not known or has an impossible value."""
        return settings_of(cls, "U-Net", values)

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def multiple(self) -> int:
        """What the sides of a latent must be multiples of."""
        return 1 << (len(self.widths) - 1)

    def heads_of(self, level: int) -> int:
        return self.heads[level] if self.heads else self.widths[level] // self.head_dim

    def depth_of(self, level: int) -> int:
        return self.depths[level] if self.depths else 1


class UNet(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.clock = config.clock
        widths, first = config.widths, config.widths[0]
        time_width = 4 * first
        self.time = nn.Sequential(Linear(first, time_width), nn.SiLU(), Linear(time_width, time_width))
        self.addition: nn.Module | None = None
        if config.addition_width:
            self.addition = nn.Sequential(
                Linear(config.addition_width, time_width), nn.SiLU(), Linear(time_width, time_width)
            )
        self.enter = nn.Conv2d(config.channels, first, 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        crossing = [first]
        source = first

        def stage(source: int, level: int, depth: int) -> Stage:
            return Stage(source, widths[level], time_width, config.heads_of(level), depth, config)

        for level, width in enumerate(widths):
            depth = config.depth_of(level) if config.has_attention[level] else 0
            stages = nn.ModuleList()
            for _ in range(config.blocks):
                stages.append(stage(source, level, depth))
                source = width
                crossing.append(source)
            self.down.append(stages)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(source, source, 3, stride=2, padding=1))
                crossing.append(source)
        last = len(widths) - 1
        self.middle = nn.ModuleList([stage(source, last, config.depth_of(last)), stage(source, last, 0)])
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            depth = config.depth_of(level) if config.has_attention[level] else 0
            stages = nn.ModuleList()
            for _ in range(config.blocks + 1):
                stages.append(stage(source + crossing.pop(), level, depth))
                source = width
            self.up.append(stages)
            if level > 0:
                self.grow.append(nn.Conv2d(source, source, 3, padding=1))
        painted = nn.Conv2d(source, config.channels, 3, padding=1)
        nn.init.zeros_(painted.weight)
        nn.init.zeros_(painted.bias)  # type: ignore[arg-type]
        self.leave = nn.Sequential(nn.GroupNorm(config.groups, source), nn.SiLU(), painted)

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
        """Predict the noise, or what it was trained to.

        Args:
            x: (B, C, H, W).
            time: (B,), of each picture's noise level, in the unit of the clock.
            context: (B, S, context_width); mask: (B, S) bool, True where there is a word, or None: all are words.
            pooled: (B, P), a vector of the whole prompt; numbers: (B, K): both where there is an addition_width, of
                P + K number_width.

        Returns:
            (B, C, H, W), in the dtype of x.
        """
        told = self._told(time, pooled, numbers, x.dtype)
        mask = None if mask is None else mask[:, None, None, :]
        x = self.enter(x)
        crossing = [x]
        for level, stages in enumerate(self.down):
            for stage in stages:  # type: ignore[attr-defined]
                x = stage(x, told, context, mask)
                crossing.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
                crossing.append(x)
        for stage in self.middle:
            x = stage(x, told, context, mask)
        for level, stages in enumerate(self.up):
            for stage in stages:  # type: ignore[attr-defined]
                x = stage(torch.cat((x, crossing.pop()), dim=1), told, context, mask)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, size=crossing[-1].shape[-2:], mode="nearest"))
        predicted: Tensor = self.leave(x)
        return predicted

    def _told(self, time: Tensor, pooled: Tensor | None, numbers: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every residual block is told, (B, time_width)."""
        config = self.config
        waves = partial(features, has_cosines_first=config.has_cosines_first, shift=config.frequency_shift)
        told: Tensor = self.time(waves(time, config.widths[0], config.clock).to(dtype))
        if self.addition is not None:
            if pooled is None or numbers is None:
                raise ValueError("this U-Net needs the pooled prompt and the sizes of the picture (pooled, numbers)")
            sizes = waves(numbers.flatten(), config.number_width).reshape(len(numbers), -1)
            told = told + self.addition(torch.cat((pooled.to(dtype), sizes.to(dtype)), dim=-1))
        return F.silu(told)
