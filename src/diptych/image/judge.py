"""The judge: a small convolutional classifier that reads off a picture what is on it.

One trunk, one softmax an attribute ("animal": cat, dog, ...). It is trained on composed scenes, whose truth is known,
and then counts what a painter painted. Pictures are first brought to 64 x 64 by area averaging, which hides the soft
edges of a painted picture and makes the judge quick.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diptych.core.linear import Linear
from diptych.core.spelling import unknown
from diptych.image.autoencoder import Block
from diptych.image.photo import to_tensor

AT_ONCE = 64  # pictures


@dataclass(frozen=True)
class JudgeConfig:
    """Args:
    heads: attribute -> the values it may take, in the order of its logits.
    size: pixels a side that pictures are averaged to.
    widths: channels at 1/2, 1/4, ... of `size`; one residual block each.
    """

    heads: dict[str, tuple[str, ...]]
    size: int = 64
    widths: tuple[int, ...] = (32, 64, 96)

    def __post_init__(self) -> None:
        if not self.heads or any(len(values) < 2 for values in self.heads.values()):
            raise ValueError("judge heads must name at least one attribute with at least two values each")
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"judge widths must be multiples of 8, not {list(self.widths)}")
        if self.size < 1 or self.size % 2 ** len(self.widths):
            raise ValueError(f"judge size must be a multiple of {2 ** len(self.widths)}, not {self.size}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "JudgeConfig":
        known = ("heads", "size", "widths")
        for key in values:
            if key not in known:
                raise unknown("judge setting", key, known)
        if not isinstance(values.get("heads"), dict):
            raise ValueError("a judge's config must have 'heads', a table of attributes and their values")
        heads = {name: tuple(words) for name, words in values["heads"].items()}
        return cls(**{**values, "heads": heads, "widths": tuple(values.get("widths", cls.widths))})

    def to_dict(self) -> dict[str, Any]:
        heads = {name: list(words) for name, words in self.heads.items()}
        return {"heads": heads, "size": self.size, "widths": list(self.widths)}


def trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Pictures (B, 3, H, W) -> features (B, widths[-1], H / 2^n, W / 2^n): a residual block at each of the n widths."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
    for level, width in enumerate(widths):
        if level > 0:
            layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
        layers.append(Block(width))
    return nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())


def pooled(features: Tensor) -> Tensor:
    """Mean and maximum over places: (B, C, h, w) -> (B, 2 C)."""
    return torch.cat((features.mean((2, 3)), features.amax((2, 3))), dim=1)


class Judge(nn.Module):
    """Pictures (B, 3, H, W) in -1..1 to logits, one (B, number of values) float32 an attribute.

    Normalisation is by group within one picture, so a picture is judged alike alone and in a batch.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk(config.widths)
        self.heads = nn.ModuleDict(
            {name: Linear(2 * config.widths[-1], len(words)) for name, words in config.heads.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.shape[-2:] != (self.config.size, self.config.size):
            x = F.adaptive_avg_pool2d(x, self.config.size)
        seen = pooled(self.trunk(x.to(next(self.parameters()).dtype)))
        return {name: head(seen).float() for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """What is on each picture: attribute -> the likeliest value. Pictures as for `forward`, in any number."""
        device = next(self.parameters()).device
        parts = [self(part.to(device)) for part in pictures.split(AT_ONCE)] if len(pictures) else []
        best = {name: [row for part in parts for row in part[name].argmax(1).tolist()] for name in self.config.heads}
        return [
            {name: words[best[name][index]] for name, words in self.config.heads.items()}
            for index in range(len(pictures))
        ]

    def read_pictures(self, pictures: Iterable[Image.Image]) -> list[dict[str, str]]:
        """The same of pictures as PIL has them, of any sizes; no more than are read at once are asked for."""
        waiting, found = iter(pictures), []
        while some := list(islice(waiting, AT_ONCE)):
            reduced = [F.adaptive_avg_pool2d(to_tensor(picture), self.config.size) for picture in some]
            found += self.read(torch.stack(reduced))
        return found
