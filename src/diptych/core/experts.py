"""A mixture of experts in place of a feed-forward: many of them, of which each token passes through a few.

A router scores all experts for a token, the best `top_k` are computed, and their outputs are added up, weighted by the
scores (Shazeer et al. 2017; Fedus et al. 2021). The model has the parameters of all experts and the cost of a few. All
tokens of a call are sorted by expert, so that each expert is one product of matrices in training and in writing alike;
what nobody chose is not touched. How the work is kept even is in `core.balance`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.checks import check_keys, is_number, is_whole
from diptych.core.feedforward import ACTIVATIONS, FeedForward, activated
from diptych.core.grouped import grouped_linear
from diptych.core.precision import at_least_float32, in_autocast
from diptych.core.spelling import unknown

SCORES = ("softmax", "sigmoid")
BALANCES = ("loss", "pooled", "bias", "none")


@dataclass(frozen=True)
class ExpertsConfig:
    """Sizes and routing of the experts of a network.

    Args:
        num_experts, top_k: how many there are, and how many of them a token passes through.
        hidden: width of each.
        num_shared: more of the same width that every token passes through (Dai et al. 2024, "DeepSeekMoE").
        score: of an expert for a token: "softmax" over all, or "sigmoid" of each alone.
        normalises: whether the scores of the chosen are divided by their sum.
        scale: what the sum of the chosen's outputs is multiplied by (`routed_scaling_factor`).
        balance: what keeps the load even while training: "loss", of each layer (Fedus et al. 2021); "pooled", of all
            layers as one, as transformers has it for Mixtral and Qwen 3; "bias", a number added to an expert's scores
            when experts are chosen, and only then, which follows the load (Wang et al. 2024, without a loss); "none".
        balance_weight: of the loss.
        bias_rate: how far a bias moves in an optimizer step.
        z_loss_weight: of the loss that keeps the router's logits small (Zoph et al. 2022, eq. 5).
        layers: that have experts, counted from 0; () is all.
    """

    num_experts: int
    top_k: int
    hidden: int
    num_shared: int = 0
    score: str = "softmax"
    normalises: bool = True
    scale: float = 1.0
    balance: str = "loss"
    balance_weight: float = 0.01
    bias_rate: float = 0.001
    z_loss_weight: float = 0.001
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = f"experts.{field.name}", getattr(self, field.name)
            least = 0 if field.name == "num_shared" else 1
            if field.type is int and not (is_whole(value) and value >= least):
                raise ValueError(f"{name} must be a whole number >= {least}, not {value!r}")
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
            if field.type is float and not (is_number(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, not {value!r}")
        if self.top_k > self.num_experts:
            raise ValueError(f"experts.top_k must be at most num_experts ({self.num_experts}), not {self.top_k}")
        for name, word, known in (("score", self.score, SCORES), ("balance", self.balance, BALANCES)):
            if word not in known:
                raise unknown(f"experts.{name}", str(word), known)
        if self.scale == 0:
            raise ValueError("experts.scale must be above 0, not 0")
        if not all(is_whole(layer) and layer >= 0 for layer in self.layers) or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"experts.layers must be different whole numbers >= 0 (none is all), not {list(self.layers)}"
            )

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        """Raises: ValueError for a key that is not known, is missing, or has an impossible value."""
        known = [field.name for field in fields(cls)]
        check_keys("experts", entries, known, known[: known.index("num_shared")])
        layers = entries.get("layers", ())
        if not isinstance(layers, list | tuple):
            raise ValueError(f"experts.layers must be a list of whole numbers, not {layers!r}")
        return cls(**{**entries, "layers": tuple(layers)})

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return asdict(self) | {"layers": list(self.layers)}


class Routing(NamedTuple):
    """How the N tokens of a call were sent, for the losses on it.

    Args:
        logits: (N, num_experts), at least float32.
        odds: (N, num_experts), the scores of each token over their sum.
        chosen: (N, top_k), int64.
    """

    logits: Tensor
    odds: Tensor
    chosen: Tensor


class Experts(nn.Module):
    """scale * sum over the chosen of weight_e * expert_e(x), plus the shared experts; each is a `FeedForward`.

    The weights of all experts are stacked: `gate` (None without one) and `up` (num_experts, hidden, width), `down`
    (num_experts, width, hidden); `router` (num_experts, width) works in float32 whatever the rest does. No biases but
    `bias` (num_experts,), where the balance is kept by one; it is moved by `core.balance`, not by a gradient.

    Attributes:
        routing: of the last call while training, which the objective takes; None in evaluation.
        load: (num_experts,), int64: tokens that each expert got since it was last settled.
    """

    bias: Tensor | None
    load: Tensor

    def __init__(self, width: int, config: ExpertsConfig, *, activation: str = "silu", is_gated: bool = True) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.config, self.activation = config, activation
        count, hidden = config.num_experts, config.hidden
        self.router = nn.Parameter(torch.empty(count, width))
        self.gate = nn.Parameter(torch.empty(count, hidden, width)) if is_gated else None
        self.up = nn.Parameter(torch.empty(count, hidden, width))
        self.down = nn.Parameter(torch.empty(count, width, hidden))
        self.shared = (
            FeedForward(width, hidden * config.num_shared, activation=activation, is_gated=is_gated)
            if config.num_shared
            else None
        )
        self.register_buffer("bias", torch.zeros(count) if config.balance == "bias" else None)
        self.register_buffer("load", torch.zeros(count, dtype=torch.int64), persistent=False)
        self.routing: Routing | None = None
        for parameter in (self.router, self.gate, self.up, self.down):
            if parameter is not None:  # as nn.Linear begins
                nn.init.uniform_(parameter, -1 / math.sqrt(parameter.shape[-1]), 1 / math.sqrt(parameter.shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width), and so is the result."""
        tokens = x.flatten(0, -2)  # (N, C)
        weights, chosen = self._route(tokens)
        mixed = self._mix(in_autocast(tokens), weights, chosen)
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        return mixed.view(x.shape)

    def _mix(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The chosen experts' outputs, weighted: tokens (N, C), weights and chosen (N, top_k) -> (N, C)."""
        top_k, pairs = chosen.shape[-1], chosen.flatten()
        counts = torch.zeros(self.config.num_experts, dtype=torch.int64, device=pairs.device)
        counts.scatter_add_(0, pairs, torch.ones_like(pairs))
        order = pairs.argsort(stable=True)  # (N top_k,): pairs of token and expert, by expert
        if len(tokens) == 1:  # a sum does not ask for the order
            found = self._apply_experts(tokens.expand(top_k, -1), counts)
            return (weights.to(found.dtype)[0, order, None] * found).sum(dim=0, keepdim=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        rows = _take(tokens, order, inverse, top_k)
        found = _take(self._apply_experts(rows, counts), inverse, order, 1)
        mixed: Tensor = (found.unflatten(0, (-1, top_k)) * weights.to(found.dtype)[..., None]).sum(dim=1)
        return mixed

    def _route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the chosen experts, at least float32, and which they are: (N, top_k) both."""
        config = self.config
        with torch.autocast(tokens.device.type, enabled=False):
            logits = F.linear(at_least_float32(tokens), at_least_float32(self.router))
        scores = logits.softmax(dim=-1) if config.score == "softmax" else logits.sigmoid()
        wanted = scores if self.bias is None else scores + self.bias
        chosen = wanted.detach().topk(config.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if config.normalises:
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-20)
        if self.training:
            odds = scores if config.score == "softmax" else scores / scores.sum(dim=-1, keepdim=True)
            self.routing = Routing(logits, odds, chosen)
        return weights * config.scale, chosen

    def _apply_experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Each row through its own expert; rows (R, C) sorted by expert, counts (num_experts,)."""

        def product(x: Tensor, weights: Tensor) -> Tensor:
            return grouped_linear(x, in_autocast(weights), counts)

        name, up = self.activation, product(rows, self.up)
        bent = activated(name, up) if self.gate is None else activated(name, product(rows, self.gate), up)
        return product(bent, self.down)


def _take(rows: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
    """Row order[i] // copies for each i: every row `copies` times, in another order."""
    taken: Tensor = _Take.apply(rows, order, inverse, copies)  # type: ignore[no-untyped-call]
    return taken


class _Take(torch.autograd.Function):
    """Where a row went is known, so that the gradient is gathered, too: adding to scattered rows is slow."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return rows.index_select(0, order if copies == 1 else order // copies)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        back = gradient.index_select(0, inverse)
        return (back if ctx.copies == 1 else back.unflatten(0, (-1, ctx.copies)).sum(dim=1)), None, None, None


def experts_of(network: nn.Module) -> list[Experts]:
    """The layers of a network that have experts, in order."""
    return [module for module in network.modules() if isinstance(module, Experts)]


def active_parameters(network: nn.Module) -> int:
    """Parameters that one token passes through: all but those of the experts that it does not choose."""
    total = sum(parameter.numel() for parameter in network.parameters())
    for experts in experts_of(network):
        stacked = sum(weights.numel() for weights in (experts.gate, experts.up, experts.down) if weights is not None)
        total -= stacked * (experts.config.num_experts - experts.config.top_k) // experts.config.num_experts
    return total
