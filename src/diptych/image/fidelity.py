"""How near a picture comes to another: peak signal-to-noise ratio and structural similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE = 2.0  # peak to peak, of pixels in -1..1
WINDOW, DEVIATION = 11, 1.5  # of the Gaussian that SSIM looks through, in pixels
K1, K2 = 0.01, 0.03
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def peak_signal_to_noise(painted: Tensor, pictures: Tensor) -> Tensor:
    """PSNR in dB of each picture (B, 3, H, W) in -1..1: (B,), float32.

    An error below that of rounding to 8 bits (a mean square of 1/12 of a step) counts as that: at most 58.9 dB.
    """
    error = F.mse_loss(painted.float(), pictures.float(), reduction="none").mean((1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error.clamp(min=(RANGE / 255) ** 2 / 12))


def structural_similarity(painted: Tensor, pictures: Tensor) -> Tensor:
    """SSIM of the luminance of each picture (B, 3, H, W) in -1..1: (B,), float32; 1 is the same picture.

    Wang et al. 2004, eq. 13 with their settings: a Gaussian window of 11 x 11 and deviation 1.5, K1 0.01, K2 0.03, the
    mean over all places where the window fits.

    Raises:
        ValueError: pictures smaller than the window.
    """
    if min(pictures.shape[-2:]) < WINDOW:
        height, width = pictures.shape[-2:]
        raise ValueError(f"structural similarity needs at least {WINDOW} pixels a side, not {width} x {height}")
    x, y = _luminance(painted), _luminance(pictures)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x * mean_x
    variance_y = _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
    return (above / below).mean((1, 2, 3)).float()


def _luminance(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1 -> (B, 1, H, W) in 0..2, float64: the variances are small differences of large numbers."""
    weights = torch.tensor(LUMINANCE, dtype=torch.float64, device=pictures.device)[:, None, None]
    return ((pictures.double() + 1) * weights).sum(1, keepdim=True)


def _blurred(x: Tensor) -> Tensor:
    """(B, 1, H, W) under the window, only where it fits: (B, 1, H - 10, W - 10)."""
    taps = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-taps.square() / (2 * DEVIATION**2))
    kernel = kernel / kernel.sum()
    return F.conv2d(F.conv2d(x, kernel[None, None, None]), kernel[None, None, :, None])
