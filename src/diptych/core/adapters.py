"""The adapters at hand for a model, by name, and which of them it computes with; both panels' models have them."""

import math
from collections.abc import Mapping

from torch import nn

from diptych.core.lora import Adapter, adaptable
from diptych.core.spelling import unknown


class Adapters(dict[str, Adapter]):
    """Adapters of one network, by name.

    Args:
        casts: each layer gets the dtype of the one that it stands beside: quick, and rounded as that one is. Otherwise
            adapters keep theirs.
    """

    def __init__(self, network: nn.Module, *, casts: bool = False) -> None:
        super().__init__()
        self._network, self._casts = network, casts

    def add(self, name: str, adapter: Adapter) -> None:
        """Have an adapter at hand. Raises: ValueError for a name that is taken."""
        if name in self:
            raise ValueError(f"the model has an adapter '{name}' already")
        if self._casts:
            beside = adaptable(self._network)
            for place, layer in adapter.layers.items():
                if place in beside:
                    layer.to(beside[place].weight)
        else:
            adapter.to(next(self._network.parameters()).device)
        self[name] = adapter.eval()

    def use(self, which: str | Mapping[str, float] | None, strength: float = 1.0) -> None:
        """Compute with an adapter, with several at once, or with none.

        Args:
            which: a name; several, and the strength of each; or None.
            strength: of the one that is named: 1 as it was trained, 0 nothing.

        Raises:
            ValueError: an unknown name, a strength that is no finite number, or an adapter for another network.
        """
        wanted = {} if which is None else {which: strength} if isinstance(which, str) else dict(which)
        for name, much in wanted.items():
            if name not in self:
                raise unknown("adapter", name, self)
            if not math.isfinite(much):
                raise ValueError(f"strength must be a finite number, not {much}")
        for adapter in self.values():
            adapter.detach()
        for name, much in wanted.items():
            self[name].strength = much
            self[name].attach(self._network)

    def merge(self, name: str, strength: float = 1.0) -> None:
        """Add an adapter to the weights for good; those in use beside it stay so.

        Raises: ValueError as `use`, or for weights that nothing can be added to; the adapter is then out of use.
        """
        self.use(self.in_use | {name: strength})
        adapter = self[name]
        adapter.detach()
        adapter.merge_into(self._network)
        del self[name]

    @property
    def in_use(self) -> dict[str, float]:
        """The names of those it computes with, and the strength of each."""
        return {name: adapter.strength for name, adapter in self.items() if adapter.is_attached}
