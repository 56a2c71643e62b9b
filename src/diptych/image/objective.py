"""What training minimises on the image side: the autoencoder's loss and the denoiser's."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diptych.core.precision import at_least_float32
from diptych.image.autoencoder import Autoencoder
from diptych.image.path import Path, add_noise


def autoencoder_loss(
    model: Autoencoder, pictures: Tensor, noise: Tensor, *, edge_weight: float, kl_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """Absolute error of the pixels and of their differences (edges), plus the KL to a standard normal.

    Args:
        pictures: (B, 3, H, W), float32, -1..1.
        noise: (B, latent_channels, H/d, W/d), standard normal: the draw of the reparametrised latent (Kingma & Welling
            2014, eq. 10).
    """
    mean, log_variance = model.moments(pictures)
    latent = mean + (log_variance / 2).exp() * noise
    painted = at_least_float32(model.decoder(latent))
    error = painted - pictures
    pixels = error.abs().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
    loss = pixels + edge_weight * edges + kl_weight * divergence
    psnr = 10 * torch.log10(4 / error.square().mean())
    return loss, {"pixels": pixels.item(), "kl": divergence.item(), "psnr": psnr.item()}


LARGEST_WEIGHT = 400.0

# How much a noise level counts, from its log signal-to-noise ratio (B,).
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    # Ho et al. 2020, eq. 14.
    "simple": torch.ones_like,
    # 1 + sigma^2 / alpha^2: the loss that predicting v has (Salimans & Ho 2022, sec. 4). Where there is hardly any
    # signal, a small error of the noise is a large one of the picture, of its colour before all. Cut off where there
    # is none.
    "v": lambda log_snr: (1 + torch.exp(-log_snr)).clamp(max=LARGEST_WEIGHT),
}


def noise_prediction_loss(
    network: nn.Module,
    path: Path,
    clean: Tensor,
    noise: Tensor,
    times: Tensor,
    context: Tensor,
    mask: Tensor | None,
    *,
    weighting: str = "simple",
) -> tuple[Tensor, Tensor]:
    """The DDPM objective: squared error of the predicted noise, weighted by noise level (Ho et al. 2020, eq. 12, 14).

    Args:
        clean, noise: (B, C, H, W), float32; times: (B,) in 0..1.
        context, mask: the prompts, (B, S, width) and (B, S) or None.
        weighting: one of WEIGHTINGS.

    Returns:
        The weighted mean over the batch, and the unweighted loss of each picture (B,), detached.
    """
    alpha, sigma = path.coefficients(times)
    noisy = add_noise(clean, noise, alpha, sigma)
    dtype = next(network.parameters()).dtype
    log_snr = 2 * (alpha.log() - sigma.log())
    predicted = at_least_float32(network(noisy.to(dtype), log_snr, context.to(dtype), mask))
    losses = (predicted - noise).square().mean((1, 2, 3))
    return (losses * WEIGHTINGS[weighting](log_snr)).mean(), losses.detach()
