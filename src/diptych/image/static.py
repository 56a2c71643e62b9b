"""Static: what a picture begins with, of one seed or mixed from several."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.core.checks import is_number
from diptych.core.randomness import check_seed, normal

START, FRESH = 0, 1  # streams of randomness: the first noise, and what random samplers add


def check_turns(turns: Any) -> None:
    """Raises: ValueError for what are no pairs of a seed and a share."""
    for turn in turns if isinstance(turns, list | tuple) else [turns]:
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not is_number(turn[1]) or not 0 <= turn[1] <= 1:
            raise ValueError(f"turns must be pairs of a seed and a share from 0 to 1, not {turn!r}")
        check_seed(turn[0])


def mixture(seed: int | None, turns: Sequence[tuple[int, float]]) -> dict[int | None, float]:
    """How much of which seed's static there is after some turns.

    Each turn goes along a quarter of a circle. Draws of different seeds are independent, so their mixture is as loud as
    static is where the squares add up to 1; they are made to, since a seed may be turned to twice.

    Args:
        seed: where the turns begin; None is noise that was given.
        turns: seeds, and how far of the way to each, 0..1.
    """
    parts: dict[int | None, float] = {seed: 1.0}
    for other, share in turns:
        if share:
            kept, added = (math.cos(share * math.pi / 2), math.sin(share * math.pi / 2)) if share < 1 else (0.0, 1.0)
            parts = {old: kept * weight for old, weight in parts.items()}
            parts[other] = parts.get(other, 0.0) + added
    length = math.hypot(*parts.values())
    return {one: weight / length for one, weight in parts.items() if weight}


def starting_noise(
    shape: Sequence[int], parts: Mapping[int | None, float], samples: Sequence[int], given: Tensor | None = None
) -> Tensor:
    """(samples, *shape), float32, standard normal: the static of `mixture` for each sample, `given` for its None."""
    mixed = []
    for seed, weight in parts.items():
        if seed is None and given is not None:
            draw = given.detach().float().cpu()
        else:
            draw = torch.stack([normal(shape, seed=seed or 0, sample=sample, stream=START) for sample in samples])
        mixed.append(draw if weight == 1 else weight * draw)
    return mixed[0] if len(mixed) == 1 else torch.stack(mixed).sum(0)
