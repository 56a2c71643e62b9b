"""What training minimises on the image side: the autoencoder's loss and the denoiser's."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from diptych.core.choice import read_choice, settings_of
from diptych.core.precision import at_least_float32
from diptych.image.autoencoder import Autoencoder
from diptych.image.condition import Condition
from diptych.image.denoiser import Level, beside, output_of
from diptych.image.path import Path, add_noise
from diptych.image.prediction import Prediction


def autoencoder_loss(
    model: Autoencoder, pictures: Tensor, noise: Tensor, *, edge_weight: float, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
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
    return loss, {"pixels": pixels.detach(), "kl": divergence.detach(), "psnr": psnr.detach()}


LARGEST_WEIGHT = 400.0  # of an error of the noise: where there is hardly any signal it would grow without bound

# How much a squared error of the picture counts at a noise level, from the signal-to-noise ratio alpha^2 / sigma^2 of
# each (B,). What the network predicts is weighted so that this is what comes of it (`weights_of`).
WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    # Every error of what the network predicts counts alike (Ho et al. 2020, eq. 14, for the noise).
    "simple": lambda snr: torch.ones_like(snr),
    # 1 + SNR: the loss that predicting v has (Salimans & Ho 2022, sec. 4). Where there is hardly any signal, a small
    # error of the noise is a large one of the picture, of its colour before all.
    "v": lambda snr: 1 + snr,
    # min(SNR, gamma): the cleanest levels, which are the easiest, do not outweigh the others (Hang et al. 2023, eq. 9).
    "min-snr": lambda snr, gamma=5.0: snr.clamp(max=gamma),
    # The same without a corner (Crowson et al. 2024, eq. 9).
    "soft-min-snr": lambda snr, gamma=4.0: snr * gamma / (snr + gamma),
    # 1 / c_out^2, under which Karras' network has the same loss everywhere at first (Karras et al. 2022, table 1).
    "edm": lambda snr, sigma_data=0.5: snr + 1 / sigma_data**2,
}
WEIGHTING_DEFAULTS = {name: settings_of(formula) for name, formula in WEIGHTINGS.items()}

# Which noise levels training sees: (path, parts of the whole 0..1 (B,)) -> times (B,), float64.
TIMES: dict[str, Callable[..., Tensor]] = {
    # Every time alike.
    "uniform": lambda path, parts: path.end + (1 - path.end) * parts,
    # The logistic function of a normal draw: the middle of the way most (Esser et al. 2024, eq. 19).
    "logit-normal": lambda path, parts, mean=0.0, deviation=1.0: torch.sigmoid(
        mean + deviation * torch.special.ndtri(parts)
    ),
    # The logarithm of sigma / alpha is a normal draw (Karras et al. 2022, table 1).
    "log-normal": lambda path, parts, mean=-1.2, deviation=1.2: torch.from_numpy(
        path.inverse((mean + deviation * torch.special.ndtri(parts)).numpy())
    ),
}
TIMES_DEFAULTS = {name: settings_of(formula) for name, formula in TIMES.items()}


def weighting_named(name: str) -> Callable[[Tensor], Tensor]:
    """Raises: ValueError for an unknown weighting ("min-snr:gamma=5") or a setting that is not above 0."""
    word, settings = read_choice("weighting", name, WEIGHTING_DEFAULTS)
    for key, value in settings.items():
        if not value > 0:
            raise ValueError(f"{key} of weighting '{word}' must be above 0, not {value:g}")
    return partial(WEIGHTINGS[word], **settings)


def times_named(name: str) -> Callable[[Path, Tensor], Tensor]:
    """Raises: ValueError for an unknown distribution ("logit-normal:mean=0.5") or a deviation that is not above 0."""
    word, settings = read_choice("distribution of times", name, TIMES_DEFAULTS)
    if not settings.get("deviation", 1.0) > 0:
        raise ValueError(f"deviation of times '{word}' must be above 0, not {settings['deviation']:g}")

    def times(path: Path, parts: Tensor) -> Tensor:
        # A normal draw is finite where its part of the whole is inside 0..1.
        inside = parts if word == "uniform" else parts.clamp(1e-9, 1 - 1e-9)
        found = TIMES[word](path, inside, **settings)
        return found if path.kind == "exploding" else found.clamp(path.end, 1.0)  # EDM's go beyond its path's ends

    return times


def weights_of(weighting: str, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a squared error of the network's output counts (B,), so that the picture's counts as the weighting says."""
    if weighting.partition(":")[0] == "simple":
        return torch.ones_like(alpha)
    weights = weighting_named(weighting)((alpha / sigma).square()) * prediction.error_scale(alpha, sigma)
    return weights.clamp(max=LARGEST_WEIGHT) if prediction.word == "noise" else weights


def denoising_objective(
    network: nn.Module,
    prediction: Prediction,
    path: Path,
    clean: Tensor,
    noise: Tensor,
    times: Tensor,
    condition: Condition,
    *,
    coefficients: tuple[Tensor, Tensor] | None = None,
    weighting: str = "simple",
) -> tuple[Tensor, Tensor]:
    """Squared error of what the network predicts, weighted by noise level (Ho et al. 2020, eq. 12, 14, for the noise).

    Args:
        clean, noise: (B, C, H, W), float32; times: (B,), on the path.
        condition: the prompts.
        coefficients: alpha and sigma (B,) of the times, where they are known: to find them, a GPU is waited for.
        weighting: as `weighting_named` reads it.

    Returns:
        The weighted mean over the batch, and of each picture (B,), detached, the unweighted squared error of the noise
        that the output implies, so that figures compare whatever is predicted. Silence about the noise comes to 1.
    """
    alpha, sigma = coefficients or path.coefficients(times)
    level = Level(times.float(), alpha, sigma, 2 * (alpha.log() - sigma.log()))
    noisy = add_noise(clean, noise, alpha, sigma)
    predicted = output_of(network, prediction, path, noisy, level, condition)
    target = prediction.target(clean, noise, beside(alpha), beside(sigma))
    losses = (predicted - target).square().mean((1, 2, 3))
    of_noise = losses.detach()
    if prediction.word != "noise":
        of_noise = of_noise * prediction.error_scale(alpha, sigma) * (alpha / sigma).square()
    return (losses * weights_of(weighting, prediction, alpha, sigma)).mean(), of_noise
