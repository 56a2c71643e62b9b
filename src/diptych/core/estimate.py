"""A measured figure and how sure one may be of it: what every validation and evaluation here reports."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.core.share import Z95

DETAILS = ("low", "high", "count")  # of a figure "loss": "loss/low", ...


@dataclass(frozen=True)
class Estimate:
    """`value` with its 95 % interval over `count` independent samples; a single sample has no interval."""

    value: float
    interval: tuple[float, float] | None
    count: int

    def figures(self, name: str) -> dict[str, float]:
        """As figures for a log: `name`, `name`/low, `name`/high and `name`/count."""
        ends = {} if self.interval is None else dict(zip((f"{name}/low", f"{name}/high"), self.interval, strict=True))
        return {name: self.value, **ends, f"{name}/count": self.count}

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": self.interval and list(self.interval), "count": self.count}

    def told(self, digits: int, of: str) -> str:
        """As words: "0.742 (95 % interval 0.728 to 0.757, 400 documents)", where `of` is "documents"."""
        spread = ""
        if self.interval is not None:
            low, high = self.interval
            spread = f"95 % interval {low:.{digits}f} to {high:.{digits}f}, "
        return f"{self.value:.{digits}f} ({spread}{self.count} {of})"


def estimate(value: float, standard_error: float, count: int) -> Estimate:
    """The interval of a value that is about normal with this standard error; none for a single sample."""
    half = Z95 * standard_error
    return Estimate(value, (value - half, value + half) if count > 1 else None, count)


def mean(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent samples, at least one. Raises: ValueError for none."""
    values = np.asarray(samples, dtype=np.float64)
    if not len(values):
        raise ValueError("there is nothing to take the mean of")
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return estimate(float(values.mean()), error, len(values))


def ratio(parts: Sequence[float] | np.ndarray, wholes: Sequence[float] | np.ndarray) -> Estimate:
    """Sum of `parts` over sum of `wholes`, one of each a sample; its error as of a ratio (Cochran 1977, eq. 6.13)."""
    above, below = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    count, value = len(above), float(above.sum() / below.sum())
    if count < 2:
        return estimate(value, math.inf, count)
    spread = math.sqrt(count / (count - 1) * float(((above - value * below) ** 2).sum()))
    return estimate(value, spread / float(below.sum()), count)


def headlines(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures that are not a part of another: of "loss", "loss/low" and "loss/level-1" the first."""

    def is_part(name: str) -> bool:
        words = name.split("/")
        return any("/".join(words[:end]) in figures for end in range(1, len(words)))

    return {name: figure for name, figure in figures.items() if not is_part(name)}


def with_details(figures: Mapping[str, float]) -> dict[str, str]:
    """Each figure in words, with its interval and count beside it instead of after it."""
    told = {}
    for name, figure in figures.items():
        whole, _, last = name.rpartition("/")
        if last in DETAILS and whole in figures:
            continue
        details = []
        if f"{name}/low" in figures:
            details.append(f"{figures[f'{name}/low']:.4g} to {figures[f'{name}/high']:.4g}")
        if f"{name}/count" in figures:
            details.append(f"n = {figures[f'{name}/count']:g}")
        told[name] = f"{figure:.4g}" + (f" ({', '.join(details)})" if details else "")
    return told
