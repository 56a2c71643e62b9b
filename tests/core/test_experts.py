"""Experts: what transformers' Mixtral and Qwen 3 compute, what plain loops compute, and of the chosen ones alone."""

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from diptych.core.experts import Experts, ExpertsConfig, active_parameters
from diptych.core.feedforward import ACTIVATIONS
from diptych.core.grouped import _tiled, grouped_linear
from diptych.core.randomness import normal
from diptych.train.meter import FlopCounter

WIDTH, HIDDEN, COUNT, TOP = 24, 40, 6, 2


def experts(seed: int = 0, is_gated: bool = True, **settings) -> Experts:
    config = ExpertsConfig(**({"num_experts": COUNT, "top_k": TOP, "hidden": HIDDEN} | settings))
    made = Experts(WIDTH, config, is_gated=is_gated)
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            parameter.copy_(0.3 * normal(tuple(parameter.shape), seed=seed, step=index))
        made.router.mul_(3)
    return made


def one_by_one(made: Experts, x: Tensor) -> Tensor:
    """The definition, a token and an expert at a time."""
    config, activate = made.config, ACTIVATIONS[made.activation]
    result = torch.zeros_like(x)
    for index, token in enumerate(x):
        logits = made.router @ token
        scores = logits.softmax(0) if config.score == "softmax" else logits.sigmoid()
        wanted = scores if made.bias is None else scores + made.bias
        chosen = sorted(range(config.num_experts), key=lambda expert: -float(wanted[expert]))[: config.top_k]
        total = sum(float(scores[expert]) for expert in chosen) if config.normalises else 1.0
        for expert in chosen:
            up = made.up[expert] @ token
            hidden = activate(up) if made.gate is None else activate(made.gate[expert] @ token) * up
            result[index] += config.scale * scores[expert] / total * (made.down[expert] @ hidden)
        if made.shared is not None:
            result[index] += made.shared(token)
    return result


def fill_block(block: nn.Module, made: Experts) -> None:
    with torch.no_grad():
        block.gate.weight.copy_(made.router)
        block.experts.gate_up_proj.copy_(torch.cat((made.gate, made.up), dim=1))
        block.experts.down_proj.copy_(made.down)


@torch.no_grad()
def test_it_is_mixtrals_block() -> None:
    made = experts()
    block = MixtralSparseMoeBlock(
        MixtralConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=COUNT, num_experts_per_tok=TOP)
    )
    fill_block(block, made)
    x = normal((3, 7, WIDTH), seed=1)
    torch.testing.assert_close(made(x), block(x), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("normalises", [True, False])
def test_it_is_qwens_block(normalises: bool) -> None:
    made = experts(normalises=normalises)
    config = Qwen3MoeConfig(
        hidden_size=WIDTH,
        moe_intermediate_size=HIDDEN,
        num_experts=COUNT,
        num_experts_per_tok=TOP,
        norm_topk_prob=normalises,
    )
    block = Qwen3MoeSparseMoeBlock(config)
    fill_block(block, made)
    x = normal((3, 7, WIDTH), seed=1)
    torch.testing.assert_close(made(x), block(x), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"score": "sigmoid", "scale": 2.5, "num_shared": 2},
        {"normalises": False, "top_k": 1, "is_gated": False},
        {"balance": "bias", "top_k": 3},
        {"top_k": COUNT},
    ],
)
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_it_is_the_loop_over_tokens_and_experts(settings: dict, tokens: int) -> None:
    made = experts(seed=2, **settings).double()
    if made.bias is not None:
        made.bias += 0.2 * normal((COUNT,), seed=3).double()
    x = normal((tokens, WIDTH), seed=4).double()
    torch.testing.assert_close(made(x), one_by_one(made, x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_bias_chooses_and_does_not_weigh() -> None:
    """An expert that is pushed in for all tokens counts with its own score."""
    made = experts(seed=2, top_k=1, normalises=False, balance="bias")
    made.bias[4] = 100.0
    x = normal((5, WIDTH), seed=4)
    scores = (x @ made.router.T).softmax(-1)
    alone = experts(seed=2, top_k=COUNT, normalises=False)
    for stack in (alone.up, alone.gate, alone.down):
        stack[[0, 1, 2, 3, 5]] = 0
    torch.testing.assert_close(made(x), alone(x))
    assert scores[:, 4].max() < 1


def test_gradients_are_those_of_finite_differences() -> None:
    """In float64, of the input and of every weight; rows of no token included."""
    made = experts(seed=5, num_shared=1, score="sigmoid").double()
    x = normal((6, WIDTH), seed=6).double().requires_grad_()
    parameters = dict(made.named_parameters())

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(parameters, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()), eps=1e-7, atol=1e-5, fast_mode=True)
    made(x).sum().backward()
    idle = made.load.new_ones(COUNT, dtype=torch.bool)
    idle[made.routing.chosen.flatten()] = False
    assert made.up.grad[idle].abs().sum() == 0
    assert made.up.grad[~idle].abs().sum() > 0


@pytest.mark.parametrize("tokens", [1, 50])
def test_only_the_chosen_experts_are_computed(tokens: int) -> None:
    """Operations counted as they run: three products for each chosen pair, one for the router, nothing else; backward
    has two of each. The number of experts changes the router alone."""
    for count in (COUNT, 4 * COUNT):
        made = experts(num_experts=count)
        x = normal((tokens, WIDTH), seed=1).requires_grad_()
        with FlopCounter() as forward:
            result = made(x)
        pairs = 2 * tokens * TOP * 3 * WIDTH * HIDDEN
        assert forward.flops == pairs + 2 * tokens * WIDTH * count
        with FlopCounter() as backward:
            result.square().sum().backward()
        assert backward.flops == 2 * forward.flops


@torch.no_grad()
def test_experts_that_nobody_chose_are_not_even_read() -> None:
    made = experts()
    x = normal((3, WIDTH), seed=1)
    before = made(x)
    made(x)
    idle = torch.ones(COUNT, dtype=torch.bool)
    idle[made.routing.chosen.flatten()] = False
    assert idle.any()
    for stack in (made.gate, made.up, made.down):
        stack[idle] = float("nan")
    assert torch.equal(made(x), before)


def test_the_router_works_in_float32_whatever_the_rest_does() -> None:
    made = experts()
    x = normal((40, WIDTH), seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        result = made(x)
    assert result.dtype == torch.bfloat16
    assert made.routing.logits.dtype == torch.float32
    torch.testing.assert_close(made.routing.logits, x @ made.router.T)
    torch.testing.assert_close(result.float(), made(x), rtol=0.05, atol=0.05)


def test_parameters_that_a_token_uses() -> None:
    made = experts(num_shared=1)
    each = 3 * WIDTH * HIDDEN
    assert active_parameters(nn.Sequential(made, nn.Linear(2, 3))) == COUNT * WIDTH + (TOP + 1) * each + 9


def test_grouped_products_are_those_of_each_group() -> None:
    """With a group of no rows, and widths that torch's own grouped product refuses."""
    rows = normal((7, 5), seed=1).double().requires_grad_()
    weights = normal((4, 3, 5), seed=2).double().requires_grad_()
    counts = torch.tensor([2, 0, 4, 1])
    wanted = torch.cat([part @ weight.T for part, weight in zip(rows.split(counts.tolist()), weights, strict=True)])
    torch.testing.assert_close(grouped_linear(rows, weights, counts), wanted)
    assert torch.autograd.gradcheck(lambda *both: grouped_linear(*both, counts), (rows, weights))


def test_in_bfloat16_groups_of_any_size_come_out_as_in_float32() -> None:
    """There the rows are multiplied in pieces of few different sizes, some of them padded: forward and backward are
    those of the same rounded numbers to within bfloat16's precision."""
    counts = torch.tensor([0, 3, 8, 9, 64, 70, 1020, 1])
    rows, weights = normal((1175, 24), seed=1).bfloat16(), normal((8, 40, 24), seed=2).bfloat16()
    wanted = normal((1175, 40), seed=3).bfloat16()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        both = [tensor.detach().to(dtype).requires_grad_() for tensor in (rows, weights)]
        product = grouped_linear(*both, counts)
        product.backward(wanted.to(dtype))
        found.append([product.detach(), both[0].grad, both[1].grad])
    for exact, rough in zip(*found, strict=True):
        assert (rough.float() - exact).norm() < 2.7e-3 * exact.norm()
    assert not found[1][2][0].any()


def test_rows_are_multiplied_in_few_different_numbers() -> None:
    """Each number costs a kernel that oneDNN keeps."""
    counts = torch.arange(3000)
    pieces = list(_tiled(torch.empty(0, dtype=torch.bfloat16), counts))
    held, end = torch.zeros(3000, dtype=torch.int64), 0
    for group, run, count in pieces:
        assert run.start == end
        end = run.stop
        held[group] += end - run.start
        assert end - run.start <= count
    assert torch.equal(held, counts)
    assert {count for _, _, count in pieces} == {*range(1, 9), *(64 << power for power in range(6))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_expert": 4}, "unknown experts setting 'num_expert'; did you mean 'num_experts'"),
        ({"top_k": 0}, "experts.top_k must be a whole number >= 1, not 0"),
        ({"top_k": 9}, r"experts.top_k must be at most num_experts \(6\), not 9"),
        ({"num_shared": -1}, "experts.num_shared must be a whole number >= 0, not -1"),
        ({"score": "soft"}, "unknown experts.score 'soft'; did you mean 'softmax'"),
        ({"balance": "losses"}, "unknown experts.balance 'losses'; did you mean 'loss'"),
        ({"normalises": 1}, "experts.normalises must be true or false, not 1"),
        ({"z_loss_weight": float("nan")}, "experts.z_loss_weight must be a finite number >= 0, not nan"),
        ({"scale": 0.0}, "experts.scale must be above 0, not 0"),
        ({"layers": [1, 1]}, r"experts.layers must be different whole numbers >= 0 \(none is all\), not \[1, 1\]"),
        ({"layers": 1}, "experts.layers must be a list of whole numbers, not 1"),
    ],
)
def test_impossible_settings_are_named(change: dict, message: str) -> None:
    entries = ExpertsConfig(COUNT, TOP, HIDDEN).to_dict()
    assert ExpertsConfig.from_dict(entries) == ExpertsConfig(COUNT, TOP, HIDDEN)
    with pytest.raises(ValueError, match=message):
        ExpertsConfig.from_dict(entries | change)


def test_missing_settings_are_named() -> None:
    with pytest.raises(ValueError, match="experts settings lack top_k, hidden"):
        ExpertsConfig.from_dict({"num_experts": 4})
