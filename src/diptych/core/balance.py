"""Keeping experts evenly busy: losses on how a router sends tokens, and a bias that follows the load without a loss.

A router left alone sends more and more to the experts that are already good, and the others never learn.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diptych.core.experts import Experts, Routing


def balancing_loss(routings: Sequence[Routing], is_counted: Tensor, *, is_pooled: bool = False) -> Tensor:
    """num_experts * sum over experts e of f_e P_e (Fedus et al. 2021, eq. 4-6), the mean over layers, float32.

    f_e is how many of a token's top_k places e has got, in the mean over tokens, and P_e the mean of its odds. Where
    all are equally likely it is top_k, which is the least if f follows P. As in transformers' Mixtral and Qwen 3, f is
    not divided by top_k, so that weights of the loss carry over. Odds of sigmoid scores: DeepSeek-AI 2024, eq. 19.

    Args:
        routings: one a layer, of N tokens each.
        is_counted: (N,), bool: which tokens count, the others being padding.
        is_pooled: f and P over the tokens of all layers together, as transformers has it, instead of layer by layer.
    """
    counted = is_counted.to(routings[0].odds.dtype)
    tokens = counted.sum().clamp(min=1)
    odds = torch.stack([counted @ routing.odds for routing in routings]) / tokens  # (L, E)
    shares = torch.stack([_counts(routing, is_counted) for routing in routings]) / tokens
    if is_pooled:
        odds, shares = odds.mean(dim=0, keepdim=True), shares.mean(dim=0, keepdim=True)
    return odds.shape[1] * (shares * odds).sum(dim=1).mean()


def router_z_loss(routings: Sequence[Routing], is_counted: Tensor) -> Tensor:
    """Mean of logsumexp(logits)^2 over the tokens that count and over layers (Zoph et al. 2022, "ST-MoE", eq. 5)."""
    counted = is_counted.to(routings[0].logits.dtype)
    squares = [routing.logits.logsumexp(dim=-1).square() @ counted for routing in routings]
    return torch.stack(squares).mean() / counted.sum().clamp(min=1)


def router_losses(layers: Sequence[Experts], is_counted: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What the last call of these layers adds to a loss that is a mean over the tokens that count, and its terms.

    The routings are taken, and the tokens that count are added to each layer's `load`.

    Of parts of a batch that are weighted by the tokens that count, the z-loss adds up to that of the whole, and so does
    the load: with `balance = "bias"` nothing depends on the division. The balancing loss is that of each part by
    itself, since it is no mean over tokens but a product of two: in smaller parts it asks for a balance within fewer
    tokens (Qiu et al. 2025, "Demons in the detail").

    Args:
        is_counted: (N,), bool, a place for each token of the call.
    """
    config = layers[0].config
    routings = [layer.routing for layer in layers if layer.routing is not None]
    total = torch.zeros((), device=is_counted.device)
    figures: dict[str, Tensor] = {}
    for layer, routing in zip(layers, routings, strict=True):
        layer.routing = None
        with torch.no_grad():
            layer.load += _counts(routing, is_counted)
    if config.balance in ("loss", "pooled"):
        balance = balancing_loss(routings, is_counted, is_pooled=config.balance == "pooled")
        total = total + config.balance_weight * balance
        figures["balance_loss"] = balance.detach()
    if config.z_loss_weight:
        z_loss = router_z_loss(routings, is_counted)
        total = total + config.z_loss_weight * z_loss
        figures["router_z_loss"] = z_loss.detach()
    return total, figures


@torch.no_grad()
def settle(
    layers: Sequence[Experts], total: Callable[..., list[float]], *, is_refused: bool = False
) -> dict[str, float]:
    """The end of an optimizer step: biases move, the load begins again, and how even it was is told.

    Each bias moves by `bias_rate` towards the mean load (Wang et al. 2024, alg. 1).

    Args:
        total: sums numbers over the processes that read different rows (`Ranks.total`).
        is_refused: the step did not count; nothing moves.

    Returns:
        "busiest_expert": the largest load over the mean load, of the worst layer: 1 is even, num_experts / top_k the
        worst. "idle_experts": how many of all layers got nothing.
    """
    if not layers:
        return {}
    sums = total(*torch.stack([layer.load for layer in layers]).flatten().tolist())
    loads = torch.tensor(sums, dtype=torch.float64).view(len(layers), -1)
    means = loads.mean(dim=1, keepdim=True)
    for layer, load, mean in zip(layers, loads, means, strict=True):
        layer.load.zero_()
        layer.routing = None  # recomputation leaves one
        if layer.bias is not None and not is_refused:
            layer.bias += layer.config.bias_rate * (mean - load).sign().to(layer.bias)
    if is_refused or not loads.any():
        return {}
    return {"busiest_expert": float((loads / means).max()), "idle_experts": float((loads == 0).sum())}


def _counts(routing: Routing, is_counted: Tensor) -> Tensor:
    """How often each expert was chosen by a token that counts: (num_experts,), int64."""
    counted = is_counted[:, None].expand_as(routing.chosen).flatten().long()
    zeros = torch.zeros(routing.odds.shape[1], dtype=torch.int64, device=counted.device)
    return zeros.scatter_add_(0, routing.chosen.flatten(), counted)
