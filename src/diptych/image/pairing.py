"""A pairing: pictures and captions as points of one space, near each other where they belong together.

Two towers, as in CLIP (Radford et al. 2021): the judge's convolutional trunk for pictures, the painter's text encoder
for captions, each with one projection onto the unit sphere. Either may be CLIP's own transformer instead.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core import weights
from diptych.core.linear import Linear
from diptych.core.precision import choose
from diptych.core.spelling import unknown
from diptych.core.tokenizer import Tokenizer
from diptych.image.clip import PictureTower, PictureTowerConfig, TextTower, TextTowerConfig
from diptych.image.contrast import LARGEST_SCALE, LOSSES
from diptych.image.encoders import EncoderConfig, TextEncoder, encode_prompts
from diptych.image.judge import AT_ONCE, pooled, trunk
from diptych.image.prompt_tokens import PromptTokenizer


@dataclass(frozen=True)
class PairingConfig:
    """Args:
    dimensions: of the shared space.
    size: pixels a side that pictures are averaged to.
    widths: channels of the picture tower at 1/2, 1/4, ... of `size`.
    loss: one of `contrast.LOSSES`, which says whether there is a bias.
    encoder: sizes of the caption tower.
    picture_tower, caption_tower: CLIP's transformers in place of `widths` and of `encoder`; they project by themselves.
    """

    dimensions: int = 128
    size: int = 64
    widths: tuple[int, ...] = (32, 64, 96)
    loss: str = "softmax"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    picture_tower: PictureTowerConfig | None = None
    caption_tower: TextTowerConfig | None = None

    def __post_init__(self) -> None:
        if self.dimensions < 1:
            raise ValueError(f"pairing dimensions must be at least 1, not {self.dimensions}")
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"pairing widths must be multiples of 8, not {list(self.widths)}")
        if self.picture_tower is None and (self.size < 1 or self.size % 2 ** len(self.widths)):
            raise ValueError(f"pairing size must be a multiple of {2 ** len(self.widths)}, not {self.size}")
        if self.picture_tower is not None and self.picture_tower.size != self.size:
            raise ValueError(f"pairing size ({self.size}) must be the picture tower's ({self.picture_tower.size})")
        for tower in (self.picture_tower, self.caption_tower):
            if tower is not None and tower.projection != self.dimensions:
                raise ValueError(
                    f"pairing dimensions ({self.dimensions}) must be each tower's projection ({tower.projection})"
                )
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("pairing setting", key, known)
        parts: dict[str, Any] = {"encoder": EncoderConfig.from_dict(values.get("encoder", {}))}
        for name, kind in (("picture_tower", PictureTowerConfig), ("caption_tower", TextTowerConfig)):
            if values.get(name) is not None:
                parts[name] = kind.from_dict(values[name])
        return cls(**{**values, "widths": tuple(values.get("widths", cls.widths)), **parts})

    def to_dict(self) -> dict[str, Any]:
        """Without what a tower of CLIP's stands in for."""
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("dimensions", "size", "loss")}
        if self.picture_tower is None:
            settings["widths"] = list(self.widths)
        else:
            settings["picture_tower"] = self.picture_tower.to_dict()
        if self.caption_tower is None:
            settings["encoder"] = self.encoder.to_dict()
        else:
            settings["caption_tower"] = self.caption_tower.to_dict()
        return settings

    @property
    def length(self) -> int:
        """Tokens that a caption may have."""
        return (self.caption_tower or self.encoder).length


class Pairing(nn.Module):
    """The two towers, and the scale (and bias) of their similarities."""

    def __init__(self, config: PairingConfig) -> None:
        super().__init__()
        self.config = config
        _, scale, bias = LOSSES[config.loss]
        self.picture_tower = PictureTower(config.picture_tower) if config.picture_tower else None
        if self.picture_tower is None:
            self.trunk = trunk(config.widths)
            self.picture_projection = Linear(2 * config.widths[-1], config.dimensions, bias=False)
        self.caption_tower = TextTower(config.caption_tower) if config.caption_tower else None
        if self.caption_tower is None:
            self.encoder = TextEncoder(config.encoder)
            self.caption_projection = Linear(config.encoder.width, config.dimensions, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias)) if bias else None

    def see(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 -> unit vectors (B, dimensions), float32."""
        if self.picture_tower is not None:
            return F.normalize(self.picture_tower(pictures).pooled.float(), dim=-1)
        if pictures.shape[-2:] != (self.config.size, self.config.size):
            pictures = F.adaptive_avg_pool2d(pictures, self.config.size)
        return F.normalize(self.picture_projection(pooled(self.trunk(pictures))).float(), dim=-1)

    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Captions (B, S) as `encode_prompts` gives them -> unit vectors (B, dimensions), float32."""
        if self.caption_tower is not None:
            return F.normalize(self.caption_tower(tokens).pooled.float(), dim=-1)
        context = self.encoder(tokens, mask) * mask[..., None]
        mean = context.sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.caption_projection(mean).float(), dim=-1)

    @torch.no_grad()
    def hold_scale(self) -> None:
        """Bring the scale back to 100 where a step took it past: a clamp alone would leave it there, as its gradient
        is zero beyond."""
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


class PairingModel:
    """A pairing with the tokenizer of its captions: how well pictures and texts fit."""

    def __init__(self, name: str, network: Pairing, tokenizer: Tokenizer | PromptTokenizer) -> None:
        self.name, self.network, self.tokenizer = name, network, tokenizer

    @classmethod
    def load(cls, directory: str | Path, *, device: str | None = None) -> Self:
        """It computes in float32. Raises: ValueError for a directory that is no whole checkpoint of a pairing."""
        config = weights.read_config(directory)
        if config.get("kind") != "pairing" or not isinstance(config.get("pairing"), dict):
            raise ValueError(f"'{directory}' is not a checkpoint of a pairing: its config.json needs kind \"pairing\"")
        try:
            network = Pairing(PairingConfig.from_dict(config["pairing"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"'{directory}/config.json': {error}") from error
        weights.load_into(network, directory)
        network.eval().requires_grad_(False).to(choose(device)[0], memory_format=torch.channels_last)  # type: ignore[call-overload]
        reads: Any = PromptTokenizer if config.get("tokenizer") == "prompts" else Tokenizer
        tokenizer = reads.load(Path(directory) / "tokenizer.json")
        return cls(str(config.get("name", Path(directory).name)), network, tokenizer)

    def save(self, directory: str | Path, card: str | None = None) -> None:
        """Write a checkpoint directory, whole or not at all."""
        config = {"kind": "pairing", "name": self.name, "pairing": self.network.config.to_dict()}
        if isinstance(self.tokenizer, PromptTokenizer):
            config["tokenizer"] = "prompts"
        texts = {"tokenizer.json": self.tokenizer.to_json()}
        weights.save(directory, config, self.network.state_dict(), texts=texts, card=card)

    @torch.no_grad()
    def see(self, pictures: np.ndarray, batch: int = AT_ONCE) -> Tensor:
        """Pictures (N, 3, H, W), uint8 -> unit vectors (N, dimensions)."""
        device = self.network.log_scale.device
        starts = range(0, len(pictures), batch)
        parts = (torch.from_numpy(pictures[start : start + batch].copy()).to(device).float() for start in starts)
        return torch.cat([self.network.see(part / 127.5 - 1) for part in parts])

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors (N, dimensions). Raises: ValueError for one that is too long."""
        device = self.network.log_scale.device
        tokens, mask = encode_prompts(self.tokenizer, list(captions), self.network.config.length)
        return self.network.read(tokens.to(device), mask.to(device))

    def similarities(self, pictures: np.ndarray, captions: Sequence[str]) -> Tensor:
        """How near each picture (N, 3, H, W), uint8, lies to each caption: cosines (N, M).

        Raises: ValueError for a caption that is too long.
        """
        return self.see(pictures) @ self.read(captions).T

    def read_classes(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """One unit vector a class, the mean of its prompts' (Radford et al. 2021, section 3.1.4): (C, dimensions)."""
        return F.normalize(torch.stack([self.read(words).mean(0) for words in prompts.values()]), dim=-1)
