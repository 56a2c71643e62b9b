"""Samplers that look at one step at a time: once (Euler, DDIM, DDPM, LCM), again from its end (Heun), or from a point
on the way (DPM-Solver-2, DPM-Solver++ (2S) and SDE).

An update is given the visits so far, the nodes ahead (first the one that it goes to) and fresh noise.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from diptych.image.moves import Midway, Visit, ancestral, ancestral_levels, drawn, first_order, level, raised
from diptych.image.path import Node


def euler(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, eta: float) -> Tensor:
    """Along the straight line, with eta > 0 below the next node and up again by fresh noise."""
    last = visits[-1]
    return ancestral(last.x, last.denoised, last.node, ahead[0], noise, eta)


def lcm(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor) -> Tensor:
    """All the way to the picture, and noise anew up to the next level (Song et al. 2023, alg. 1; Luo et al. 2023)."""
    last, there = visits[-1], ahead[0]
    return there.alpha * last.denoised + there.sigma * noise


def heun(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor) -> Tensor:
    """Euler's step, looked at again from its end, then taken with the mean of both slopes (Karras et al. 2022, alg. 1).

    Each node but the first and the last is visited twice: arriving (predicted) and corrected.
    """
    last, there = visits[-1], ahead[0]
    if last.node is not there:
        return first_order(last.x, last.denoised, last.node, there)
    return _along(visits[-2], (visits[-2].slope + last.slope) / 2, there)


def dpm2(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, eta: float) -> Tensor:
    """DPM-Solver-2 as Karras et al. 2022 have it (alg. 2): the slope halfway in the coordinate's logarithm is that of
    the whole step, which with eta > 0 ends below the next node."""
    last, there = visits[-1], ahead[0]
    if isinstance(there, Midway):
        return first_order(last.x, last.denoised, last.node, there)
    if not isinstance(last.node, Midway):
        return ancestral(last.x, last.denoised, last.node, there, noise, eta)
    start = visits[-2]
    if eta == 0:
        return _along(start, last.slope, there)
    down, up = ancestral_levels(start.node, there, eta)
    below = level(down, there)
    return raised(_along(start, last.slope, below), below, there, up, noise)


def dpmpp_2s(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, eta: float) -> Tensor:
    """DPM-Solver++ (2S) (Lu et al. 2022, alg. 1, r = 1/2): what the denoiser says halfway in lambda = log(alpha/sigma)
    holds for the whole step, which with eta > 0 ends below the next node."""
    last, there = visits[-1], ahead[0]
    if isinstance(there, Midway):
        return first_order(last.x, last.denoised, last.node, there)
    start = visits[-2] if isinstance(last.node, Midway) else last
    return ancestral(start.x, last.denoised, start.node, there, noise, eta)


def dpmpp_sde(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, eta: float) -> Tensor:
    """DPM-Solver++ (SDE), r = 1/2: halfway in lambda the picture is drawn, not only moved, and so at the end.

    Both draws of a step are of one Brownian path over sigma / alpha, so the whole step's begins with the half's: with
    two that know nothing of each other the variance is hardly better than Euler ancestral's (docs/lab-notes.md).
    """
    last, there = visits[-1], ahead[0]
    if not isinstance(last.node, Midway) or eta == 0:
        start = visits[-2] if isinstance(last.node, Midway) else last
        return ancestral(start.x, last.denoised, start.node, there, noise, eta)
    start, middle = visits[-2], last.node
    here = start.node.noise_ratio
    share = (here - middle.noise_ratio) / (here - there.noise_ratio)
    whole = math.sqrt(share) * drawn(start, last, eta) + math.sqrt(1 - share) * noise
    return ancestral(start.x, last.denoised, start.node, there, whole, eta)


def _along(start: Visit, slope: Tensor, there: Node) -> Tensor:
    """From a visit along a slope."""
    here = start.node
    return there.scale * (start.x / here.scale + (there.coordinate - here.coordinate) * slope)
