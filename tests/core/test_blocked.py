"""Attention in blocks against the same in float64: values and gradients, for every shape that has its own edge."""

from collections.abc import Callable

import pytest
import torch

from diptych.core import blocked
from diptych.core.attention import Attention
from diptych.core.blocked import ROWS, blocked_attention, suits
from diptych.core.kernels import of_another_machine


def draws(batch: int, heads: int, length: int, width: int, seed: int) -> torch.Tensor:
    """As a projection leaves them: (B, T, H, D) in memory, seen as (B, H, T, D)."""
    numbers = torch.randn(batch, length, heads, width, generator=torch.Generator().manual_seed(seed))
    return numbers.bfloat16().transpose(1, 2)


def documents(batch: int, length: int) -> torch.Tensor:
    """A causal mask in which a document ends after 5 tokens of every row."""
    number = (torch.arange(length) >= 5).long().expand(batch, -1)
    return (number[:, :, None] == number[:, None, :]).tril()[:, None]


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "queries", "keys", "width", "is_causal", "mask"),
    [
        (3, 2, 2, 7, 7, 8, True, None),
        (2, 4, 2, 7, 7, 8, True, None),  # grouped heads
        (2, 2, 1, 2 * ROWS + 9, 2 * ROWS + 9, 16, True, None),  # blocks, the last of them short
        (2, 2, 2, ROWS + 3, ROWS + 3, 16, True, documents(2, ROWS + 3)),
        (2, 3, 3, 9, 9, 8, False, None),
        (2, 2, 2, ROWS + 5, 11, 8, False, None),  # cross-attention
        (2, 2, 2, 6, 11, 8, False, (torch.arange(11) < torch.tensor([[4], [11]]))[:, None, None, :]),
        (1, 2, 2, 6, 6, 8, False, documents(1, 6)[0]),  # a mask that all rows share
    ],
)
def test_values_and_gradients_are_those_of_float64(
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    width: int,
    is_causal: bool,
    mask: torch.Tensor | None,
    monkeypatch: pytest.MonkeyPatch,
    held_against_float64: Callable[..., None],
) -> None:
    monkeypatch.setattr(blocked, "SCORES", ROWS * keys * 3)  # three heads at a time: neither all nor one
    inputs = [draws(batch, heads, queries, width, 1), *(draws(batch, kv_heads, keys, width, s) for s in (2, 3))]
    pull = draws(batch, heads, queries, width, 4)

    held_against_float64(blocked_attention, inputs, pull, mask, is_causal, norm=0.01, most=0.03)


def test_a_row_that_may_look_at_nothing_is_finite() -> None:
    q, k, v = (draws(1, 1, 4, 8, seed).requires_grad_() for seed in (1, 2, 3))
    attended = blocked_attention(q, k, v, torch.zeros(1, 1, 4, 4, dtype=torch.bool), False)
    attended.sum().backward()
    assert torch.isfinite(attended).all()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in (q, k, v))


def test_it_is_for_training_in_bfloat16_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", True)
    q, k, v = (draws(1, 2, 4, 8, seed).requires_grad_() for seed in (1, 2, 3))
    assert suits(q, k, v, None, True)
    assert not suits(q.detach(), k.detach(), v.detach(), None, True)
    assert not suits(q.float(), k.float(), v.float(), None, True)
    assert not suits(q[:, :, :1], k, v, None, True), "a cache is longer than what is asked"
    with torch.no_grad():
        assert not suits(q, k, v, None, True)
    with of_another_machine():
        assert not suits(q, k, v, None, True)
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", False)
    assert not suits(q, k, v, None, True)


def test_a_layer_trains_through_it_as_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of every weight under autocast, with the blocks and with torch's kernel."""
    monkeypatch.setattr("diptych.core.together.IS_HERE", False)
    torch.manual_seed(0)
    layer, x = Attention(32, 4, num_kv_heads=2, has_qk_norm=True), torch.randn(2, 40, 32)
    gradients = []
    for is_fast in (True, False):
        monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", is_fast)
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(x, is_causal=True).float().square().mean()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()
