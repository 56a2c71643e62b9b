"""T5's encoder (Raffel et al. 2020), which SD3 and Flux read prompts with: every token looks at every other.

Where a token stands is told by a bias on attention's scores that depends on the distance alone, one for all layers;
the scores are not divided by the square root of the heads' width.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from diptych.core.checks import settings_of
from diptych.core.feedforward import ACTIVATIONS
from diptych.core.norms import RMSNorm
from diptych.core.spelling import unknown
from diptych.image.encoders import EncoderBlock

MOST_LAYERS = 1000


@dataclass(frozen=True)
class T5Config:
    """Args:
    buckets: kinds of distance that the bias tells apart, before and behind together.
    farthest: tokens from which all are alike.
    is_gated: of the feed-forwards, as in version 1.1.
    """

    vocab_size: int = 32128
    width: int = 512
    head_dim: int = 64
    hidden: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    buckets: int = 32
    farthest: int = 128
    activation: str = "gelu-tanh"
    is_gated: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.width, self.head_dim, self.hidden, self.num_layers, self.num_heads)
        if min(sizes) < 1 or self.num_layers > MOST_LAYERS:
            raise ValueError(f"T5's sizes must be positive, num_layers at most {MOST_LAYERS}")
        if self.buckets < 4 or self.buckets % 4 or self.farthest <= self.buckets // 4:
            raise ValueError(
                f"T5's buckets ({self.buckets}) must be a multiple of 4, and farthest ({self.farthest}) above a "
                "quarter of them"
            )
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return settings_of(cls, "T5", values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class T5Encoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.distances = nn.Embedding(config.buckets, config.num_heads)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                config.width,
                config.num_heads,
                config.hidden,
                head_dim=config.head_dim,
                norm_eps=config.norm_eps,
                activation=config.activation,
                is_gated=config.is_gated,
                scale=1.0,
            )
            for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (B, S) int64 -> (B, S, width). mask (B, S) bool, True where there is a token; painters give none."""
        x = self.embedding(tokens)
        kinds = distance_buckets(tokens.shape[1], self.config.buckets, self.config.farthest).to(tokens.device)
        bias = self.distances(kinds).permute(2, 0, 1)[None].to(x.dtype)  # (1, H, S, S)
        if mask is not None:
            bias, mask = bias.expand(len(x), -1, -1, -1), mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask=mask, bias=bias)
        context: Tensor = self.norm(x)
        return context


def distance_buckets(length: int, buckets: int, farthest: int) -> Tensor:
    """The kind of distance from each query to each key, (length, length), int64.

    Half of the kinds are for keys behind the query. Of either half, one half is a kind a token, the other grows with
    the logarithm of the distance up to `farthest` (Raffel et al. 2020, sec. 2.1).
    """
    places = torch.arange(length)
    distance = places[None, :] - places[:, None]
    half = buckets // 2
    exact = half // 2
    far = distance.abs().clamp(min=1).float()
    grown = exact + (torch.log(far / exact) / math.log(farthest / exact) * (half - exact)).long()
    kinds = torch.where(distance.abs() < exact, distance.abs(), grown.clamp(max=half - 1))
    return kinds + half * (distance > 0)
