"""A linear layer and what follows it in one pass, for inference on CPUs that multiply bfloat16 in hardware.

torch writes a layer's bias over the whole result, adds the product to it, and then goes over the result again for an
activation, a gate or a sum. oneDNN does all of it while the product is still in the cache, and rounds once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.kernels import is_ours
from diptych.core.linear import Linear

KERNEL = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def suits(layer: nn.Module, x: Tensor) -> bool:
    """Whether oneDNN takes them: a plain layer that has a bias, and nothing to be differentiated."""
    return (
        KERNEL is not None
        and is_ours(x)
        and type(layer) is Linear
        and layer.bias is not None
        and layer.weight.dtype == x.dtype
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def linear_gelu(layer: nn.Module, x: Tensor, approximate: str = "none") -> Tensor:
    """gelu(layer(x)); approximate as in `F.gelu`."""
    if suits(layer, x):
        bent: Tensor = KERNEL(x, layer.weight, layer.bias, "gelu", [], approximate)  # type: ignore[misc]
        return bent
    return F.gelu(layer(x), approximate=approximate)


def linear_times(layer: nn.Module, x: Tensor, gate: Tensor) -> Tensor:
    """gate * layer(x)."""
    product: Tensor = _joined(layer, x, gate, "mul") if suits(layer, x) else gate * layer(x)
    return product


def linear_plus(layer: nn.Module, x: Tensor, kept: Tensor) -> Tensor:
    """kept + layer(x)."""
    total: Tensor = _joined(layer, x, kept, "add") if suits(layer, x) else kept + layer(x)
    return total


def _joined(layer: nn.Module, x: Tensor, other: Tensor, how: str) -> Tensor:
    joined: Tensor = KERNEL.binary(x, other.contiguous(), layer.weight, layer.bias, how)  # type: ignore[union-attr]
    return joined
