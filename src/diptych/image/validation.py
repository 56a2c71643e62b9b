"""Measuring the networks of this panel on pictures that they did not learn from.

Noise and times are a function of a picture's place in the set and of nothing else, so the same weights give the same
figures, however many pictures go through the network at once. Training's validation and `diptych evaluate` both call
these functions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.core.estimate import Estimate, estimate, mean
from diptych.core.randomness import generator, normal
from diptych.image.autoencoder import Autoencoder
from diptych.image.condition import Condition
from diptych.image.denoiser import Denoiser
from diptych.image.fidelity import peak_signal_to_noise, structural_similarity
from diptych.image.objective import denoising_objective
from diptych.image.path import LARGEST_LOG_SNR, Path

AT_ONCE = 8  # pictures of an autoencoder: more are no faster, and 32 took 147 MiB and more where 8 take 44
LEVELS = 10
PREDICTIONS = 512  # about as many are made as long as there are fewer pictures than that
NOISE, TIMES = 1, 2  # streams of randomness


class Level(NamedTuple):
    """One of equal parts of the path's times: the log signal-to-noise ratio at its clean and its noisy end."""

    log_snr: tuple[float, float]
    loss: Estimate


@dataclass(frozen=True)
class DenoisingLoss:
    """Mean squared error of the noise, as predicted or implied by what is (1 is to guess none), evenly over times.

    Args:
        overall: its count is of pictures, which are what is drawn; a level's count is of predictions, each of another
            picture.
        levels: from nearly clean to nearly static.
    """

    overall: Estimate
    levels: list[Level]

    def figures(self, name: str) -> dict[str, float]:
        """For a log: `name` and `name`/level-01, ..., each with its interval and count."""
        parts = (level.loss.figures(f"{name}/level-{number:02d}") for number, level in enumerate(self.levels, 1))
        return self.overall.figures(name) | {key: figure for part in parts for key, figure in part.items()}

    def to_dict(self) -> dict[str, Any]:
        levels = [{"log_snr": list(level.log_snr), **level.loss.to_dict()} for level in self.levels]
        return {**self.overall.to_dict(), "levels": levels}


def predictions_each(count: int) -> int:
    """How many predictions `denoising_loss` makes of each of so many pictures."""
    return next(one for one in (1, 2, 5, LEVELS) if count * one >= PREDICTIONS or one == LEVELS)


@torch.no_grad()
def denoising_loss(
    denoiser: Denoiser, clean: Tensor, condition: Condition, *, seed: int = 0, batch: int = 32
) -> DenoisingLoss:
    """The loss by noise level and on the whole.

    The path's times, from its start to its end, are cut into `LEVELS` equal parts. A picture is noised within one part,
    or, where there are few pictures, within two, five or all of them, so that about `PREDICTIONS` are made. Which
    parts, when within them and with what noise depends on `seed` and the picture's place.

    Args:
        clean: (N, C, H, W), float32, what the network noises.
        condition: N prompts.
        batch: predictions in one call; it changes the speed, and the figures by rounding alone.
    """
    path, count = denoiser.path, len(clean)
    each = predictions_each(count)
    levels_of = (np.arange(count)[:, None] + np.arange(each) * (LEVELS // each)) % LEVELS  # (count, each)
    plan = [(k, int(level)) for k, row in enumerate(levels_of) for level in row]
    found: list[float] = []
    for start in range(0, len(plan), batch):
        rows = plan[start : start + batch]
        places = torch.tensor([k for k, _ in rows])
        noise = torch.stack(
            [normal(clean.shape[1:], seed=seed, sample=k, step=level, stream=NOISE) for k, level in rows]
        )
        within = [generator(seed=seed, sample=k, step=level, stream=TIMES).random() for k, level in rows]
        times = [_time(path, level + part) for (_, level), part in zip(rows, within, strict=True)]
        _, of_rows = denoising_objective(
            denoiser.network,
            denoiser.prediction,
            path,
            clean[places],
            noise.to(clean.device),
            torch.tensor(times, dtype=torch.float32, device=clean.device),
            condition[places],
        )
        found += of_rows.tolist()
    losses = np.array(found).reshape(count, each)
    by_level = [losses[levels_of == level] for level in range(LEVELS)]
    edges = [max(path.node(_time(path, edge)).log_snr, -LARGEST_LOG_SNR) for edge in range(LEVELS + 1)]
    levels = [Level((edges[k], edges[k + 1]), mean(part)) for k, part in enumerate(by_level)]
    return DenoisingLoss(_overall(losses, LEVELS // each), levels)


def _time(path: Path, level: float) -> float:
    return path.end + (path.start - path.end) * level / LEVELS


def _overall(losses: np.ndarray, groups: int) -> Estimate:
    """The mean over levels of what was measured at some levels of each picture: (pictures, levels of each).

    Picture k belongs to group k % groups, whose levels are its own: a stratified sample of pictures (Cochran 1977,
    eq. 5.13), each of which brings the mean of its levels, so that levels of one picture do not count as independent.
    """
    each = losses.mean(1)
    strata = [each[group::groups] for group in range(groups)]
    variances = [part.var(ddof=1) / len(part) if len(part) > 1 else math.inf for part in strata]
    error = math.sqrt(sum(variances)) / len(strata)
    return estimate(float(np.mean([part.mean() for part in strata])), error, len(each))


@torch.no_grad()
def latents_of(autoencoder: Autoencoder, pictures: np.ndarray, batch: int = 32) -> Tensor:
    """Pictures (N, 3, H, W) uint8 to normalised latents (N, C, h, w), float32, on the autoencoder's device."""
    return torch.cat([autoencoder.encode(part) for part in _parts(pictures, batch, autoencoder.shift.device)])


@dataclass(frozen=True)
class Fidelity:
    """How well pictures come back from their latents; counts are of pictures.

    Args:
        psnr_db: peak signal-to-noise ratio, mean over pictures.
        ssim: structural similarity of the luminance.
        absolute_error: of pixels, which lie in -1..1.
    """

    psnr_db: Estimate
    ssim: Estimate
    absolute_error: Estimate

    def figures(self) -> dict[str, float]:
        return {key: value for name, part in vars(self).items() for key, value in part.figures(name).items()}

    def to_dict(self) -> dict[str, Any]:
        return {name: part.to_dict() for name, part in vars(self).items()}


@torch.no_grad()
def fidelity(autoencoder: Autoencoder, pictures: np.ndarray, batch: int = AT_ONCE) -> Fidelity:
    """Pictures (N, 3, H, W) uint8, written down as the latent's mean and read back, against themselves.

    The latents go to the decoder as they are: shift and scale would cancel but for rounding.
    """
    # Made at once: what is kept of a part would lie where the next one needs room.
    found = np.empty((3, len(pictures)))
    for index, part in enumerate(_parts(pictures, batch, autoencoder.shift.device)):
        mean_latent, _ = autoencoder.moments(part)
        rebuilt = autoencoder.decoder(mean_latent).float().clamp(-1, 1)
        absolute = (rebuilt - part).abs().mean((1, 2, 3))
        each = torch.stack([peak_signal_to_noise(rebuilt, part), structural_similarity(rebuilt, part), absolute])
        found[:, index * batch : (index + 1) * batch] = each.double().cpu()
    return Fidelity(*map(mean, found))


def _parts(pictures: np.ndarray, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Pictures in float32, -1..1, `batch` at a time."""
    for start in range(0, len(pictures), batch):
        yield torch.from_numpy(pictures[start : start + batch].copy()).to(device).float() / 127.5 - 1
