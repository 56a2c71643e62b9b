"""Broken lines and pictures: skipped, counted and named; too many of them stop the run."""

from collections.abc import Iterable
from typing import NamedTuple

NAMED = 20  # of those skipped are kept by name; the rest are only counted


class Trouble(NamedTuple):
    """`where` names the thing as its owner would find it ("cats.jsonl, line 7"), `why` what is wrong with it."""

    where: str
    why: str


class TooManyBroken(ValueError):
    """More was broken than `Troubles` allows."""


class Troubles:
    """What a reading has met so far.

    Args:
        share: of what was seen that may be broken.
        few: this many broken things never stop a run, however small the share of them allowed.
    """

    def __init__(self, share: float = 0.01, few: int = 10) -> None:
        self.share, self.few = share, few
        self.seen = 0
        self.count = 0
        self.named: list[Trouble] = []

    def saw(self, count: int = 1) -> None:
        """Whole things were read."""
        self.seen += count

    def skip(self, where: str, why: str) -> None:
        """A broken thing was met and left out.

        Raises:
            TooManyBroken: naming it, where it is one too many.
        """
        self.seen += 1
        self.add([Trouble(where, why)])

    def add(self, troubles: Iterable[Trouble]) -> None:
        """Broken things that were counted as seen elsewhere, as by a worker process."""
        for trouble in troubles:
            self.count += 1
            if len(self.named) < NAMED:
                self.named.append(trouble)
            if self.count > max(self.few, self.share * self.seen):
                raise TooManyBroken(
                    f"{self.count} of {self.seen} were broken, the last of them {trouble.where}: {trouble.why}"
                )

    def __str__(self) -> str:
        """One line: how many were skipped, and the first of them by name. Empty where nothing was."""
        if not self.count:
            return ""
        first = "; ".join(f"{trouble.where}: {trouble.why}" for trouble in self.named[:3])
        return f"skipped {self.count} of {self.seen}: {first}{'; ...' if self.count > 3 else ''}"
