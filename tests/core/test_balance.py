"""Balance: the losses by their definitions, the bias by its rule, and that each of them evens the load out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from diptych.core.balance import balancing_loss, router_losses, router_z_loss, settle
from diptych.core.experts import Experts, ExpertsConfig, Routing
from diptych.core.randomness import normal

WIDTH, COUNT, TOP = 16, 8, 2


def total(*numbers: float) -> list[float]:
    """The sum over one process."""
    return list(numbers)


def routing(seed: int, tokens: int = 20) -> Routing:
    logits = 2 * normal((tokens, COUNT), seed=seed)
    odds = logits.softmax(-1)
    return Routing(logits, odds, odds.topk(TOP).indices)


def layer(seed: int = 0, **settings) -> Experts:
    made = Experts(WIDTH, ExpertsConfig(**({"num_experts": COUNT, "top_k": TOP, "hidden": 8} | settings)))
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            parameter.copy_(0.3 * normal(tuple(parameter.shape), seed=seed, step=index))
    return made


@pytest.mark.parametrize("is_padded", [False, True])
def test_the_pooled_loss_is_transformers_and_the_mean_of_layers_is_it_layer_by_layer(is_padded: bool) -> None:
    routings = [routing(seed, tokens=20) for seed in range(3)]
    counts = torch.ones(20, dtype=torch.bool)
    if is_padded:
        counts[13:] = False
    logits = tuple(one.logits for one in routings)
    mask = counts.long().view(2, 10)
    pooled = load_balancing_loss_func(logits, COUNT, TOP, attention_mask=mask)
    each = [load_balancing_loss_func((one,), COUNT, TOP, attention_mask=mask) for one in logits]
    torch.testing.assert_close(balancing_loss(routings, counts, is_pooled=True), pooled)
    torch.testing.assert_close(balancing_loss(routings, counts), torch.stack(each).mean())


def test_an_even_router_has_the_least_balancing_loss() -> None:
    """All experts equally likely and chosen equally often: the loss is top_k, and its gradient has no direction."""
    logits = torch.zeros(COUNT, COUNT, requires_grad=True)
    chosen = torch.stack((torch.arange(COUNT), (torch.arange(COUNT) + 1) % COUNT), dim=1)
    loss = balancing_loss([Routing(logits, logits.softmax(-1), chosen)], torch.ones(COUNT, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(TOP)
    assert logits.grad.abs().max() < 1e-7


def test_the_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    one, counted = routing(1), torch.arange(20) < 15
    wanted = one.logits[:15].exp().sum(-1).log().square().mean()
    torch.testing.assert_close(router_z_loss([one], counted), wanted)


@pytest.mark.parametrize(
    "settings", [{"balance": "bias"}, {"balance": "none"}, {"balance": "bias", "score": "sigmoid"}]
)
def test_parts_weighted_by_their_tokens_add_up_to_the_whole_without_a_balancing_loss(settings: dict) -> None:
    """Gradients and load; the bias moves once, by the load of all."""
    x, counted = normal((24, WIDTH), seed=2), torch.rand(24, generator=torch.Generator().manual_seed(0)) < 0.7
    found = []
    for size in (24, 6):
        made = layer(**settings)
        for part, real in zip(x.split(size), counted.split(size), strict=True):
            made(part)
            loss, _ = router_losses([made], real)
            (loss * real.sum() / counted.sum()).backward()
        load = made.load.clone()
        settle([made], total)
        found.append((made.router.grad, load, made.bias))
    for whole, parts in zip(*found, strict=True):
        if whole is not None:
            torch.testing.assert_close(parts, whole)
    assert int(found[0][1].sum()) == TOP * int(counted.sum())


def test_biases_move_by_the_sign_of_what_is_missing_once_a_step() -> None:
    made = layer(balance="bias", bias_rate=0.01)
    made.load.copy_(torch.tensor([5, 5, 5, 5, 9, 1, 5, 5]))
    figures = settle([made], total)
    torch.testing.assert_close(made.bias, torch.tensor([0, 0, 0, 0, -0.01, 0.01, 0, 0]))
    assert figures == {"busiest_expert": 9 / 5, "idle_experts": 0.0}
    assert not made.load.any()
    made.load.fill_(3)
    made.load[0] = 9
    before = made.bias.clone()
    assert settle([made], total, is_refused=True) == {}
    assert torch.equal(made.bias, before)
    assert not made.load.any()


def learned(balance: str) -> float:
    """The busiest expert's load after training one layer to imitate a function, over the mean load of the last steps.

    Half of the inputs point one way, so that a router that is left alone sends most of them to the same experts.
    """
    torch.manual_seed(1)
    made = layer(seed=3, balance=balance, balance_weight=0.2, bias_rate=0.01, z_loss_weight=0.0)
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    target = normal((WIDTH, WIDTH), seed=4)
    lean = 2 * F.normalize(normal((WIDTH,), seed=5), dim=0)
    loads: list[float] = []
    for step in range(150):
        x: Tensor = normal((128, WIDTH), seed=6, step=step) + lean
        loss = (made(x) - torch.tanh(x @ target)).square().mean()
        loss = loss + router_losses([made], torch.ones(len(x), dtype=torch.bool))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loads.append(settle([made], total)["busiest_expert"])
    return sum(loads[-20:]) / 20


def test_load_ends_even_with_the_loss_or_the_bias_and_not_without() -> None:
    """1 is even, COUNT / TOP = 4 the worst; 128 tokens a step alone leave about 1.3 by chance."""
    loads = {balance: learned(balance) for balance in ("none", "loss", "bias")}
    assert loads["none"] > 2.0, loads
    assert loads["loss"] < 1.5, loads
    assert loads["bias"] < 1.5, loads
