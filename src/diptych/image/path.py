"""How noise is added: x_t = alpha(t) x_0 + sigma(t) eps, with t from 0 (the picture) to 1 (static).

A path is two numbers as functions of time, and everything else follows from them. Samplers, guidance and training see
only `Node`s of it: a time with its alpha and sigma. At pure noise alpha is 0: nothing divides by it there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diptych.core.choice import read_choice, settings_of, write_choice

# "preserving" keeps alpha^2 + sigma^2 = 1 (the DDPM family), "exploding" keeps alpha = 1, "flow" alpha + sigma = 1.
Kind = Literal["preserving", "exploding", "flow"]
LARGEST_LOG_SNR = 30.0  # what networks and reports are told of a picture without noise, and below zero of pure noise
FINITE_RATIO = 4096.0  # where node rules that need a finite sigma / alpha begin on a path that ends in pure noise


@dataclass(frozen=True)
class Node:
    """One noise level on a path.

    The path's ODE is solved for y = x / scale over the coordinate sigma / scale, in which its solutions are straight
    where the clean picture is known: dy / dcoordinate = (x - scale x_0) / sigma. The scale is alpha on most paths
    (Karras et al. 2022, eq. 4), and alpha + sigma = 1 on the flow's, where the slope is the velocity.
    """

    time: float
    alpha: float
    sigma: float
    is_flow: bool = False

    @property
    def lambda_(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma) (Lu et al. 2022); infinite for a clean picture and,
        below zero, for pure noise."""
        if self.sigma <= 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def log_snr(self) -> float:
        """log(alpha^2 / sigma^2)."""
        return 2 * self.lambda_

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha: the noise level seen from a picture of unit scale (the sigma of Karras et al. 2022)."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def noise_share(self) -> float:
        """Share of the variance that is noise, for a picture of unit variance."""
        return self.sigma**2 / (self.alpha**2 + self.sigma**2)

    @property
    def scale(self) -> float:
        return self.alpha + self.sigma if self.is_flow else self.alpha

    @property
    def coordinate(self) -> float:
        return self.sigma / self.scale if self.scale > 0 else math.inf


@dataclass(frozen=True)
class Path:
    """alpha and sigma by their ratio: `log_ratio(t)` = log(sigma / alpha), increasing, and its inverse.

    Args:
        name: as `path_named` reads it, for a checkpoint's config.
        kind: what alpha and sigma keep.
        log_ratio: array of times in 0..1 -> log(sigma / alpha), elementwise; infinite where there is no signal.
        start: the time at which generation starts: the noisiest that training sees.
        end: the least noisy time that training sees; below it a picture counts as clean.
        steps: of the discrete process; trained step t = 0..steps-1 is the time (t + 1) / steps.
    """

    name: str
    kind: Kind
    log_ratio: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    start: float = 1.0
    end: float = 1e-3
    steps: int = 1000
    settings: dict[str, Any] = field(default_factory=dict)

    def node(self, time: float) -> Node:
        return self._node(time, float(self.log_ratio(np.asarray(float(time)))))

    def at_ratio(self, ratio: float) -> Node:
        """The node where sigma / alpha is `ratio`; 0 is the clean picture, infinity pure noise."""
        if ratio == 0:
            return Node(0.0, 1.0, 0.0, self.kind == "flow")
        if ratio == math.inf:
            return self._node(1.0, math.inf)
        logarithm = math.log(ratio)
        return self._node(float(self.inverse(np.asarray(logarithm))), logarithm)

    def at_log_snr(self, log_snr: float) -> Node:
        """The node where log(alpha^2 / sigma^2) is `log_snr`."""
        return self.at_ratio(math.exp(-log_snr / 2))

    def at_coordinate(self, value: float) -> Node:
        """The node where `Node.coordinate` is `value`: sigma on the flow's path, sigma / alpha on the others."""
        if self.kind != "flow":
            return self.at_ratio(value)
        return self.at_ratio(value / (1 - value) if value < 1 else math.inf)

    def timestep(self, node: Node) -> float:
        """The trained step of a node, 0..steps-1, real-valued."""
        return self.steps * node.time - 1

    def at_timestep(self, timestep: float) -> Node:
        """The node of a trained step. Between two of them sigma / alpha goes in a straight line where the process is
        discrete, as node rules elsewhere have it; `node` goes in a straight line of its logarithm."""
        below = math.floor(timestep)
        if self.kind != "preserving" or below == timestep or below + 2 > self.steps:
            return self.node((timestep + 1) / self.steps)
        low, high = (self.node((t + 1) / self.steps).noise_ratio for t in (below, below + 1))
        if high == math.inf:
            return self.node((timestep + 1) / self.steps)
        ratio = low + (timestep - below) * (high - low)
        return self._node((timestep + 1) / self.steps, math.log(ratio))

    def _node(self, time: float, logarithm: float) -> Node:
        if logarithm == math.inf:
            return Node(time, 0.0, 1.0, self.kind == "flow")
        ratio = math.exp(logarithm)
        if self.kind == "flow":
            return Node(time, 1 / (1 + ratio), ratio / (1 + ratio), True)
        alpha = 1 / math.sqrt(1 + ratio * ratio) if self.kind == "preserving" else 1.0
        return Node(time, alpha, ratio * alpha)

    def coefficients(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of a batch of times (B,), float32, on the device of `times`."""
        logarithm = torch.from_numpy(np.asarray(self.log_ratio(times.double().cpu().numpy())))
        if self.kind == "preserving":
            alpha = torch.sigmoid(-2 * logarithm).sqrt()
            sigma = torch.sigmoid(2 * logarithm).sqrt()
        elif self.kind == "flow":
            alpha, sigma = torch.sigmoid(-logarithm), torch.sigmoid(logarithm)
        else:
            alpha, sigma = torch.ones_like(logarithm), logarithm.exp()
        return alpha.float().to(times.device), sigma.float().to(times.device)

    def for_tokens(self, tokens: int) -> "Path":
        """The path for pictures of so many patches that the network looks at: the flow's, where it is shifted by
        resolution (`rectified_flow`), and itself otherwise."""
        if not self.settings.get("max_shift"):
            return self
        return rectified_flow(**{**self.settings, "shift": shift_for(tokens, **_shift_settings(self.settings))})


def _extended(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Linear interpolation that goes on along the first and the last piece."""
    piece = np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2)
    slope = (ys[piece + 1] - ys[piece]) / (xs[piece + 1] - xs[piece])
    return np.asarray(ys[piece] + slope * (x - xs[piece]))


def _from_alpha_bar(alpha_bar: np.ndarray, *, zero_snr: bool) -> Path:
    """A discrete schedule, alpha_bar after steps 1..T; between its steps, straight lines in log(sigma / alpha).

    With zero_snr, sqrt(alpha_bar) is stretched to end at exactly 0 and begin where it began (Lin et al. 2024, alg. 1),
    and the straight lines are of alpha, as the logarithm has no last value.
    """
    steps = np.arange(1, len(alpha_bar) + 1) / len(alpha_bar)
    if zero_snr:
        alpha = np.sqrt(alpha_bar)
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        falling, rising = alpha[::-1].copy(), steps[::-1].copy()

        def log_ratio(t: np.ndarray) -> np.ndarray:
            value = np.clip(_extended(t, steps, alpha), 0.0, 1 - 1e-12)
            with np.errstate(divide="ignore"):
                return np.asarray(0.5 * np.log1p(-(value**2)) - np.log(value))

        def inverse(logarithm: np.ndarray) -> np.ndarray:
            return _extended(1 / np.sqrt(1 + np.exp(2 * logarithm)), falling, rising)

    else:
        logarithms = 0.5 * (np.log1p(-alpha_bar) - np.log(alpha_bar))

        def log_ratio(t: np.ndarray) -> np.ndarray:
            return _extended(t, steps, logarithms)

        def inverse(logarithm: np.ndarray) -> np.ndarray:
            return _extended(logarithm, logarithms, steps)

    return Path("", "preserving", log_ratio, inverse, end=float(steps[0]), steps=len(alpha_bar))


def ddpm_linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02, zero_snr: bool = False) -> Path:
    """beta from 1e-4 to 0.02 in a straight line (Ho et al. 2020, sec. 4)."""
    betas = np.linspace(first, last, steps, dtype=np.float64)
    path = _from_alpha_bar(np.cumprod(1 - betas), zero_snr=zero_snr)
    return _named(path, "ddpm-linear", steps=steps, first=first, last=last, zero_snr=zero_snr)


def ddpm_scaled_linear(steps: int = 1000, first: float = 0.00085, last: float = 0.012, zero_snr: bool = False) -> Path:
    """sqrt(beta) in a straight line, the schedule of latent diffusion (Rombach et al. 2022)."""
    betas = np.linspace(first**0.5, last**0.5, steps, dtype=np.float64) ** 2
    path = _from_alpha_bar(np.cumprod(1 - betas), zero_snr=zero_snr)
    return _named(path, "ddpm-scaled-linear", steps=steps, first=first, last=last, zero_snr=zero_snr)


def ddpm_cosine(steps: int = 1000, offset: float = 0.008, largest: float = 20.0, zero_snr: bool = False) -> Path:
    """alpha_bar(t) = cos^2 of a quarter turn, beta at most 0.999 (Nichol & Dhariwal 2021, eq. 17).

    The last steps have hardly any signal (sigma / alpha in the hundreds), and a noise prediction that is a little wrong
    there means a picture that is far off. Generation starts where the ratio is `largest`: alpha^2 is 1/401; 0 starts it
    at the end.
    """
    edges = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
    betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    path = _from_alpha_bar(np.cumprod(1 - betas), zero_snr=zero_snr)
    if largest and not zero_snr:
        path = replace(path, start=float(path.inverse(np.asarray(math.log(largest)))))
    return _named(path, "ddpm-cosine", steps=steps, offset=offset, largest=largest, zero_snr=zero_snr)


def variance_exploding(smallest: float = 0.002, largest: float = 80.0) -> Path:
    """alpha = 1, sigma geometric in time between the two (Song et al. 2021; the range of Karras et al. 2022)."""
    low, high = math.log(smallest), math.log(largest)
    path = Path(
        "",
        "exploding",
        lambda t: low + (high - low) * np.asarray(t),
        lambda value: (np.asarray(value) - low) / (high - low),
        end=0.0,
    )
    return _named(path, "variance-exploding", smallest=smallest, largest=largest)


def rectified_flow(
    shift: float = 1.0,
    base_shift: float = 0.5,
    max_shift: float = 0.0,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    time_shift: str = "exponential",
) -> Path:
    """A straight line from the picture to the noise, alpha = 1 - sigma (Liu et al. 2023; Esser et al. 2024, eq. 12).

    With shift, sigma = shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23): sigma / alpha is `shift` times as
    large at every time, as a larger picture needs. Where `max_shift` is given, `Path.for_tokens` works it out from the
    size of the picture (`shift_for`).
    """
    offset = math.log(shift)

    def log_ratio(t: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.asarray(offset + np.log(t) - np.log1p(-np.asarray(t)))

    def inverse(logarithm: np.ndarray) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(offset - logarithm)))

    return _named(
        Path("", "flow", log_ratio, inverse),
        "rectified-flow",
        shift=shift,
        base_shift=base_shift,
        max_shift=max_shift,
        base_tokens=base_tokens,
        max_tokens=max_tokens,
        time_shift=time_shift,
    )


def shift_for(
    tokens: int, base_shift: float, max_shift: float, base_tokens: int, max_tokens: int, time_shift: str
) -> float:
    """The shift for a picture of `tokens` patches, as Flux.1 has it: mu lies on the line through (base_tokens,
    base_shift) and (max_tokens, max_shift); an exponential time shift is by exp(mu), a linear one by mu itself."""
    mu = base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)
    return math.exp(mu) if time_shift == "exponential" else mu


def _shift_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "shift"}


def _named(path: Path, name: str, **settings: Any) -> Path:
    return replace(path, name=write_choice(name, settings, DEFAULTS[name]), settings=settings)


PATHS: dict[str, Callable[..., Path]] = {
    "ddpm-linear": ddpm_linear,
    "ddpm-scaled-linear": ddpm_scaled_linear,
    "ddpm-cosine": ddpm_cosine,
    "variance-exploding": variance_exploding,
    "rectified-flow": rectified_flow,
}
DEFAULTS = {name: settings_of(make) for name, make in PATHS.items()}


def path_named(name: str) -> Path:
    """A path by its name, with settings where they are not the usual: "rectified-flow:shift=3".

    Raises:
        ValueError: an unknown name or setting, or a value that cannot be.
    """
    word, settings = read_choice("path", name, DEFAULTS)
    _check(word, settings)
    return PATHS[word](**settings)


def _check(word: str, settings: dict[str, Any]) -> None:
    """Betas and ratios that make a process; a shift that is one."""

    def refuse(key: str, allowed: str) -> ValueError:
        return ValueError(f"{key} of path '{word}' must be {allowed}, not {settings[key]}")

    for key, value in settings.items():
        if key == "steps" and value < 2:
            raise refuse(key, "at least 2")
        if key in ("first", "last") and not 0 < value < 1:
            raise refuse(key, "above 0 and below 1")
        if key in ("shift", "smallest", "base_shift") and value <= 0:
            raise refuse(key, "above 0")
        if key in ("offset", "max_shift") and value < 0:
            raise refuse(key, "0 or more")
        if key == "time_shift" and value not in ("exponential", "linear"):
            raise refuse(key, "exponential or linear")
    if word == "ddpm-cosine" and settings["largest"] < 0:
        raise refuse("largest", "0 (the end) or more")
    if word == "variance-exploding" and settings["largest"] <= settings["smallest"]:
        raise refuse("largest", "above smallest")
    if word == "rectified-flow" and settings["max_tokens"] <= settings["base_tokens"]:
        raise refuse("max_tokens", "above base_tokens")


def add_noise(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """alpha x + sigma noise for pictures (B, C, H, W) and coefficients (B,) (Ho et al. 2020, eq. 4)."""
    return alpha[:, None, None, None] * x + sigma[:, None, None, None] * noise
