"""Guidance: what is made of two estimates of the clean picture, one with the prompt and one without (or with less).

Each way is a function of denoised estimates. In noise, in v or in x_0 classifier-free guidance is the same line, since
these differ by terms that do not depend on the condition; here everything is done in x_0, which is what a person sees.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.checks import is_number
from diptych.image.path import Node

PICTURE = (1, 2, 3)  # the axes of one picture in a batch (B, C, H, W)
MOST_GROWTH = 50.0  # of an estimate by guidance, past which nothing is left to see


@dataclass(frozen=True)
class Guidance:
    """How far to go away from what the picture would be without the prompt, and how that is kept in bounds.

    Args:
        scale: 1 is no guidance, 0 is without the prompt (Ho & Salimans 2022, eq. 6, with scale = 1 + w).
        rescale: 0..1, how far the guided estimate gets back the deviation of the one with the prompt (Lin et al. 2024,
            eq. 15, 16); 0 leaves it.
        interval: guided between these noise levels sigma / alpha only, the ends included (Kynkäänniemi et al. 2024);
            outside, the second estimate is not even made. None as the upper one is no bound.
        threshold: the share of numbers that dynamic thresholding leaves alone (Saharia et al. 2022, sec. 2.3), 0.995
            say; 0 is off.
        parallel: how much of the push along the estimate itself is kept: it burns out colours (Sadat et al. 2024,
            "APG", eq. 5, their eta); 1 keeps all.
        limit: the longest push, in units of the estimate's own length (their r, relative); 0 is none.
        momentum: how much of the pushes before is added to each (their beta, usually negative); 0 is none.
    """

    scale: float = 5.0
    rescale: float = 0.0
    interval: tuple[float, float | None] = (0.0, None)
    threshold: float = 0.0
    parallel: float = 1.0
    limit: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        for name, value, most, words in (
            ("guidance_scale", self.scale, math.inf, ">= 0"),
            ("guidance_rescale", self.rescale, 1, "from 0 to 1"),
            ("guidance_limit", self.limit, math.inf, ">= 0"),
            ("guidance_parallel", self.parallel, 1, "from 0 to 1"),
        ):
            if not is_number(value) or not 0 <= value <= most:
                raise ValueError(f"{name} must be a finite number {words}, not {value!r}")
        if not is_number(self.threshold) or not 0 <= self.threshold < 1:
            raise ValueError(f"guidance_threshold must be a number from 0 to below 1, not {self.threshold!r}")
        if not is_number(self.momentum) or not -1 < self.momentum < 1:
            raise ValueError(f"guidance_momentum must be a number between -1 and 1, not {self.momentum!r}")
        try:
            low, high = self.interval
            is_right = is_number(low) and 0 <= low < (math.inf if high is None else float(high))
        except (TypeError, ValueError):
            is_right = False
        if not is_right:
            raise ValueError(
                f"guidance_interval must be two noise levels sigma / alpha, the lower one first, not {self.interval!r}"
            )

    @property
    def ever(self) -> bool:
        """Scale 1 is no guidance: the second estimate would be multiplied by zero, so it is never made."""
        return self.scale != 1

    def acts_at(self, node: Node) -> bool:
        low, high = self.interval
        # Pure noise has no level of its own on a path without signal there: it counts as the highest.
        level = node.noise_ratio if node.alpha > 0 else math.inf
        return self.ever and low <= level and (high is None or level <= high)


def guide(
    conditional: Tensor, unconditional: Tensor, guidance: Guidance, running: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The guided estimate, and the running push that the next step's momentum adds to.

    Args:
        conditional, unconditional: estimates of x_0, (B, C, H, W), float32. "Unconditional" is what the negative
            prompt gives where there is one, or a weaker network (Karras et al. 2024, "Guiding a diffusion model with a
            bad version of itself").
        running: what the step before returned second.
    """
    push = conditional - unconditional
    if running is not None and guidance.momentum:
        push = push + guidance.momentum * running
    running = push
    push = bounded(push, conditional, guidance.limit)
    push = turned(push, conditional, guidance.parallel)
    guided = conditional + (guidance.scale - 1) * push
    guided = rescaled(guided, conditional, guidance.rescale)
    return thresholded(guided, conditional, guidance.threshold), running


def bounded(push: Tensor, conditional: Tensor, limit: float) -> Tensor:
    """The push, no longer than `limit` times the estimate (Sadat et al. 2024, sec. 4.2)."""
    if not limit:
        return push
    longest = limit * length(conditional)
    return push * (longest / length(push).clamp(min=1e-12)).clamp(max=1)


def turned(push: Tensor, conditional: Tensor, parallel: float) -> Tensor:
    """The push with `parallel` of its part along the estimate (Sadat et al. 2024, eq. 5)."""
    if parallel == 1:
        return push
    along = (push * conditional).sum(PICTURE, keepdim=True) / conditional.square().sum(PICTURE, keepdim=True)
    return push - (1 - parallel) * along * conditional


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """`share` of the way to the deviation of the estimate with the prompt (Lin et al. 2024, eq. 15, 16)."""
    if not share:
        return guided
    ratio = conditional.std(PICTURE, keepdim=True) / guided.std(PICTURE, keepdim=True)
    return guided * (share * ratio + 1 - share)


def thresholded(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Numbers past the `share` quantile s are cut off, and all are shrunk so that s comes to lie where the same
    quantile of the estimate with the prompt lies, where s is larger (Saharia et al. 2022, sec. 2.3; they know that
    pixels end at 1, a latent has no such bound)."""
    if not share:
        return guided
    largest = guided.abs().flatten(1).quantile(share, dim=1).view(-1, 1, 1, 1)
    usual = conditional.abs().flatten(1).quantile(share, dim=1).view(-1, 1, 1, 1)
    largest = torch.maximum(largest, usual)
    return torch.minimum(torch.maximum(guided, -largest), largest) * (usual / largest)


def length(x: Tensor) -> Tensor:
    return x.square().sum(PICTURE, keepdim=True).sqrt()


def check_sane(denoised: Tensor, conditional: Tensor, step: int, total: int, scale: float) -> None:
    """Raises: ValueError for an estimate that is not finite, or so large by guidance that it shows nothing."""
    size, usual = (float(one.square().mean().sqrt()) for one in (denoised, conditional))
    if math.isfinite(size) and size <= MOST_GROWTH * usual:
        return
    if math.isfinite(usual):
        what = f"is {size / usual:.3g} times as large as without guidance; guidance_scale {scale:g} is too much here"
    else:
        what = "is not finite; the network's own prediction is broken"
    raise ValueError(f"painting diverged at step {step + 1} of {total}: the denoised estimate {what}")
