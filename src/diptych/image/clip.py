"""CLIP's towers: a transformer that reads a caption, and one that sees a picture (Radford et al. 2021).

Painters take the text tower's hidden states as context (Stable Diffusion 1 and 2 the last, SDXL and SD3 the last but
one) and what it says at the end of the caption as one vector for the whole prompt. With both towers and their
projections, pictures and captions are points of one space; see `image.pairing`.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.checks import settings_of
from diptych.core.feedforward import ACTIVATIONS
from diptych.core.linear import Linear
from diptych.core.norms import LayerNorm
from diptych.core.spelling import unknown
from diptych.image.encoders import EncoderBlock

MOST_LAYERS = 1000


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What both towers have.

    Args:
        hidden: width within the feed-forwards.
        activation: one of `core.feedforward.ACTIVATIONS`: "quick-gelu" in OpenAI's, "gelu" in OpenCLIP's.
        projection: dimensions of the space that both towers meet in; 0 is none.
    """

    width: int = 512
    hidden: int = 2048
    num_layers: int = 12
    num_heads: int = 8
    activation: str = "quick-gelu"
    norm_eps: float = 1e-5
    projection: int = 0

    def __post_init__(self) -> None:
        sizes = (self.width, self.hidden, self.num_layers, self.num_heads, self.projection + 1)
        if min(sizes) < 1 or self.width % self.num_heads or self.num_layers > MOST_LAYERS:
            raise ValueError(
                f"a tower's sizes must be positive, num_layers at most {MOST_LAYERS}, width ({self.width}) a multiple "
                f"of num_heads ({self.num_heads})"
            )
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return settings_of(cls, "tower", values)

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList(
            EncoderBlock(
                self.width,
                self.num_heads,
                self.hidden,
                norm="layer",
                norm_eps=self.norm_eps,
                activation=self.activation,
                is_gated=False,
                has_bias=True,
            )
            for _ in range(self.num_layers)
        )


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig(TowerConfig):
    """Args:
    length: tokens that a caption may have, the begin and the end among them.
    end: the token that ends a caption, where the whole is read off; None is the token of the highest number, which
        the end is in CLIP's vocabulary.
    """

    vocab_size: int = 49408
    length: int = 77
    end: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.vocab_size, self.length - 2) < 1:
            raise ValueError(
                f"a text tower needs a vocab_size of at least 1 and a length of at least 3, not {self.vocab_size} and "
                f"{self.length}"
            )


@dataclass(frozen=True, kw_only=True)
class PictureTowerConfig(TowerConfig):
    """Args:
    size: pixels a side of the pictures that it sees.
    patch: pixels a side of what becomes one vector.
    mean, std: of a channel of the pictures that it learned from, in 0..1.
    """

    size: int = 224
    patch: int = 32
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch < 1 or self.size < 1 or self.size % self.patch:
            raise ValueError(f"a picture tower's size ({self.size}) must be a multiple of its patch ({self.patch})")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("a picture tower's mean and std must be three numbers each, std above 0")


class Read(NamedTuple):
    """context (B, S, width): a vector a token; pooled (B, width or projection): one of the whole."""

    context: Tensor
    pooled: Tensor


class TextTower(nn.Module):
    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)
        self.blocks = config.blocks()
        self.norm = LayerNorm(config.width, config.norm_eps)
        self.projection = Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, tokens: Tensor, *, skip: int = 0, is_normed: bool = True) -> Read:
        """tokens (B, S) int64, S at most `length`.

        No mask: a token looks at those before it, and what stands after the end is padding.

        Args:
            skip: the context is what this many of the last layers have not yet seen ("clip skip"); `pooled` has
                always seen all.
            is_normed: whether the last norm is put on the context.
        """
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        context = x
        for layer, block in enumerate(self.blocks, 1):
            x = block(x, is_causal=True)
            if layer == len(self.blocks) - skip:
                context = x
        last = self.norm(x)
        if is_normed:
            context = last if skip == 0 else self.norm(context)
        end = self.config.end
        places = tokens.argmax(-1) if end is None else (tokens == end).int().argmax(-1)  # of the first, if several
        pooled = last[torch.arange(len(tokens), device=tokens.device), places]
        return Read(context, pooled if self.projection is None else self.projection(pooled))


class PictureTower(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): patches and a class token, whose last state is the picture's."""

    def __init__(self, config: PictureTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.start = nn.Parameter(torch.empty(config.width))  # the class token
        nn.init.normal_(self.start, std=config.width**-0.5)
        self.positions = nn.Embedding(1 + (config.size // config.patch) ** 2, config.width)
        nn.init.normal_(self.positions.weight, std=config.width**-0.5)
        self.first_norm = LayerNorm(config.width, config.norm_eps)
        self.blocks = config.blocks()
        self.norm = LayerNorm(config.width, config.norm_eps)
        self.projection = Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, pictures: Tensor) -> Read:
        """pictures (B, 3, H, W) in -1..1, of any size -> a vector a patch (the class token's first), and the whole."""
        seen = self.patches(self.prepared(pictures).to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat((self.start.to(seen.dtype).expand(len(seen), 1, -1), seen), dim=1)
        x = self.first_norm(x + self.positions.weight)
        for block in self.blocks:
            x = block(x)
        pooled = self.norm(x[:, 0])
        return Read(x, pooled if self.projection is None else self.projection(pooled))

    def prepared(self, pictures: Tensor) -> Tensor:
        """Brought to (B, 3, size, size): the shorter side to `size`, bicubic, the middle of the longer; then `mean`
        and `std` taken out."""
        size = self.config.size
        height, width = pictures.shape[-2:]
        if (height, width) != (size, size):
            short = min(height, width)
            scaled = (max(size, height * size // short), max(size, width * size // short))
            pictures = F.interpolate(pictures, scaled, mode="bicubic", antialias=True, align_corners=False)
            top, left = ((side - size) // 2 for side in scaled)
            pictures = pictures[..., top : top + size, left : left + size].clamp(-1, 1)
        mean, std = (pictures.new_tensor(values)[:, None, None] for values in (self.config.mean, self.config.std))
        return ((pictures + 1) / 2 - mean) / std
