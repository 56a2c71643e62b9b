"""Nodes: the noise levels at which a sampler calls the denoiser, from the noisiest that training saw down to clean.

A rule is a function of (path, number of steps) that returns the nodes, noisiest first; the clean picture comes after
the last of them. The rules that count trained steps round as the programs do that they are known from; see
docs/samplers.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from diptych.core.choice import read_choice, settings_of
from diptych.core.spelling import unknown
from diptych.image.path import FINITE_RATIO, Node, Path

Rule = Callable[[Path, int], list[Node]]


def uniform(path: Path, steps: int) -> list[Node]:
    """Times spaced evenly from the path's start: what DDPM and DDIM do when they skip (Song et al. 2021, sec. 4.2)."""
    times = path.start * (1 - np.arange(steps) / steps)
    return [path.node(max(time, path.end)) for time in times]


def leading(path: Path, steps: int, offset: int = 0, ahead: int = 0) -> list[Node]:
    """Multiples of a whole number of trained steps, from the clean end; the noisiest ones are never visited (Lin et al.
    2024, table 2).

    Args:
        offset: added to each; Stable Diffusion's is 1.
        ahead: steps that are left out at the clean end, as diffusers' multistep solvers do with 1.
    """
    stride = _last(path) // (steps + ahead)
    if stride < 1:
        raise ValueError(f"the node rule leading takes at most {_last(path) - ahead} steps on this path, not {steps}")
    return _at(path, np.arange(ahead, steps + ahead)[::-1] * stride + offset)


def linspace(
    path: Path, steps: int, between: str = "ratio", rounded: bool = False, shifted: str = "twice"
) -> list[Node]:
    """From the last trained step to the first, both visited (Lin et al. 2024, table 2).

    Args:
        between: what goes in a straight line between two trained steps, the noise "ratio" (diffusers) or its "log"
            (ComfyUI's "normal").
        rounded: to trained steps.
        shifted: on the flow's path, whether the least time is the sigma of the first trained step, which the path
            shifts "twice" then (Stable Diffusion 3), or that step's own time, shifted "once".
    """
    if path.kind == "flow":
        least = path.end if shifted == "once" else path.node(path.end).sigma
        return [*map(path.node, np.linspace(path.start, least, steps).tolist())]
    timesteps = np.linspace(_last(path) - 1, 0, steps)
    if rounded:
        return _at(path, timesteps.round())
    return _at(path, timesteps) if between == "ratio" else _on_the_line(path, timesteps)


def trailing(path: Path, steps: int) -> list[Node]:
    """Even strides from the noisy end, which is visited (Lin et al. 2024, table 2)."""
    last = _last(path)
    return _at(path, np.round(last - np.arange(steps) * (last / steps)) - 1)


def sgm_uniform(path: Path, steps: int, rounded: bool = False) -> list[Node]:
    """From the last trained step evenly towards the first, which is not visited (Stability AI's generative-models).

    Args:
        rounded: to trained steps, as diffusers' multistep solvers do.
    """
    if path.kind == "flow":  # towards the same least time as that of `linspace`
        return linspace(path, steps + 1)[:-1]
    timesteps = np.linspace(_last(path) - 1, 0, steps + 1)[:-1]
    return _at(path, timesteps.round()) if rounded else _on_the_line(path, timesteps)


def simple(path: Path, steps: int) -> list[Node]:
    """Every so many entries of the table of trained levels, from its end (ComfyUI)."""
    last = _last(path)
    return _at(path, last - 1 - np.floor(np.arange(steps) * (last / steps)))


def karras(path: Path, steps: int, rho: float = 7.0, rounded: bool = False) -> list[Node]:
    """Noise levels with evenly spaced rho-th roots (Karras et al. 2022, eq. 5): short steps near the picture.

    Args:
        rounded: the network is told the nearest trained step, the level stays (diffusers' multistep solvers).
    """
    largest, smallest = _range(path)
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    found = _levels(path, (largest ** (1 / rho) + ramp * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho)
    if not rounded:
        return found
    return [replace(node, time=(round(path.timestep(node)) + 1) / path.steps) for node in found]


def exponential(path: Path, steps: int) -> list[Node]:
    """Noise levels with evenly spaced logarithms."""
    largest, smallest = _range(path)
    return _levels(path, np.exp(np.linspace(math.log(largest), math.log(smallest), steps)))


def beta(path: Path, steps: int, alpha: float = 0.6, beta: float = 0.6, of: str = "times") -> list[Node]:
    """Quantiles of a beta distribution: most nodes near both ends (Lee et al. 2024, "Beta sampling is all you need").

    Args:
        of: "times", trained steps, each visited once (so there may be fewer than `steps`; ComfyUI), or "sigmas", noise
            levels (diffusers).
    """
    if of == "sigmas":
        largest, smallest = _range(path)
        parts = 1 - np.linspace(0, 1, steps)
        return _levels(path, [smallest + beta_quantile(part, alpha, beta) * (largest - smallest) for part in parts])
    parts = 1 - np.arange(steps) / steps
    timesteps = [round(beta_quantile(part, alpha, beta) * (_last(path) - 1)) for part in parts]
    return _at(path, list(dict.fromkeys(timesteps)))


def lcm(path: Path, steps: int, origin: int = 50) -> list[Node]:
    """The times that a latent consistency model was distilled at, evenly skipped (Luo et al. 2023, app. B).

    Args:
        origin: how many there are, evenly over the trained steps.
    """
    if steps > origin:
        raise ValueError(f"the node rule lcm takes at most origin ({origin}) steps, not {steps}")
    trained = (np.arange(1, origin + 1) * (_last(path) / origin)).round()[::-1] - 1
    return _at(path, trained[np.floor(np.linspace(0, origin, steps, endpoint=False)).astype(int)])


NODES: dict[str, Callable[..., list[Node]]] = {
    "uniform": uniform,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "karras": karras,
    "exponential": exponential,
    "sgm-uniform": sgm_uniform,
    "simple": simple,
    "beta": beta,
    "lcm": lcm,
}
DEFAULTS = {name: settings_of(rule) | {"clean": True} for name, rule in NODES.items()}
ALLOWED = {"between": ("ratio", "log"), "of": ("times", "sigmas"), "shifted": ("once", "twice")}
LEAST = {"offset": 0, "ahead": 0, "origin": 1}
LISTS = ("sigmas", "timesteps")
# What other programs call them.
OTHER_NAMES = {
    "normal": "linspace:between=log",
    "sgm_uniform": "sgm-uniform",
    "ddim_uniform": "leading:offset=1",
    "ddim-uniform": "leading:offset=1",
}


def nodes_named(name: str) -> Rule:
    """A rule by its name, with the clean picture after its nodes; with settings where they are not the usual
    ("karras:rho=5"), or the nodes themselves: "sigmas:14.6,3.1,0.5" in the path's coordinate (sigma / alpha, or sigma
    on the flow's path), "timesteps:999,499,99" in trained steps (1000 sigma on the flow's path). A list is taken whole,
    whatever the number of steps.

    Every rule has the setting `clean`: where it is false, the last node is the least noisy one that training saw.

    Raises:
        ValueError: an unknown rule or setting, or a list that does not fall.
    """
    word, _, rest = name.partition(":")
    if word in LISTS:
        values = _numbers(word, rest)
        return lambda path, steps: _listed(path, word, values)
    if word not in NODES and word not in OTHER_NAMES:
        raise unknown("node rule", word, [*NODES, *LISTS])
    rule, settings = read_choice("node rule", OTHER_NAMES.get(name, name), DEFAULTS)
    for key, value in settings.items():
        if key in ALLOWED and value not in ALLOWED[key]:
            raise ValueError(f"{key} of node rule '{rule}' must be {' or '.join(ALLOWED[key])}, not '{value}'")
        if not isinstance(value, str | bool) and value < LEAST.get(key, 1e-3):
            least = f"at least {LEAST[key]}" if key in LEAST else "above 0"
            raise ValueError(f"{key} of node rule '{rule}' must be {least}, not {value}")
    is_clean = settings.pop("clean")

    def nodes(path: Path, steps: int) -> list[Node]:
        found = NODES[rule](path, steps, **settings)
        if is_clean:
            return [*found, path.at_ratio(0)]
        least = path.node(path.end)
        return [*(node for node in found if node.noise_ratio > least.noise_ratio * (1 + 1e-9)), least]

    return nodes


def steps_of(name: str, steps: int) -> int:
    """How many steps are taken where so many are asked for: a list has a number of its own."""
    word, _, rest = name.partition(":")
    return sum(1 for value in _numbers(word, rest) if value) if word in LISTS else steps


def _numbers(kind: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    falls = all(before > after for before, after in pairwise(values))
    if not values or not falls or not all(map(math.isfinite, values)) or values[-1] < 0 or values == [0.0]:
        raise ValueError(f"nodes '{kind}:{text}' must be falling numbers, none below 0, with commas between them")
    return values


def _listed(path: Path, kind: str, values: Sequence[float]) -> list[Node]:
    if kind == "sigmas":
        if path.kind == "flow" and values[0] > 1:
            raise ValueError(f"sigmas of the path '{path.name}' are at most 1, not {values[0]:g}")
        return [*_levels(path, [value for value in values if value]), path.at_ratio(0)]
    if path.kind == "flow":
        return _listed(path, "sigmas", [value / path.steps for value in values])
    if values[0] > path.steps - 1:
        raise ValueError(f"timesteps of the path '{path.name}' are at most {path.steps - 1}, not {values[0]:g}")
    return [*_at(path, values), path.at_ratio(0)]


def _last(path: Path) -> int:
    """How many trained steps there are up to the path's start."""
    return round(path.start * path.steps)


def _at(path: Path, timesteps: Sequence[float] | np.ndarray) -> list[Node]:
    return [path.at_timestep(float(timestep)) for timestep in timesteps]


def _on_the_line(path: Path, timesteps: np.ndarray) -> list[Node]:
    """The same, with the logarithm of the noise ratio straight between trained steps."""
    return [path.node((timestep + 1) / path.steps) for timestep in timesteps.tolist()]


def _range(path: Path) -> tuple[float, float]:
    """The largest and the smallest noise level, in the path's coordinate."""
    largest, smallest = path.node(path.start).coordinate, path.node(path.end).coordinate
    return min(largest, FINITE_RATIO), max(smallest, 1e-4)


def _levels(path: Path, coordinates: Sequence[float] | np.ndarray) -> list[Node]:
    return [path.at_coordinate(float(value)) for value in coordinates]


def beta_quantile(part: float, a: float, b: float) -> float:
    """Where the beta distribution has `part` of its weight below: the inverse of the regularised incomplete beta
    function, by halving, to twelve digits."""
    if part >= 1:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _incomplete_beta(middle, a, b) < part else (low, middle)
    return round((low + high) / 2, 12)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), by its power series where that converges fast (DLMF 8.17.7) and by symmetry where not."""
    if x > 0.5:
        return 1 - _incomplete_beta(1 - x, b, a)
    total, term = 0.0, 1.0
    for n in range(80):
        total += term / (a + n)
        term *= (n + 1 - b) * x / (n + 1)
    return float(x**a) * total * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
