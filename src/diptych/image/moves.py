"""What all samplers are made of: a visit of the denoiser, and the few ways of going on from there.

All work in the frame of the path that the nodes lie on, so one formula serves all paths, and none divides by alpha
where the picture is pure noise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.image.path import Node


@dataclass(frozen=True)
class Visit:
    """One call of the denoiser: the picture `x` at `node`, and the estimate of the clean picture, both (B, C, H, W)."""

    node: Node
    x: Tensor
    denoised: Tensor

    @property
    def slope(self) -> Tensor:
        """d(x / scale) / d(sigma / scale): the predicted noise on most paths, the velocity on the flow's. Where the
        scale is 0 there is none."""
        return (self.x / self.node.scale - self.denoised) / self.node.coordinate

    @property
    def noise(self) -> Tensor:
        """The noise that the estimate implies (Ho et al. 2020, eq. 15)."""
        return (self.x - self.node.alpha * self.denoised) / self.node.sigma

    @property
    def v(self) -> Tensor:
        """alpha noise - sigma x_0 (Salimans & Ho 2022, app. D)."""
        return self.node.alpha * self.noise - self.node.sigma * self.denoised


@dataclass(frozen=True)
class Midway(Node):
    """A node that a sampler looks at between two others, to take the whole step better."""


def first_order(x: Tensor, denoised: Tensor, here: Node, there: Node) -> Tensor:
    """Move along the straight line to the denoised picture: exact if the denoiser were constant.

    This is DDIM with eta = 0 (Song et al. 2021, eq. 12), Euler in the variance-exploding frame (Karras et al. 2022,
    alg. 1) and flow-matching Euler, depending only on the path that the nodes lie on.
    """
    ratio = there.sigma / here.sigma
    return ratio * x + (there.alpha - ratio * here.alpha) * denoised


def ancestral_levels(here: Node, there: Node, eta: float) -> tuple[float, float]:
    """How far below `there` a random step goes, and how much fresh noise brings it up again, both as sigma / alpha.

    With eta = 1 it is the draw from q(x_there | x_here, x_0 = denoised) (Ho et al. 2020, eq. 7, the smaller variance);
    eta scales the deviation of that draw (Song et al. 2021, eq. 16). DDIM's formula, written with alphas, and
    k-diffusion's, written with sigmas, are this one.
    """
    goal = there.noise_ratio
    known = (goal / here.noise_ratio) ** 2  # share of the variance at `there` that `here` knows of
    return goal * math.sqrt((1 - eta * eta) + eta * eta * known), goal * eta * math.sqrt(1 - known)


def level(ratio: float, like: Node) -> Node:
    """A node of that sigma / alpha, of the kind of path of `like`; its scale and time are of no matter."""
    return Node(0.0, 1 / (1 + ratio), ratio / (1 + ratio), True) if like.is_flow else Node(0.0, 1.0, ratio)


def raised(x: Tensor, below: Node, there: Node, up: float, noise: Tensor) -> Tensor:
    """From a node below `there` up to it: fresh noise, and the scale of `there`."""
    return there.alpha * (x / below.alpha + up * noise)


def ancestral(x: Tensor, denoised: Tensor, here: Node, there: Node, noise: Tensor, eta: float) -> Tensor:
    """Go below `there` without noise, then add fresh noise up to it."""
    if eta == 0 or there.sigma == 0:
        return first_order(x, denoised, here, there)
    down, up = ancestral_levels(here, there, eta)
    kept = down / here.sigma
    return there.alpha * kept * x + there.alpha * (1 - kept * here.alpha) * denoised + there.alpha * up * noise


def drawn(start: Visit, arrived: Visit, eta: float) -> Tensor:
    """The noise that `ancestral` was given on the way from one visit to the next, read off the picture there."""
    _, up = ancestral_levels(start.node, arrived.node, eta)
    unmoved = ancestral(start.x, start.denoised, start.node, arrived.node, torch.zeros(()), eta)
    return (arrived.x - unmoved) / (arrived.node.alpha * up)
