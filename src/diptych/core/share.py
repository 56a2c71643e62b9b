"""A share of a count, and how sure one may be of it."""

import math
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054  # of the standard normal: 2.5 % lie above


@dataclass(frozen=True)
class Share:
    """`found` of `asked`, which is at least 1."""

    found: int
    asked: int

    def __post_init__(self) -> None:
        if not 0 <= self.found <= self.asked or self.asked < 1:
            raise ValueError(f"a share needs 0 <= found <= asked and asked >= 1, not {self.found} of {self.asked}")

    @property
    def value(self) -> float:
        return self.found / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the probability behind the share (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4).

        Sensible at 0 % and 100 %, where the textbook interval has no width. Draws count as independent.
        """
        n, z2 = self.asked, Z95 * Z95
        middle = (self.value + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(self.value * (1 - self.value) / n + z2 / (4 * n * n))
        low = 0.0 if self.found == 0 else middle - half
        return low, 1.0 if self.found == n else middle + half

    def __str__(self) -> str:
        low, high = self.interval
        counted = f"{self.found} of {self.asked}"
        return f"{100 * self.value:.1f} % ({counted}; 95 % interval {100 * low:.1f} to {100 * high:.1f})"

    def figures(self, name: str) -> dict[str, float]:
        """As figures for a log: `name`, `name`/low, `name`/high and `name`/count."""
        low, high = self.interval
        return {name: self.value, f"{name}/low": low, f"{name}/high": high, f"{name}/count": self.asked}

    def to_dict(self) -> dict[str, Any]:
        return {"share": self.value, "found": self.found, "asked": self.asked, "interval": list(self.interval)}
