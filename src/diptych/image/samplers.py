"""Samplers: from pure noise to a picture in a few calls of the denoiser.

A sampler is a function. It is given the visits so far (where the picture was, what the denoiser said of it), where it
goes next, and fresh noise; it returns the picture there. It never calls the network and keeps nothing between calls:
the runner owns the loop. It works in the frame of the path that its nodes lie on, so one formula serves all paths.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from diptych.core.choice import read_choice
from diptych.core.spelling import unknown
from diptych.image.moves import Midway, Visit, ancestral_levels
from diptych.image.multistep import deis, dpmpp_2m, dpmpp_3m, ipndm, lms, plms, unipc
from diptych.image.path import Node, Path
from diptych.image.sampler_names import plain_name
from diptych.image.single_step import dpm2, dpmpp_2s, dpmpp_sde, euler, heun, lcm

Update = Callable[..., Tensor]  # (visits, nodes ahead, fresh noise, **settings) -> the picture at the first node ahead


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    Args:
        update: the formula.
        nodes: the node rule it is used with unless another is asked for.
        looks: where the denoiser is called for a step: "once" at its beginning, "twice", again at the end, the same for
            the "first-twice" alone, or also halfway: "between" in the logarithm of the coordinate, "in-lambda" in
            log(alpha / sigma), "in-drawn" the same where the step to there is random, too.
        settings: of the formula. `eta` is how random it is, from 0 (not at all) to 1 (as the process it undoes).
        always_random: adds noise whatever the settings.
    """

    update: Update
    nodes: str
    looks: Literal["once", "twice", "first-twice", "between", "in-lambda", "in-drawn"] = "once"
    settings: Mapping[str, Any] = field(default_factory=dict)
    always_random: bool = False

    @property
    def is_random(self) -> bool:
        """Whether a step adds fresh noise."""
        return self.always_random or self.settings.get("eta", 0) > 0

    def step(self, visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor) -> Tensor:
        """The picture at ahead[0].

        Args:
            visits: the last of them, in their order; `VISITS` are enough.
            ahead: the rest of the route.
            noise: standard normal, of the picture's shape, another at each visit; not looked at where `is_random` is
                false.
        """
        return self.update(visits, ahead, noise, **self.settings)

    def route(self, path: Path, nodes: Sequence[Node]) -> list[Node]:
        """The nodes in the order of the calls, the clean picture last: call i leads from route[i] to route[i+1]."""
        if self.looks == "once":
            return list(nodes)
        if self.looks in ("twice", "first-twice"):
            # From pure noise there may be no slope to correct with, and at the clean picture there is nothing to see.
            first = 2 if nodes[0].scale == 0 else 1
            again = range(first, len(nodes) if self.looks == "twice" else first + 1)
            return [node for k, node in enumerate(nodes) for _ in range(2 if k in again and node.sigma > 0 else 1)]
        route = [nodes[0]]
        for here, there in pairwise(nodes):
            route += [*self._midway(path, here, there), there]
        return route

    def _midway(self, path: Path, here: Node, there: Node) -> list[Node]:
        if there.sigma == 0 or here.scale == 0 or (self.looks != "between" and here.alpha == 0):
            return []
        eta = 0.0 if self.looks == "in-drawn" else self.settings.get("eta", 0.0)
        goal = path.at_ratio(ancestral_levels(here, there, eta)[0]) if eta else there
        if goal.sigma == 0:  # pure noise forgets all: the step goes down to the clean picture
            return []
        if self.looks == "between":
            middle = path.at_coordinate(math.sqrt(here.coordinate * goal.coordinate))
        else:
            middle = path.at_ratio(math.sqrt(here.noise_ratio * goal.noise_ratio))
        return [Midway(middle.time, middle.alpha, middle.sigma, middle.is_flow)]


SAMPLERS = {
    "ddpm": Sampler(euler, "uniform", settings={"eta": 1.0}),
    "ddim": Sampler(euler, "uniform", settings={"eta": 0.0}),
    "euler": Sampler(euler, "karras", settings={"eta": 0.0}),
    "euler-ancestral": Sampler(euler, "karras", settings={"eta": 1.0}),
    "heun": Sampler(heun, "karras", "twice"),
    "dpm2": Sampler(dpm2, "karras", "between", {"eta": 0.0}),
    "dpm2-ancestral": Sampler(dpm2, "karras", "between", {"eta": 1.0}),
    "lms": Sampler(lms, "karras", settings={"order": 4}),
    "dpm++-2m": Sampler(dpmpp_2m, "karras", settings={"eta": 0.0, "kind": "midpoint"}),
    "dpm++-2m-sde": Sampler(dpmpp_2m, "karras", settings={"eta": 1.0, "kind": "midpoint"}),
    "dpm++-sde": Sampler(dpmpp_sde, "karras", "in-drawn", {"eta": 1.0}),
    "dpm++-2s-ancestral": Sampler(dpmpp_2s, "karras", "in-lambda", {"eta": 1.0}),
    "dpm++-3m-sde": Sampler(dpmpp_3m, "exponential", settings={"eta": 1.0}),
    "unipc": Sampler(unipc, "karras", settings={"order": 2, "variant": "bh2"}),
    "deis": Sampler(deis, "karras", settings={"order": 2}),
    "ipndm": Sampler(ipndm, "karras", settings={"order": 4}),
    "plms": Sampler(plms, "uniform", "first-twice", {"order": 4}),
    "lcm": Sampler(lcm, "lcm", always_random=True),
}
ORDERS = {"lms": 4, "unipc": 3, "deis": 3, "ipndm": 4, "plms": 4}  # the highest
VISITS = 5
WORDS = {"kind": ("midpoint", "heun"), "variant": ("bh1", "bh2")}


def sampler_named(name: str) -> Sampler:
    """A sampler by its name, with settings where they are not the usual: "ddim:eta=0.5", "unipc:order=3".

    What other programs call it is understood, too ("Euler a", "dpmpp_2m", "DDIMScheduler"); a name that says which
    nodes ("DPM++ 2M Karras") sets them.

    Raises:
        ValueError: an unknown sampler or setting, or a value out of its range.
    """
    ours, nodes = plain_name(name)
    if ours.partition(":")[0] not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    word, settings = read_choice("sampler", ours, {name: row.settings for name, row in SAMPLERS.items()})
    for key, value in settings.items():
        if key == "eta" and not 0 <= value <= 1:
            raise ValueError(f"eta of sampler '{word}' must be from 0 to 1, not {value:g}")
        if key == "order" and not 1 <= value <= ORDERS[word]:
            raise ValueError(f"order of sampler '{word}' must be from 1 to {ORDERS[word]}, not {value}")
        if key in WORDS and value not in WORDS[key]:
            raise ValueError(f"{key} of sampler '{word}' must be {' or '.join(WORDS[key])}, not '{value}'")
    row = replace(SAMPLERS[word], settings=settings)
    return replace(row, nodes=nodes) if nodes else row
