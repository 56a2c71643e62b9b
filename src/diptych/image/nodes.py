"""Nodes: the noise levels at which a sampler calls the denoiser, from the noisiest that training saw down to clean.

A rule is a function of (path, number of steps) that returns steps + 1 nodes, the last of them the clean picture.
"""

from collections.abc import Callable

import numpy as np

from diptych.core.spelling import unknown
from diptych.image.path import Node, Path


def uniform(path: Path, steps: int) -> list[Node]:
    """Times spaced evenly from the path's start: what DDPM and DDIM do when they skip (Song et al. 2021, sec. 4.2)."""
    times = path.start * (1 - np.arange(steps) / steps)
    return [*(path.node(max(time, path.end)) for time in times), path.at_ratio(0)]


def karras(path: Path, steps: int, rho: float = 7.0) -> list[Node]:
    """Noise ratios with evenly spaced rho-th roots (Karras et al. 2022, eq. 5): short steps near the picture."""
    largest, smallest = path.node(path.start).noise_ratio, max(path.node(path.end).noise_ratio, 1e-4)
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    ratios = (largest ** (1 / rho) + ramp * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho
    return [*(path.at_ratio(float(ratio)) for ratio in ratios), path.at_ratio(0)]


NODES: dict[str, Callable[[Path, int], list[Node]]] = {"uniform": uniform, "karras": karras}


def nodes_named(name: str) -> Callable[[Path, int], list[Node]]:
    if name not in NODES:
        raise unknown("node rule", name, NODES)
    return NODES[name]
