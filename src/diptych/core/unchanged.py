"""Whether a network is still the one that tables or recordings were made of, and is computed as it stands."""

from operator import is_

import torch
from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether it does more than its `forward` when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_transformed() -> bool:
    """Whether what is computed is traced (`torch.compile`) or transformed (`torch.func`): a function with a gradient of
    its own is opaque to both."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class Unchanged:
    """Remembers the tensors of a network."""

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        holders = [holder for module in modules for holder in (module._parameters, module._buffers)]
        named = [(holder, name, tensor) for holder in holders for name, tensor in holder.items()]
        self._holders, self._names, self._tensors = zip(*named, strict=True)
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]

    def is_so(self) -> bool:
        """Nothing is hung beside the layers, and no tensor is another one. It is asked for every token: no loop of it
        is in Python."""
        return not any(self._hooks) and all(map(is_, map(dict.get, self._holders, self._names), self._tensors))
