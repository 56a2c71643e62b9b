"""LoRA: a model is taught something new by two thin matrices beside each of its own, which stay as they are.

h = W x + scale B A x (Hu et al. 2021, eq. 3): W is the model's, frozen; A (rank, in) and B (out, rank) are the
adapter's. Beside a convolution A is one, too, to as many channels as the rank, and B one of 1 x 1 (Yeh et al. 2023,
sec. 3.1). An adapter is a module of its own that is hung beside the layers of a network: the network's weights keep
their names and their bytes, several adapters can be had for one network, and taking one off leaves nothing behind.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diptych.core.dropout import Dropout
from diptych.core.spelling import unknown

MATRICES = ("query", "key", "value", "output", "gate", "up", "down")
Adaptable = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LoraSettings:
    """What an adapter is like.

    Args:
        rank: of the product of the two matrices.
        alpha: scale = alpha / rank, so that the rate of learning need not change with the rank.
        dropout: of what A reads, while training.
        targets: names of the layers that are adapted, wherever in the network; () is all matrices of its blocks.
        use_rslora: scale = alpha / sqrt(rank), which holds for large ranks, too (Kalajdzievski 2023).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"adapter.rank must be at least 1, not {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"adapter.alpha must be a finite number > 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout must be a number >= 0 and < 1, not {self.dropout}")

    def scale(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


class LowRank(nn.Module):
    """scale B A x. A starts as a linear layer does, B at zero: an adapter that has learned nothing changes nothing.

    Args:
        size: of the weight that it stands beside: (out, in), or (out, in, height, width) of a convolution's.
        stride, padding: of that convolution.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        rank: int,
        scale: float,
        dropout: float = 0.0,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
    ) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, *size[1:]))
        self.b = nn.Parameter(torch.zeros(size[0], rank))
        self.scale, self.stride, self.padding = scale, stride, padding
        self.dropout = Dropout(dropout)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @classmethod
    def beside(cls, layer: Adaptable, rank: int, scale: float, dropout: float = 0.0) -> "LowRank":
        size = tuple(layer.weight.shape)
        if isinstance(layer, nn.Linear):
            return cls(size, rank, scale, dropout)
        padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)  # no layer here has it as a word
        return cls(size, rank, scale, dropout, stride=layer.stride, padding=padding)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the weight that it stands beside."""
        return len(self.b), *self.a.shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), of a convolution (B, in, H, W) -> (B, out, h, w)."""
        x = self.dropout(x).to(self.a.dtype)
        if self.a.ndim == 2:
            return F.linear(F.linear(x, self.a), self.b) * self.scale
        read = F.conv2d(x, self.a, None, self.stride, self.padding)
        return F.conv2d(read, self.b[:, :, None, None]) * self.scale

    def difference(self) -> Tensor:
        """What it adds to the weight that it stands beside: of its size, float32."""
        return (self.scale * (self.b.detach().float() @ self.a.detach().float().flatten(1))).view(self.size)


class Adapter(nn.Module):
    """Low-rank matrices for layers of a network, by the layers' names.

    What is adapted must be called as a module: a network that reads a layer's weights itself passes the adapter by.

    Attributes:
        strength: how much of it is added; 1 as it was trained, 0 nothing.
        network: what it is attached to; its parameters are not the adapter's.
    """

    def __init__(self, settings: LoraSettings, layers: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.settings = settings
        self._layers = nn.ModuleDict({name.replace(".", "/"): layer for name, layer in layers.items()})
        self.strength = 1.0
        self._handles: list[RemovableHandle] = []
        self._network: list[nn.Module] = []  # in a list, or its parameters would be the adapter's

    @property
    def network(self) -> nn.Module:
        return self._network[0]

    @property
    def is_attached(self) -> bool:
        return bool(self._network)

    @classmethod
    def fresh(cls, network: nn.Module, settings: LoraSettings) -> "Adapter":
        """An adapter for `network` that has learned nothing.

        Raises:
            ValueError: a target that the network has no layer of; the message lists those it has.
        """
        found = adaptable(network)
        known = sorted({_last(name) for name in found})
        for target in settings.targets:
            if target not in known:
                raise unknown("layer", target, known)
        targets = settings.targets or MATRICES
        scale = settings.scale(settings.rank, settings.alpha)
        layers = {
            name: LowRank.beside(module, settings.rank, scale, settings.dropout)
            for name, module in found.items()
            if _last(name) in targets
        }
        return cls(settings, layers)

    @property
    def layers(self) -> dict[str, LowRank]:
        """By the name of the layer that each stands beside."""
        found: dict[str, LowRank] = {}
        for name, layer in self._layers.items():
            assert isinstance(layer, LowRank)
            found[name.replace("/", ".")] = layer
        return found

    def attach(self, network: nn.Module) -> None:
        """From now on `network` computes with the adapter, until `detach`.

        Raises:
            ValueError: it is attached already, or is for another network.
        """
        if self.is_attached:
            raise ValueError("the adapter is attached already; detach it first")
        modules = dict(network.named_modules())
        for name in self.layers:
            if name not in modules:
                raise ValueError(f"the adapter does not fit the network, which has no '{name}'")
        self._network = [network]
        for name, layer in self.layers.items():
            self._handles.append(modules[name].register_forward_hook(self._hook(layer)))
        _compile_anew(network)

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for network in self._network:
            _compile_anew(network)
        self._handles, self._network = [], []

    @torch.no_grad()
    def merge_into(self, network: nn.Module) -> None:
        """Add the adapter to the network's own weights; the sum is made in float32.

        Raises:
            ValueError: it is for another network, or one with weights in few bits; nothing is changed then.
        """
        modules = dict(network.named_modules())
        matrices: list[tuple[Adaptable, LowRank]] = []
        for name, layer in self.layers.items():
            module, size = modules.get(name), layer.size
            if not isinstance(module, Adaptable) or tuple(module.weight.shape) != size:
                raise ValueError(f"the adapter cannot be merged: '{name}' is no matrix of plain numbers, {size}, there")
            matrices.append((module, layer))
        for module, layer in matrices:
            weight = module.weight
            whole = weight.float() + self.strength * layer.difference().to(weight.device)
            module.weight = nn.Parameter(whole.to(weight.dtype), weight.requires_grad)  # the old may be a file's

    def _hook(self, layer: LowRank) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            added: Tensor = self.strength * layer(inputs[0])
            return output + added.to(output.dtype)

        return add


def adaptable(network: nn.Module) -> dict[str, Adaptable]:
    """The layers of a network that an adapter can stand beside, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Adaptable)}


def _compile_anew(network: nn.Module) -> None:
    """What was compiled without the adapter, or with it, does not notice the change."""
    if any(module._compiled_call_impl is not None for module in network.modules()):
        torch.compiler.reset()


def _last(name: str) -> str:
    return name.rpartition(".")[2]
