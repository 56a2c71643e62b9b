"""The feed-forward half of a transformer block: widen, bend, narrow."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core import sweeps
from diptych.core.fused import linear_gelu, linear_plus, linear_times
from diptych.core.linear import Linear, linears
from diptych.core.spelling import unknown
from diptych.core.unchanged import is_transformed
from diptych.core.weights import mesh_of


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, "Primer"): as good as a gate where there is none, and quick on a CPU."""
    if torch.is_grad_enabled() and x.requires_grad and mesh_of(x) is None and not is_transformed():
        squared: Tensor = _SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
        return squared
    return F.relu(x).square()


class _SquaredReLU(torch.autograd.Function):
    """To the last bit what torch derives, whose gradient takes four passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.relu(x).square_()

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # whose own gradient is asked for
            return F.relu(x) * pull * 2
        return F.relu(x).mul_(pull).mul_(2)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), near GELU (Hendrycks & Gimpel 2016, sec. 2): what OpenAI trained CLIP with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "quick-gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu_squared,
}


def activated(activation: str, x: Tensor, times: Tensor | None = None) -> Tensor:
    """f(x), or f(x) times another factor, f being one of ACTIVATIONS."""
    if sweeps.bends(activation, x, times):
        return sweeps.bend(activation, x, times)
    bent = ACTIVATIONS[activation](x)
    return bent if times is None else bent * times


GELU = {"gelu": "none", "gelu-tanh": "tanh"}  # as `F.gelu` calls how it is computed


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) when gated (Shazeer 2020, "GLU variants"), down(act(up(x))) when not."""

    def __init__(
        self, width: int, hidden: int, *, activation: str = "silu", is_gated: bool = True, has_bias: bool = False
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.gate = Linear(width, hidden, bias=has_bias) if is_gated else None
        self.up = Linear(width, hidden, bias=has_bias)
        self.down = Linear(hidden, width, bias=has_bias)

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """x: (B, T, width); plus: what the result is added to, of the same shape."""
        if plus is not None:
            return self._added(x, plus)
        gate, up = (self.up(x), None) if self.gate is None else linears(x, (self.gate, self.up))
        narrowed: Tensor = self.down(activated(self.activation, gate, up))
        return narrowed

    def _added(self, x: Tensor, plus: Tensor) -> Tensor:
        """plus + self(x), with as few passes over what lies between as there are kernels for."""
        first = self.up if self.gate is None else self.gate
        if self.activation in GELU:
            hidden = linear_gelu(first, x, GELU[self.activation])
        else:
            hidden = activated(self.activation, first(x))
        if self.gate is not None:
            hidden = linear_times(self.up, x, hidden)
        return linear_plus(self.down, hidden, plus)
