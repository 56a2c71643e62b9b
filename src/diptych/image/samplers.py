"""Samplers: from pure noise to a picture in a few calls of the denoiser.

A sampler is a function. It is given the visits so far (where the picture was, what the denoiser said of it), where it
goes next, and fresh noise; it returns the picture there. It never calls the network and keeps nothing between calls:
the runner owns the loop. It works in the frame of the path that its nodes lie on, so one formula serves all paths.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from diptych.core.spelling import unknown
from diptych.image.path import Node


@dataclass(frozen=True)
class Visit:
    """One call of the denoiser: the picture `x` at `node`, and the estimate of the clean picture, both (B, C, H, W)."""

    node: Node
    x: Tensor
    denoised: Tensor


Update = Callable[[Sequence[Visit], Node, Tensor], Tensor]


def first_order(x: Tensor, denoised: Tensor, here: Node, there: Node) -> Tensor:
    """Move along the straight line to the denoised picture: exact if the denoiser were constant.

    This is DDIM with eta = 0 (Song et al. 2021, eq. 12) and Euler in the variance-exploding frame (Karras et al. 2022,
    alg. 1), depending only on the path that the nodes lie on.
    """
    ratio = there.sigma / here.sigma
    return ratio * x + (there.alpha - ratio * here.alpha) * denoised


def euler(visits: Sequence[Visit], there: Node, noise: Tensor) -> Tensor:
    last = visits[-1]
    return first_order(last.x, last.denoised, last.node, there)


def ancestral(visits: Sequence[Visit], there: Node, noise: Tensor) -> Tensor:
    """Go below `there` without noise, then add fresh noise up to it.

    The draw from q(x_there | x_here, x_0 = denoised) (Ho et al. 2020, eq. 7, the smaller variance): DDPM's step, and
    Euler ancestral with eta = 1, which are the same formula in two frames.
    """
    last = visits[-1]
    here, ratio, goal = last.node, last.node.noise_ratio, there.noise_ratio
    down = goal * goal / ratio  # noise ratio after the deterministic part
    up = math.sqrt(max(goal * goal - down * down, 0.0))  # what the fresh noise adds, in the same units
    kept = there.alpha * down / (ratio * here.alpha)
    return kept * last.x + there.alpha * (1 - down / ratio) * last.denoised + there.alpha * up * noise


def heun(visits: Sequence[Visit], there: Node, noise: Tensor) -> Tensor:
    """Euler's step, looked at again from its end, then taken with the mean of both slopes (Karras et al. 2022, alg. 1).

    Each node but the first and the last is visited twice: arriving (predicted) and corrected. The slope is
    d(x / alpha) / d(sigma / alpha) = (x / alpha - denoised) / (sigma / alpha).
    """
    last = visits[-1]
    if last.node is not there:
        return euler(visits, there, noise)
    before = visits[-2]
    slope_before = (before.x / before.node.alpha - before.denoised) / before.node.noise_ratio
    slope_there = (last.x / there.alpha - last.denoised) / there.noise_ratio
    width = there.noise_ratio - before.node.noise_ratio
    return there.alpha * (before.x / before.node.alpha + width * (slope_before + slope_there) / 2)


def dpmpp_2m(visits: Sequence[Visit], there: Node, noise: Tensor) -> Tensor:
    """DPM-Solver++ (2M) (Lu et al. 2022, alg. 2): the denoised picture is taken as a line in lambda = log(alpha/sigma)
    through the last two visits. The first step, and the last one to the clean picture, are of first order.
    """
    last = visits[-1]
    if len(visits) < 2 or there.sigma == 0:
        return euler(visits, there, noise)
    before = visits[-2]
    step = there.lambda_ - last.node.lambda_
    r = (last.node.lambda_ - before.node.lambda_) / step
    ahead = (1 + 1 / (2 * r)) * last.denoised - 1 / (2 * r) * before.denoised
    return there.sigma / last.node.sigma * last.x - there.alpha * math.expm1(-step) * ahead


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    Args:
        update: the formula.
        nodes: the node rule it is used with unless another is asked for.
        visits_twice: calls the denoiser again at each node that it arrives at.
        is_random: adds fresh noise at each step.
    """

    update: Update
    nodes: str
    visits_twice: bool = False
    is_random: bool = False

    def route(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes in the order of the calls, the clean picture last: call i leads from route[i] to route[i+1]."""
        if not self.visits_twice:
            return list(nodes)
        return [nodes[0], *(node for node in nodes[1:-1] for _ in range(2)), nodes[-1]]


SAMPLERS = {
    "ddpm": Sampler(ancestral, "uniform", is_random=True),
    "ddim": Sampler(euler, "uniform"),
    "euler": Sampler(euler, "karras"),
    "euler-ancestral": Sampler(ancestral, "karras", is_random=True),
    "heun": Sampler(heun, "karras", visits_twice=True),
    "dpm++-2m": Sampler(dpmpp_2m, "karras"),
}


def sampler_named(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]
