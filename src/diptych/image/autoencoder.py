"""The autoencoder: a picture to a small latent picture and back, so that the denoiser works on 24 times fewer numbers.

Convolutional, with a Gaussian bottleneck held near a standard normal by a light KL term (Kingma & Welling 2014; as in
latent diffusion, Rombach et al. 2022, sec. 3.1). In the house's own the first downsampling folds squares of pixels into
channels, which costs nothing and keeps every number. The same class with other switches is that of Stable Diffusion,
SD3 and Flux: no fold, blocks that change the width, attention in the middle.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.attention import Attention
from diptych.core.checks import settings_of
from diptych.core.precision import at_least_float32
from diptych.core.spelling import unknown
from diptych.core.weights import load_into, read_config

MOST_LAYERS = 100
MIDDLES = ("none", "blocks", "attention")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Args:
    channels: of the picture, 3 for RGB.
    latent_channels: of the latent picture.
    fold: side of the squares of pixels that are folded into channels at the start; 1 folds none.
    widths: channels at 1/fold, 1/(2 fold), ... of the picture's size; the last is the latent's own resolution.
    encoder_blocks, decoder_blocks: residual blocks at each resolution.
    groups, norm_eps: of the norms.
    blocks_widen: the first block of a resolution changes the width, and resampling keeps it; else resampling does.
    pads_after: a downsampling convolution is padded at the right and the bottom alone.
    middle: one of MIDDLES: what stands at the latent's resolution besides its blocks, two more "blocks" or two with
        "attention" between them.
    has_latent_convs: 1 x 1 convolutions after the encoder and before the decoder.
    """

    channels: int = 3
    latent_channels: int = 8
    fold: int = 4
    widths: tuple[int, ...] = (128, 192)
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    groups: int = 8
    norm_eps: float = 1e-5
    blocks_widen: bool = False
    pads_after: bool = False
    middle: str = "none"
    has_latent_convs: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AutoencoderConfig":
        config = settings_of(cls, "autoencoder", values)
        if min(config.channels, config.latent_channels, config.fold, config.encoder_blocks, config.decoder_blocks) < 1:
            raise ValueError("autoencoder channels, fold and blocks must be at least 1")
        if config.middle not in MIDDLES:
            raise unknown("autoencoder middle", config.middle, MIDDLES)
        multiple = config.groups
        if multiple < 1 or not config.widths or any(width < 1 or width % multiple for width in config.widths):
            raise ValueError(f"autoencoder widths must be multiples of {multiple}, not {list(config.widths)}")
        if max(config.encoder_blocks, config.decoder_blocks, len(config.widths)) > MOST_LAYERS:
            raise ValueError(f"autoencoder blocks and widths must be at most {MOST_LAYERS}")
        return config

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "widths": list(self.widths)}

    @property
    def downsampling(self) -> int:
        """Pixels of the picture for one of the latent, along a side."""
        return self.fold << (len(self.widths) - 1)


Norm = Callable[[nn.GroupNorm, Tensor], Tensor]


def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """What a norm does with the whole of a picture before it; `image.tiles` has another."""
    changed: Tensor = norm(x)
    return changed


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the last convolution starts at zero, so a block starts as nothing.

    Where the width changes, x comes through a 1 x 1 convolution.
    """

    def __init__(self, width: int, wider: int | None = None, *, groups: int = 8, norm_eps: float = 1e-5) -> None:
        super().__init__()
        wider = width if wider is None else wider
        self.norm1 = nn.GroupNorm(groups, width, norm_eps)
        self.conv1 = nn.Conv2d(width, wider, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, wider, norm_eps)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.shortcut = nn.Conv2d(width, wider, 1) if wider != width else None

    def forward(self, x: Tensor, norm: Norm = normed) -> Tensor:
        is_free = not torch.is_grad_enabled()  # what a norm made is needed by nobody else
        h = self.conv1(F.silu(norm(self.norm1, x), inplace=is_free))
        change: Tensor = self.conv2(F.silu(norm(self.norm2, h), inplace=is_free))
        return (x if self.shortcut is None else self.shortcut(x)) + change


class MiddleAttention(nn.Module):
    """x + attention(norm(x)): every place of a picture looks at every other, with one head."""

    def __init__(self, width: int, *, groups: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, norm_eps)
        self.attention = Attention(width, 1, has_qkv_bias=True, has_output_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).flatten(2).transpose(1, 2)  # (B, h w, C)
        seen: Tensor = self.attention(rows).transpose(1, 2).unflatten(2, x.shape[-2:])
        return x + seen


def _middle(config: AutoencoderConfig, width: int) -> list[nn.Module]:
    norms: dict[str, Any] = {"groups": config.groups, "norm_eps": config.norm_eps}
    if config.middle == "none":
        return []
    between = [MiddleAttention(width, **norms)] if config.middle == "attention" else []
    return [Block(width, **norms), *between, Block(width, **norms)]


class HalvingConv(nn.Conv2d):
    """Every second row and column, with zeros after the last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        norms: dict[str, Any] = {"groups": config.groups, "norm_eps": config.norm_eps}
        width = config.widths[0]
        folded = config.channels * config.fold**2
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.fold), nn.Conv2d(folded, width, 3, padding=1)]
        for level, wider in enumerate(config.widths):
            if level > 0:
                after = width if config.blocks_widen else wider
                layers.append(
                    HalvingConv(width, after, 3, stride=2)
                    if config.pads_after
                    else nn.Conv2d(width, after, 3, stride=2, padding=1)
                )
                width = after
            for _ in range(config.encoder_blocks):
                layers.append(Block(width, wider, **norms))
                width = wider
        layers += _middle(config, width)
        moments = 2 * config.latent_channels
        last = nn.Conv2d(width, moments, 3, padding=1)
        layers += [nn.GroupNorm(config.groups, width, config.norm_eps), nn.SiLU(), last]
        if config.has_latent_convs:
            layers.append(nn.Conv2d(moments, moments, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        moments: Tensor = self.layers(x)
        return moments


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        norms: dict[str, Any] = {"groups": config.groups, "norm_eps": config.norm_eps}
        width, latent = config.widths[-1], config.latent_channels
        layers: list[nn.Module] = [nn.Conv2d(latent, latent, 1)] if config.has_latent_convs else []
        layers.append(nn.Conv2d(latent, width, 3, padding=1))
        layers += _middle(config, width)
        for level, wider in enumerate(config.widths[::-1]):
            if level > 0:
                after = width if config.blocks_widen else wider
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, after, 3, padding=1)]
                width = after
            for _ in range(config.decoder_blocks):
                layers.append(Block(width, wider, **norms))
                width = wider
        last = nn.Conv2d(width, config.channels * config.fold**2, 3, padding=1)
        norm = nn.GroupNorm(config.groups, width, config.norm_eps)
        layers += [norm, nn.SiLU(), last, nn.PixelShuffle(config.fold)]
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
        return self.normalised(mean)

    def decode(self, z: Tensor) -> Tensor:
        """The picture of a normalised latent, in about -1..1, float32."""
        weight = next(self.decoder.parameters())
        picture: Tensor = self.decoder(self.raw(z).to(weight.dtype))
        return picture.float()

    def normalised(self, latent: Tensor) -> Tensor:
        """A latent of the encoder as a denoiser sees it, float32."""
        return (latent - self.shift.float()[:, None, None]) / self.scale.float()[:, None, None]

    def raw(self, z: Tensor) -> Tensor:
        """A latent of a denoiser as the decoder sees it, float32."""
        return z.float() * self.scale.float()[:, None, None] + self.shift.float()[:, None, None]

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
