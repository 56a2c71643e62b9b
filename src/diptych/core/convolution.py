"""A 3 x 3 convolution of few places with many channels, as one product of two matrices.

On a CPU in bfloat16 oneDNN's convolutions are at the machine's peak for large pictures and fall to half of it where the
kernel is larger than the picture: 2,560 to 1,280 channels at 8 x 8 take 37 ms, and 19 as a product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.kernels import is_ours

PLACES, CHANNELS = 512, 1024  # at most so many places of the whole batch, at least so many channels


def suits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether the product is the faster way."""
    batch, channels, height, width = x.shape
    return (
        channels >= CHANNELS
        and batch * height * width <= PLACES
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == (1, 1)
        and is_ours(x)
        and layer.weight.dtype == x.dtype
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """layer(x): (B, C, H, W) to (B, out, H, W)."""
    if not suits(layer, x):
        whole: Tensor = layer(x)
        return whole
    batch, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    of_picture, of_row, of_place, _ = padded.stride()
    # What each place sees, row after row of the kernel: a view, laid out by the reshape.
    seen = padded.as_strided(
        (batch, height, width, 3, 3, channels), (of_picture, of_row, of_place, of_row, of_place, 1)
    )
    kernel = layer.weight.permute(0, 2, 3, 1).reshape(layer.out_channels, -1)  # a view where it lies channels last
    product = F.linear(seen.reshape(batch, height * width, -1), kernel, layer.bias)
    return product.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
