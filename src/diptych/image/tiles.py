"""Large pictures through the autoencoder in less memory: one at a time, and tile by tile where its maps are large.

Two things in an autoencoder see the whole picture. Attention stands at the latent's resolution, where everything is
small: what is small is computed whole. And group norms take mean and variance over the picture: tiles that took their
own would differ in colour and contrast, and no blending hides that. So the large layers are walked a block at a time.
Over all tiles of a block its norms' statistics are counted, one norm after the other; then its map is made, again tile
by tile, with the same statistics for each. A tile sees as far beyond its edges as the block looks. So two neighbours
compute the same number for the same place, there is nothing to blend, and the picture is that of the whole.

What is kept is the map before a block and the one after it, instead of all that stand between them; what it costs is
that the first convolutions of a block are computed again for its second norm.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise, product
from math import ceil, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.image.autoencoder import Autoencoder, Block, MiddleAttention, Norm, normed

TILE = 512  # pixels a side
LARGE = 1536 * 1024  # pixels past which memory counts for more than time


def decode(autoencoder: Autoencoder, latents: Tensor, *, tile: int | None = None) -> Tensor:
    """As `Autoencoder.decode`, in less memory where the pictures are large.

    Args:
        latents: (B, C, h, w), normalised.
        tile: pixels a side, about; pictures are decoded one at a time, those larger than a tile in tiles. None: all at
            once where they have up to LARGE pixels together, whole where one has, and in tiles of TILE past that.
    """
    tile = _fitting(latents, autoencoder.config.downsampling) if tile is None else tile
    if not tile:
        return autoencoder.decode(latents)
    layers, weight = list(autoencoder.decoder.layers), next(autoencoder.decoder.parameters())
    small = max(1, tile // autoencoder.config.downsampling)
    pictures = []
    for z in autoencoder.raw(latents).to(weight.dtype).split(1):
        first = max(_large(layers, z, small)[0], 1 + max(_attention(layers), default=-1))
        side = small * int(prod(map(_growth, layers[:first])))
        pictures.append(_tiled(layers[first:], _through(layers[:first], z), side).float())
    return torch.cat(pictures)


def encode(autoencoder: Autoencoder, pictures: Tensor, *, tile: int | None = None) -> Tensor:
    """As `Autoencoder.encode`, in less memory where the pictures (B, 3, H, W) are large. Args: as `decode`.

    Raises:
        ValueError: pictures to be cut whose sides are no multiples of the autoencoder's downsampling.
    """
    tile = _fitting(pictures, 1) if tile is None else tile
    if not tile:
        return autoencoder.encode(pictures)
    layers, weight = list(autoencoder.encoder.layers), next(autoencoder.encoder.parameters())
    height, width = pictures.shape[-2:]
    unit = autoencoder.config.downsampling
    if height % unit or width % unit:
        raise ValueError(f"pictures must have sides that are multiples of {unit}, not {width} x {height}")
    means = []
    for x in pictures.to(weight.dtype).split(1):
        last = min(_large(layers, x, tile)[1] + 1, *_attention(layers), len(layers))
        moments = _through(layers[last:], _tiled(layers[:last], x, tile))
        means.append(moments.float().chunk(2, dim=1)[0])
    return autoencoder.normalised(torch.cat(means))


def _fitting(x: Tensor, pixels: int) -> int:
    """The side of a tile for x, each place of which is `pixels` x `pixels`; 0 where nothing need be cut."""
    height, width = (side * pixels for side in x.shape[2:])
    if len(x) * height * width <= LARGE:
        return 0
    return max(height, width) if height * width <= LARGE else TILE


def _through(layers: Sequence[nn.Module], x: Tensor, norm: Norm = normed) -> Tensor:
    for layer in layers:
        if isinstance(layer, Block):
            x = layer(x, norm)
        elif isinstance(layer, nn.GroupNorm):
            x = norm(layer, x)
        else:
            x = layer(x)
    return x


def _attention(layers: Sequence[nn.Module]) -> list[int]:
    return [place for place, layer in enumerate(layers) if isinstance(layer, MiddleAttention)]


def _large(layers: Sequence[nn.Module], x: Tensor, tile: int) -> tuple[int, int]:
    """The first and the last layer whose map of x is larger than the largest of a tile's; (all, -1) where none is."""
    _, channels, height, width = x.shape
    sizes = list(_maps(layers, channels))
    large = [place for place, size in enumerate(sizes) if size * height * width > max(sizes) * tile**2]
    return (large[0], large[-1]) if large else (len(layers), -1)


def _maps(layers: Sequence[nn.Module], channels: int) -> Iterator[Fraction]:
    """Numbers in the map after each layer for one place of the input."""
    area = Fraction(1)
    for layer in layers:
        if isinstance(layer, Block):
            channels = layer.conv2.out_channels
        elif isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        elif isinstance(layer, nn.PixelShuffle):
            channels //= layer.upscale_factor**2
        elif isinstance(layer, nn.PixelUnshuffle):
            channels *= layer.downscale_factor**2
        area *= _growth(layer) ** 2
        yield channels * area


def _growth(layer: nn.Module) -> Fraction:
    """Of a side of the map."""
    if isinstance(layer, nn.Conv2d):
        return Fraction(1, layer.stride[0])
    if isinstance(layer, nn.Upsample):
        return Fraction(2)
    if isinstance(layer, nn.PixelShuffle):
        return Fraction(layer.upscale_factor)
    return Fraction(1, layer.downscale_factor) if isinstance(layer, nn.PixelUnshuffle) else Fraction(1)


def _reach(layers: Sequence[nn.Module]) -> int:
    """How many places beyond a tile's edge the layers look."""
    reach = 0
    for layer in reversed(layers):
        reach = ceil(reach / _growth(layer))
        if isinstance(layer, Block):
            reach += 2
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1:
            reach += layer.stride[0]
    return reach


class Span(NamedTuple):
    """Places of a tile along one side of a map, from `start` to before `end`, and those that it sees."""

    start: int
    end: int
    seen_start: int
    seen_end: int

    @property
    def seen(self) -> slice:
        return slice(self.seen_start, self.seen_end)

    def of(self, length: int) -> slice:
        """The tile's own places in a map, `length` long, that layers made of what it sees."""
        scale = Fraction(length, self.seen_end - self.seen_start)
        return slice(int((self.start - self.seen_start) * scale), int((self.end - self.seen_start) * scale))


def _spans(length: int, tile: int, unit: int, reach: int) -> list[Span]:
    """Tiles of about one size, cut at multiples of `unit`."""
    count = ceil(length / max(tile, unit))
    cuts = [length * place // count // unit * unit for place in range(count)]
    pairs = pairwise([*cuts, length])
    return [Span(start, end, max(0, start - reach), min(length, end + reach)) for start, end in pairs]


def _tiled(layers: Sequence[nn.Module], x: Tensor, tile: int) -> Tensor:
    """The layers, x (1, C, H, W) cut into tiles of about `tile` places a side, which shrink and grow with the map."""
    side = Fraction(tile)
    for part in _parts(layers):
        x = _made(part, x, max(1, int(side)))
        side *= prod(map(_growth, part))
    return x


def _parts(layers: Sequence[nn.Module]) -> Iterator[Sequence[nn.Module]]:
    """The layers up to and with each block, and those after the last."""
    start = 0
    for place, layer in enumerate(layers, 1):
        if isinstance(layer, Block) or place == len(layers):
            yield layers[start:place]
            start = place


def _made(layers: Sequence[nn.Module], x: Tensor, tile: int) -> Tensor:
    """The map that some layers make of x, tile by tile."""
    growth = prod(map(_growth, layers))
    unit = max(1, int(1 / growth))
    reach = ceil(Fraction(_reach(layers), unit)) * unit
    tiles = list(product(*(_spans(side, tile, unit, reach) for side in x.shape[2:])))
    norms = [part for layer in layers for part in layer.modules() if isinstance(part, nn.GroupNorm)]
    known: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}

    def fixed(norm: nn.GroupNorm, y: Tensor) -> Tensor:
        mean, variance = known[norm]
        return F.batch_norm(y, mean, variance, norm.weight.float(), norm.bias.float(), False, 0.0, norm.eps)

    for norm in norms:
        known[norm] = _moments(norm, _counted(layers, x, tiles, norm, fixed))
    whole: Tensor | None = None
    for rows, columns in tiles:
        made = _through(layers, x[:, :, rows.seen, columns.seen], fixed)
        if whole is None:
            height, width = (int(side * growth) for side in x.shape[2:])
            whole = made.new_empty(1, made.shape[1], height, width)
        own = made[:, :, rows.of(made.shape[2]), columns.of(made.shape[3])]
        top, left = int(rows.start * growth), int(columns.start * growth)
        whole[:, :, top : top + own.shape[2], left : left + own.shape[3]] = own
    assert whole is not None
    return whole


class _Arrived(Exception):
    """A tile has come to the norm that is counted: what comes after it is not needed."""


def _counted(
    layers: Sequence[nn.Module],
    x: Tensor,
    tiles: Sequence[tuple[Span, ...]],
    counted: nn.GroupNorm,
    fixed: Callable[[nn.GroupNorm, Tensor], Tensor],
) -> Tensor:
    """How many numbers each group of a norm is given over all tiles, their sum and that of their squares: (3, G),
    float64. The norms before it are `fixed`."""
    sums: list[Tensor] = []
    for rows, columns in tiles:

        def count(norm: nn.GroupNorm, y: Tensor, rows: Span = rows, columns: Span = columns) -> Tensor:
            if norm is not counted:
                return fixed(norm, y)
            own = y[0, :, rows.of(y.shape[2]), columns.of(y.shape[3])].float().reshape(norm.num_groups, -1)
            spread, mean = (moment.double() for moment in torch.var_mean(own, 1, correction=0))
            number = torch.full_like(mean, own.shape[1])
            sums.append(torch.stack((number, number * mean, number * (spread + mean.square()))))
            raise _Arrived

        try:
            _through(layers, x[:, :, rows.seen, columns.seen], count)
        except _Arrived:
            continue
    return torch.stack(sums).sum(0)


def _moments(norm: nn.GroupNorm, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, (C,), float32."""
    number, first, second = sums
    mean = first / number
    moments = torch.stack((mean, second / number - mean.square())).float()
    every, spread = moments.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)
    return every, spread
