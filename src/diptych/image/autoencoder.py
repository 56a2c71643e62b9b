"""The autoencoder: a picture to a small latent picture and back, so that the denoiser works on 24 times fewer numbers.

Convolutional, with a Gaussian bottleneck held near a standard normal by a light KL term (Kingma & Welling 2014; as in
latent diffusion, Rombach et al. 2022, sec. 3.1). The first downsampling folds squares of pixels into channels, which
costs nothing and keeps every number.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.precision import at_least_float32
from diptych.core.spelling import unknown
from diptych.core.weights import load_into, read_config


@dataclass(frozen=True)
class AutoencoderConfig:
    """Args:
    channels: of the picture, 3 for RGB.
    latent_channels: of the latent picture.
    fold: side of the squares of pixels that are folded into channels at the start.
    widths: channels at 1/fold, 1/(2 fold), ... of the picture's size; the last is the latent's own resolution.
    encoder_blocks, decoder_blocks: residual blocks at each resolution.
    """

    channels: int = 3
    latent_channels: int = 8
    fold: int = 4
    widths: tuple[int, ...] = (128, 192)
    encoder_blocks: int = 1
    decoder_blocks: int = 2

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AutoencoderConfig":
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("autoencoder setting", key, known)
        config = cls(**{**values, "widths": tuple(values.get("widths", cls.widths))})
        if not config.widths or any(width < 8 or width % 8 for width in config.widths):
            raise ValueError(f"autoencoder widths must be multiples of 8, not {list(config.widths)}")
        if min(config.channels, config.latent_channels, config.fold, config.encoder_blocks, config.decoder_blocks) < 1:
            raise ValueError("autoencoder channels, fold and blocks must be at least 1")
        return config

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "widths": list(self.widths)}

    @property
    def downsampling(self) -> int:
        """Pixels of the picture for one of the latent, along a side."""
        return self.fold << (len(self.widths) - 1)


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the last convolution starts at zero, so a block starts as nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        change: Tensor = self.conv2(F.silu(self.norm2(h)))
        return x + change


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        folded = config.channels * config.fold**2
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.fold), nn.Conv2d(folded, config.widths[0], 3, padding=1)]
        for level, width in enumerate(config.widths):
            if level > 0:
                layers.append(nn.Conv2d(config.widths[level - 1], width, 3, stride=2, padding=1))
            layers += [Block(width) for _ in range(config.encoder_blocks)]
        layers += [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        moments: Tensor = self.layers(x)
        return moments


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            if level > 0:
                layers += [
                    nn.Upsample(scale_factor=2, mode="nearest"),
                    nn.Conv2d(widths[level - 1], width, 3, padding=1),
                ]
            layers += [Block(width) for _ in range(config.decoder_blocks)]
        last = nn.Conv2d(width, config.channels * config.fold**2, 3, padding=1)
        layers += [nn.GroupNorm(8, width), nn.SiLU(), last, nn.PixelShuffle(config.fold)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        picture: Tensor = self.layers(z)
        return picture


class Autoencoder(nn.Module):
    """Pictures (B, 3, H, W) in -1..1 to latents (B, latent_channels, H/d, W/d) and back, d = config.downsampling.

    `shift` and `scale` (one number a latent channel, measured on training pictures by `measure`) bring the latents to
    mean 0 and standard deviation 1, which is what the noise schedule assumes of what it noises.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("shift", torch.zeros(config.latent_channels))
        self.register_buffer("scale", torch.ones(config.latent_channels))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent's Gaussian, at least float32, before shift and scale."""
        weight = next(self.encoder.parameters())
        mean, log_variance = at_least_float32(self.encoder(x.to(weight.dtype))).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def encode(self, x: Tensor) -> Tensor:
        """The latent's mean, normalised: (B, C, h, w), float32."""
        mean, _ = self.moments(x)
        return (mean - self.shift.float()[:, None, None]) / self.scale.float()[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        """The picture of a normalised latent, in about -1..1, float32."""
        weight = next(self.decoder.parameters())
        raw = z.float() * self.scale.float()[:, None, None] + self.shift.float()[:, None, None]
        picture: Tensor = self.decoder(raw.to(weight.dtype))
        return picture.float()

    @torch.no_grad()
    def measure(self, parts: Iterable[Tensor]) -> None:
        """Set shift and scale from a sample of training pictures, some (N, 3, H, W) after the other."""
        mean = torch.cat([self.moments(part)[0] for part in parts])
        self.shift.copy_(mean.mean((0, 2, 3)))
        self.scale.copy_(mean.std((0, 2, 3)))


def trained_autoencoder(directory: str | Path) -> Autoencoder:
    """The frozen autoencoder of a checkpoint, which may be a painter's."""
    if not Path(directory).is_dir():
        raise ValueError(
            f"there is no autoencoder at '{directory}'; 'diptych train recipes/autoencoder.toml' makes one"
        )
    config = read_config(directory)
    if not isinstance(config.get("autoencoder"), dict):
        raise ValueError(f"'{directory}' is not a checkpoint with an autoencoder")
    autoencoder = Autoencoder(AutoencoderConfig.from_dict(config["autoencoder"]))
    load_into(autoencoder, directory, "autoencoder." if config.get("panel") == "image" else "")
    return autoencoder.requires_grad_(False).eval()
