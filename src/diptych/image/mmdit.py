"""MMDiT: a transformer in which the prompt's words and the picture's patches are both tokens (Esser et al. 2024).

Stable Diffusion 3 and 3.5 (joint blocks, a table of places) and Flux.1 (joint blocks, then single ones, rotary places)
are settings of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.checks import settings_of
from diptych.core.linear import Linear
from diptych.core.spelling import unknown
from diptych.image.adaptive import Leave, embedder
from diptych.image.clock import CLOCKS, features
from diptych.image.joint import JointBlock, SingleBlock
from diptych.image.patches import POSITIONS, cropped, from_patches, place_angles, sincos_table, to_patches

TIME_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Sizes and switches.

    Args:
        channels: of the noisy latent and of the prediction.
        patch: places a side of a token.
        head_dim: width / num_heads.
        joint_layers, single_layers: blocks of each kind.
        dual_layers: joint blocks, by number from 0, whose patches look at each other in a second attention.
        ends_words: nothing comes out for the words after the last joint block; not with single blocks.
        context_width: of the prompt's vectors; pooled_width: of the vector of the whole prompt, 0 is without.
        has_guidance: the guidance scale is told to the network, which was distilled from one under guidance (Meng et
            al. 2023).
        positions: "table", added, for at most `side` patches a side; "rotary", for any number.
        spacing: of the places with which a new table begins.
        axes: components of each head that turn with each axis; the last two are row and column.
        has_channels_last: order of the numbers in a patch on the way out, see `patches.from_patches`.
        clock: the unit of the noise level, see `clock.CLOCKS`.
    """

    channels: int = 16
    patch: int = 2
    num_heads: int = 4
    head_dim: int = 64
    joint_layers: int = 8
    single_layers: int = 0
    dual_layers: tuple[int, ...] = ()
    ends_words: bool = True
    widening: int = 4
    context_width: int = 256
    pooled_width: int = 0
    has_guidance: bool = False
    has_qk_norm: bool = True
    positions: str = "table"
    side: int = 64
    spacing: float = 1.0
    axes: tuple[int, ...] = ()
    has_channels_last: bool = False
    clock: str = "flow"

    def __post_init__(self) -> None:
        for name in ("channels", "patch", "num_heads", "head_dim", "joint_layers", "widening", "context_width", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"MMDiT {name} must be at least 1, not {getattr(self, name)}")
        for name in ("single_layers", "pooled_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"MMDiT {name} must be at least 0, not {getattr(self, name)}")
        if self.width % 4:
            raise ValueError(f"MMDiT num_heads x head_dim must be a multiple of 4, not {self.width}")
        if self.dual_layers and not 0 <= min(self.dual_layers) <= max(self.dual_layers) < self.joint_layers:
            raise ValueError(
                f"MMDiT dual_layers must be below joint_layers ({self.joint_layers}), not {list(self.dual_layers)}"
            )
        if self.ends_words and self.single_layers:
            raise ValueError("MMDiT ends_words must be false where single blocks follow: they need the words")
        is_rotary = self.positions == "rotary"
        if is_rotary and (len(self.axes) < 2 or any(n % 2 for n in self.axes) or sum(self.axes) != self.head_dim):
            raise ValueError(
                f"MMDiT axes must be two or more even numbers that add up to head_dim ({self.head_dim}), "
                f"not {list(self.axes)}"
            )
        for name, known in (("positions", POSITIONS), ("clock", CLOCKS)):
            if getattr(self, name) not in known:
                raise unknown(f"MMDiT {name}", getattr(self, name), known)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises: ValueError for a key that is not known or has an impossible value."""
        return settings_of(cls, "MMDiT", values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"dual_layers": list(self.dual_layers), "axes": list(self.axes)}

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def multiple(self) -> int:
        """What the sides of a latent must be multiples of."""
        return self.patch


class MMDiT(nn.Module):
    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.clock = config.clock
        width, heads, hidden = config.width, config.num_heads, config.widening * config.width
        numbers = config.channels * config.patch**2
        self.enter = Linear(numbers, width)
        self.words = Linear(config.context_width, width)
        self.time = embedder(TIME_WIDTH, width)
        self.pooled = embedder(config.pooled_width, width) if config.pooled_width else None
        self.guidance = embedder(TIME_WIDTH, width) if config.has_guidance else None
        self.table: nn.Parameter | None = None
        if config.positions == "table":
            self.table = nn.Parameter(sincos_table(config.side, width, config.spacing))
        last = config.joint_layers - 1 if config.ends_words else None
        self.joint = nn.ModuleList(
            JointBlock(
                width,
                heads,
                hidden,
                has_qk_norm=config.has_qk_norm,
                is_dual=layer in config.dual_layers,
                is_last=layer == last,
            )
            for layer in range(config.joint_layers)
        )
        self.single = nn.ModuleList(
            SingleBlock(width, heads, hidden, has_qk_norm=config.has_qk_norm) for _ in range(config.single_layers)
        )
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
            pooled: (B, pooled_width), where there is one.
            numbers: (B, 1), the guidance scale, where it is told.

        Returns:
            (B, C, H, W), in the dtype of x.
        """
        config, words = self.config, context.shape[1]
        height, width = x.shape[-2:]
        grid = height // config.patch, width // config.patch
        told = self._told(time, pooled, numbers, x.dtype)
        h, said = self.enter(to_patches(x, config.patch)), self.words(context)
        angles = None
        if self.table is not None:
            h = h + cropped(self.table, *grid).to(h.dtype)
        else:
            angles = place_angles(*grid, config.axes, words=words, pairs_neighbours=True, device=x.device)
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(len(mask), h.shape[1])), dim=1)[:, None, None, :]
        for block in self.joint:
            h, said = block(h, said, told, angles, mask)
        if len(self.single):
            row = torch.cat((said, h), dim=1)
            for block in self.single:
                row = block(row, told, angles, mask)
            h = row[:, words:]
        rows = self.leave(h, told)
        return from_patches(rows, height, width, config.patch, has_channels_last=config.has_channels_last)

    def _told(self, time: Tensor, pooled: Tensor | None, numbers: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every block is told, (B, width), bent already."""
        clock = self.config.clock
        told: Tensor = self.time(features(time, TIME_WIDTH, clock, has_cosines_first=True).to(dtype))
        if self.guidance is not None:
            if numbers is None:
                raise ValueError("this MMDiT needs the guidance scale (numbers)")
            scale = features(1000 * numbers[:, 0].float(), TIME_WIDTH, has_cosines_first=True)
            told = told + self.guidance(scale.to(dtype))
        if self.pooled is not None:
            if pooled is None:
                raise ValueError("this MMDiT needs the pooled prompt")
            told = told + self.pooled(pooled.to(dtype))
        return F.silu(told)
