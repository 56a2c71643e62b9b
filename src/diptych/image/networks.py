"""The networks that predict, by the names that a checkpoint's config.json and a recipe give them.

Every one is called alike: network(x, time, context, mask, pooled=None, numbers=None) -> prediction. `clock` is the unit
in which it is told the noise level, `multiple` is what the sides of a latent must be multiples of.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.core.spelling import unknown
from diptych.image.dit import DiT, DiTConfig
from diptych.image.mmdit import MMDiT, MMDiTConfig
from diptych.image.unet import UNet, UNetConfig

NETWORKS: dict[str, tuple[Any, type[nn.Module]]] = {
    "unet": (UNetConfig, UNet),
    "dit": (DiTConfig, DiT),
    "mmdit": (MMDiTConfig, MMDiT),
}


def make_network(kind: str, sizes: Mapping[str, Any]) -> nn.Module:
    """A network of random weights. Raises: ValueError for a kind or a setting that is not known."""
    if kind not in NETWORKS:
        raise unknown("network", kind, NETWORKS)
    config, module = NETWORKS[kind]
    return module(config.from_dict(dict(sizes)))


def kind_of(network: nn.Module) -> str:
    """The name of a network's kind."""
    return next(kind for kind, (_, module) in NETWORKS.items() if isinstance(network, module))  # sharded: a subclass
