"""The gradient of a layer's weights in one call of compiled code, against the same in float64, and a layer through it
against torch's."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.core import linear, together
from diptych.core import product_plan as at
from diptych.core.attention import Attention
from diptych.core.kernels import of_another_machine
from diptych.core.linear import Linear, joined, linears, turned_product
from diptych.train.meter import FlopCounter

pytestmark = pytest.mark.skipif(not together.IS_HERE, reason="this processor multiplies no pairs of bfloat16")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is right and not faster."""
    monkeypatch.setattr(linear, "IS_HERE", True)
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", True)


def draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def is_near(found: Tensor, left: Tensor, right: Tensor) -> bool:
    wanted = left.double().mT @ right.double()
    return bool((found - wanted).norm() < 1e-5 * wanted.norm()) and found.dtype == torch.float32


@pytest.mark.parametrize(
    ("places", "down", "across"),
    [
        (32, 32, 32),
        (96, 64, 160),
        (at.MOST_PLACES + 32, 96, 64),
        (2 * at.MOST_PLACES, at.MOST_DOWN + 32, 32),
        (64, 32, at.MOST_ACROSS + 64),
        (64, 2 * at.MOST_DOWN, 2 * at.MOST_ACROSS),
    ],
)
def test_it_is_the_product_in_float64(places: int, down: int, across: int) -> None:
    left, right = draws(places, down, seed=1), draws(places, across, seed=2)
    assert is_near(turned_product(left, right), left, right)


def test_any_rows_will_do() -> None:
    """Some of each row, every other one, the same one, and rows that lie turned."""
    left, right = draws(128, 96, seed=1), draws(128, 64, seed=2)
    for one, other in (
        (left[:, 32:64], right[:, 32:]),
        (left[::2], right[::2]),
        (left[:1].expand(128, -1), right),
        (left.mT.contiguous().mT, right.mT.contiguous().mT),
    ):
        assert is_near(turned_product(one, other), one, other)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    left, right = draws(96, 384, seed=1), draws(96, 320, seed=2)
    before, wanted = torch.get_num_threads(), turned_product(left, right)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(turned_product(left, right), wanted)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_number_stays_none() -> None:
    left, right = draws(64, 64, seed=1), draws(64, 64, seed=2)
    left[40, 3] = torch.nan
    found = turned_product(left, right)
    assert found[3].isnan().all()
    assert found.isnan().sum() == 64


def test_other_sizes_and_numbers_are_for_torch() -> None:
    left, right = draws(64, 64, seed=1), draws(64, 33, seed=2)
    for one, other in ((left, right), (left[:40], left[:40]), (left.float(), right.float()), (left[:0], left[:0])):
        assert turned_product(one, other).dtype == one.dtype
    with of_another_machine():
        assert turned_product(left, left).dtype == torch.bfloat16


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_layer_learns_as_torch_has_it(has_bias: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(64, 96, bias=has_bias), nn.Linear(64, 96, bias=has_bias)
    theirs.load_state_dict(ours.state_dict())
    x, pull = draws(4, 24, 64, seed=1), draws(4, 24, 96, seed=2)
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(given)
        out.backward(pull)
        found.append((out, given.grad, *(parameter.grad for parameter in layer.parameters())))
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 0.005 * other.norm()
    exact = pull.flatten(0, 1).double().mT @ x.flatten(0, 1).double()
    assert ours.weight.grad is not None
    assert (ours.weight.grad - exact).norm() < 1e-5 * exact.norm()  # not rounded to bfloat16, as torch's is


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("is_pulled_together", [False, True])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_several_layers_of_one_input_learn_as_torch_has_it(
    has_bias: bool, side_by_side: bool, is_pulled_together: bool, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether what they give lies side by side or not, and its gradient; without the compiled product, too."""
    monkeypatch.setattr(linear, "IS_HERE", is_compiled)
    torch.manual_seed(0)
    layers = nn.ModuleList(Linear(64, size, bias=has_bias) for size in (96, 32, 32))
    x, pull = draws(4, 24, 64, seed=1), draws(4, 24, 160, seed=2)
    pulls = pull.split([96, 32, 32], -1)
    found = []
    for gives in (
        lambda given: linears(given, layers, side_by_side=side_by_side),
        lambda given: tuple(F.linear(given, layer.weight, layer.bias) for layer in layers),
    ):
        given = x.clone().requires_grad_()
        layers.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outs = gives(given)
        torch.autograd.backward(outs, pulls if is_pulled_together else [one.contiguous() for one in pulls])
        found.append((*outs, given.grad, *(parameter.grad for parameter in layers.parameters())))
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 0.005 * other.norm()
    assert (joined(found[0][:3]) is not None) == side_by_side


class Casts(TorchDispatchMode):
    """Counts how often a tensor of some shape is copied to another dtype."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_what_several_layers_share_is_cast_once() -> None:
    """Of a norm, which autocast computes in float32 on a GPU."""
    layers, x = [nn.Linear(64, size) for size in (96, 32, 32)], draws(4, 24, 64, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16), Casts(x.shape) as casts:
        found = linears(x, layers)
        assert casts.count == 1
        assert all(torch.equal(one, layer(x)) for one, layer in zip(found, layers, strict=True))
    assert casts.count == 1 + 3


def test_rows_are_joined_where_they_lie_side_by_side() -> None:
    rows = draws(6, 5, 96, seed=1)
    one, other, last = rows.split([32, 48, 16], -1)
    whole = joined([one, other, last])
    assert whole is not None
    assert torch.equal(whole, rows)
    assert whole.data_ptr() == rows.data_ptr()
    some = joined([other, last])
    assert some is not None
    assert torch.equal(some, rows[..., 32:])
    for parts in ([other, one], [one, last], [one, other.clone()], [one, other[::2]], [rows.mT, rows.mT]):
        assert joined(parts) is None


def test_attention_without_positions_is_three_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """One to queries, keys and values, whose gradients come side by side, and so one back and one for the weights."""
    shapes = []

    def counted(left: Tensor, right: Tensor) -> Tensor:
        shapes.append((tuple(left.shape), tuple(right.shape)))
        return turned_product(left, right)

    monkeypatch.setattr(linear, "turned_product", counted)
    attention, x = Attention(64, 2, num_kv_heads=1, has_output=False), draws(2, 64, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        attention(x, is_causal=True).sum().backward()
    assert shapes == [((128, 128), (128, 64))]


def test_it_is_for_weights_that_learn_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def applied(x: Tensor, side_by_side: bool, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
        calls.append(weight)
        return (F.linear(x, weight.to(x.dtype)),)

    monkeypatch.setattr(linear._Linears, "apply", applied)
    layer, x = Linear(32, 32, bias=False), draws(32, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        assert len(calls) == 1
        layer(x.float())
        layer(x[:5])
        with torch.no_grad():
            layer(x)
        layer.requires_grad_(False)
        layer(x)
    layer.bfloat16().requires_grad_()(x)
    assert len(calls) == 1


def test_it_can_be_planned() -> None:
    """On fake tensors as on real ones; three products are counted."""

    def step() -> list[tuple[torch.Size, torch.dtype]]:
        torch.manual_seed(0)
        layer, x = Linear(32, 64, bias=False), torch.randn(96, 32).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        out.sum().backward()
        return [(one.shape, one.dtype) for one in (out, x.grad, layer.weight.grad) if one is not None]

    with FlopCounter() as counter:
        real = step()
    with FakeTensorMode():
        assert step() == real
    assert counter.flops == 3 * 2 * 96 * 32 * 64
