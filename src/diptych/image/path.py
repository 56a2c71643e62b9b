"""How noise is added: x_t = alpha(t) x_0 + sigma(t) eps, with t from 0 (the picture) to 1 (static).

A path is two numbers as functions of time, and everything else follows from them. Samplers, guidance and training see
only `Node`s of it: a time with its alpha and sigma.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diptych.core.spelling import unknown


@dataclass(frozen=True)
class Node:
    """One noise level on a path."""

    time: float
    alpha: float
    sigma: float

    @property
    def lambda_(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma) (Lu et al. 2022); infinite for a clean picture."""
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf

    @property
    def log_snr(self) -> float:
        """log(alpha^2 / sigma^2)."""
        return 2 * self.lambda_

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha: the noise level seen from a picture of unit scale (the sigma of Karras et al. 2022)."""
        return self.sigma / self.alpha

    @property
    def noise_share(self) -> float:
        """Share of the variance that is noise, for a picture of unit variance."""
        return self.sigma**2 / (self.alpha**2 + self.sigma**2)


@dataclass(frozen=True)
class Path:
    """alpha and sigma by their ratio: `log_ratio(t)` = log(sigma / alpha), increasing, and its inverse.

    Args:
        name: for a checkpoint's config.
        preserves_variance: alpha^2 + sigma^2 = 1 (the DDPM family); otherwise alpha = 1 (variance exploding).
        log_ratio: array of times in 0..1 -> log(sigma / alpha), elementwise.
        start: the time at which generation starts: the noisiest that training sees.
        end: the least noisy time that training sees; below it a picture counts as clean.
    """

    name: str
    preserves_variance: bool
    log_ratio: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    start: float = 1.0
    end: float = 1e-3

    def node(self, time: float) -> Node:
        return self._node(time, float(self.log_ratio(np.asarray(float(time)))))

    def at_ratio(self, ratio: float) -> Node:
        """The node where sigma / alpha is `ratio`; 0 is the clean picture."""
        if ratio == 0:
            return Node(0.0, 1.0, 0.0)
        logarithm = math.log(ratio)
        return self._node(float(self.inverse(np.asarray(logarithm))), logarithm)

    def _node(self, time: float, logarithm: float) -> Node:
        ratio = math.exp(logarithm)
        alpha = 1 / math.sqrt(1 + ratio * ratio) if self.preserves_variance else 1.0
        return Node(time, alpha, ratio * alpha)

    def coefficients(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of a batch of times (B,), float32, on the device of `times`."""
        logarithm = torch.from_numpy(np.asarray(self.log_ratio(times.double().cpu().numpy())))
        if self.preserves_variance:
            alpha = torch.sigmoid(-2 * logarithm).sqrt()
            sigma = torch.sigmoid(2 * logarithm).sqrt()
        else:
            alpha, sigma = torch.ones_like(logarithm), logarithm.exp()
        return alpha.float().to(times.device), sigma.float().to(times.device)


def _from_alpha_bar(name: str, alpha_bar: np.ndarray) -> Path:
    """A discrete schedule, alpha_bar after steps 1..T; between its steps, straight lines in log(sigma / alpha)."""
    steps = np.arange(1, len(alpha_bar) + 1) / len(alpha_bar)
    logarithm = 0.5 * (np.log1p(-alpha_bar) - np.log(alpha_bar))

    def extended(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Linear interpolation that goes on along the first and the last piece."""
        piece = np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2)
        slope = (ys[piece + 1] - ys[piece]) / (xs[piece + 1] - xs[piece])
        return np.asarray(ys[piece] + slope * (x - xs[piece]))

    return Path(
        name,
        True,
        lambda t: extended(t, steps, logarithm),
        lambda value: extended(value, logarithm, steps),
        end=float(steps[0]),
    )


def ddpm_linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Path:
    """beta from 1e-4 to 0.02 in a straight line (Ho et al. 2020, sec. 4)."""
    return _from_alpha_bar("ddpm-linear", np.cumprod(1 - np.linspace(first, last, steps, dtype=np.float64)))


def ddpm_scaled_linear(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Path:
    """sqrt(beta) in a straight line, the schedule of latent diffusion (Rombach et al. 2022)."""
    betas = np.linspace(first**0.5, last**0.5, steps, dtype=np.float64) ** 2
    return _from_alpha_bar("ddpm-scaled-linear", np.cumprod(1 - betas))


def ddpm_cosine(steps: int = 1000, offset: float = 0.008) -> Path:
    """alpha_bar(t) = cos^2 of a quarter turn, beta at most 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    edges = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
    betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    path = _from_alpha_bar("ddpm-cosine", np.cumprod(1 - betas))
    # The last steps have hardly any signal (sigma / alpha in the hundreds), and a noise prediction that is a little
    # wrong there means a picture that is far off. Generation starts where the ratio is 20: alpha^2 is 1/401.
    start = float(path.inverse(np.asarray(math.log(20.0))))
    return replace(path, start=start)


def variance_exploding(smallest: float = 0.002, largest: float = 80.0) -> Path:
    """alpha = 1, sigma geometric in time between the two (Song et al. 2021; the range of Karras et al. 2022)."""
    low, high = math.log(smallest), math.log(largest)
    return Path(
        "variance-exploding",
        False,
        lambda t: low + (high - low) * np.asarray(t),
        lambda value: (np.asarray(value) - low) / (high - low),
        end=0.0,
    )


PATHS: dict[str, Callable[[], Path]] = {
    "ddpm-linear": ddpm_linear,
    "ddpm-scaled-linear": ddpm_scaled_linear,
    "ddpm-cosine": ddpm_cosine,
    "variance-exploding": variance_exploding,
}


def path_named(name: str) -> Path:
    if name not in PATHS:
        raise unknown("path", name, PATHS)
    return PATHS[name]()


def add_noise(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """alpha x + sigma noise for pictures (B, C, H, W) and coefficients (B,) (Ho et al. 2020, eq. 4)."""
    return alpha[:, None, None, None] * x + sigma[:, None, None, None] * noise
