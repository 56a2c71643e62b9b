"""Attention in one call of compiled code against the same in float64: values and gradients, for every shape that has
its own edge; and that it is the same however it is called."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diptych.core import flash, together
from diptych.core import flash_plan as at
from diptych.core.attention import Attention
from diptych.core.flash import flash_attention, suits
from diptych.core.kernels import of_another_machine
from diptych.train.meter import FlopCounter

pytestmark = pytest.mark.skipif(not together.IS_HERE, reason="this processor multiplies no pairs of bfloat16")


def draws(batch: int, heads: int, length: int, width: int, seed: int) -> Tensor:
    """As a projection leaves them: (B, T, H, D) in memory, seen as (B, H, T, D)."""
    numbers = torch.randn(batch, length, heads, width, generator=torch.Generator().manual_seed(seed))
    return numbers.bfloat16().transpose(1, 2)


def documents(batch: int, length: int) -> Tensor:
    """A causal mask in which a document ends after 5 tokens of every row."""
    number = (torch.arange(length) >= 5).long().expand(batch, -1)
    return (number[:, :, None] == number[:, None, :]).tril()[:, None]


def window(queries: int, keys: int, span: int) -> Tensor:
    """The last `queries` of `keys` places, each of which sees itself and the `span` - 1 before it."""
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    return ((distance >= 0) & (distance < span))[None, None]


def lengths(*counts: int) -> Tensor:
    """Rows of different lengths, whose ends nobody looks at."""
    return (torch.arange(max(counts)) < torch.tensor(counts)[:, None])[:, None, None, :]


SHAPES = [
    (3, 2, 2, 7, 7, 32, True, None),
    (2, 4, 2, 8, 8, 64, True, None),  # grouped heads
    (2, 2, 1, 137, 137, 64, True, None),  # blocks, the last of them short and odd
    (1, 2, 2, 96, 96, 128, True, None),
    (2, 2, 2, 131, 131, 32, True, documents(2, 131)),
    (2, 3, 3, 9, 9, 8, False, None),  # narrow heads, which are padded
    (2, 2, 2, 70, 11, 40, False, None),  # cross-attention
    (2, 2, 2, 1, 33, 32, False, None),
    (2, 2, 2, 6, 11, 32, False, lengths(4, 11)),
    (1, 2, 2, 6, 6, 32, False, documents(1, 6)[0]),  # a mask that all rows share
    (2, 2, 2, 9, 40, 32, False, torch.tensor([[True], [False]])[:, None, None]),  # one row looks at all, one at nothing
    (1, 2, 1, 40, 300, 32, False, window(40, 300, 1000)),  # a later part of a text
    (2, 2, 1, 40, 300, 32, True, window(40, 300, 9)),  # which looks at few keys in the middle
    (1, 2, 1, 9, 2 * at.SPAN + 70, 32, False, None),  # several parts of keys
    (1, 1, 1, at.SPAN + 60, at.SPAN + 60, 32, True, None),
    (1, 2, 1, 40, 2 * at.SPAN, 32, False, window(40, 2 * at.SPAN, at.SPAN + 40)),  # the first part seen from within
]


@pytest.mark.parametrize(("batch", "heads", "kv_heads", "queries", "keys", "width", "is_causal", "mask"), SHAPES)
def test_values_and_gradients_are_those_of_float64(
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    width: int,
    is_causal: bool,
    mask: Tensor | None,
    held_against_float64: Callable[..., None],
) -> None:
    inputs = [draws(batch, heads, queries, width, 1), *(draws(batch, kv_heads, keys, width, s) for s in (2, 3))]
    pull = draws(batch, heads, queries, width, 4)

    held_against_float64(flash_attention, inputs, pull, mask, is_causal, norm=0.005, most=0.02)
    learning = flash_attention(*(x.clone().requires_grad_() for x in inputs), mask, is_causal)
    assert torch.equal(flash_attention(*inputs, mask, is_causal), learning)


def test_scores_may_be_large() -> None:
    """Beyond what e^x of a float32 can hold, above and below, and some rows far from others; also where the largest of
    a row comes in a later part of it."""
    length = at.SPAN + 100
    q, k, v = (draws(1, 1, length, 32, seed) for seed in (1, 2, 3))
    q = q * torch.logspace(-1, 3, length)[:, None].bfloat16()
    found, wanted = flash_attention(q, k, v, None, True), None
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_what_may_look_at_nothing_finds_nothing() -> None:
    q, k, v = (draws(1, 2, 40, 32, seed).requires_grad_() for seed in (1, 2, 3))
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 7, 3] = True
    attended = flash_attention(q, k, v, mask, False)
    attended.sum().backward()
    assert torch.equal(attended[:, :, 7], v[:, :, 3])
    assert attended[:, :, :7].count_nonzero() == 0
    for x in (q, k, v):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
    assert v.grad is not None
    assert v.grad.count_nonzero() == 2 * 32


def test_what_is_no_number_is_not_hidden() -> None:
    """A step that is not finite is refused by its loss and its gradients, which must tell."""
    q, k, v = (draws(2, 2, 20, 32, seed) for seed in (1, 2, 3))
    for place in range(3):
        given = [x.clone() for x in (q, k, v)]
        given[place][1, 0, 5, 7] = math.nan
        given = [x.requires_grad_() for x in given]
        attended = flash_attention(*given, None, True)
        attended.sum().backward()
        assert attended[1, 0, 5].isnan().any()
        assert attended[0].isfinite().all()
        assert any(x.grad is not None and x.grad[1, 0].isnan().any() for x in given)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    q, k, v = (draws(3, 2, 90, 32, seed).requires_grad_() for seed in (1, 2, 3))
    found, before = [], torch.get_num_threads()
    try:
        for count in (threads, 2):
            torch.set_num_threads(count)
            attended = flash_attention(q, k, v, None, True)
            found.append((attended, *torch.autograd.grad(attended.float().square().sum(), (q, k, v))))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_a_row_is_the_same_in_company_and_in_parts() -> None:
    """Alone in a batch, as the end of a text whose beginning was read before, and with keys in reserve: to the bit."""
    q, k, v = (draws(2, 4, 75, 32, seed) for seed in (1, 2, 3))
    whole = flash_attention(q, k, v, None, True)
    assert torch.equal(flash_attention(q[:1], k[:1], v[:1], None, True), whole[:1])
    for begin in (0, 33):
        mask = F.pad(window(75, 75, 75)[:, :, begin:], (0, 10))
        more = (torch.cat((x, draws(2, 4, 10, 32, 9)), dim=2) for x in (k, v))
        assert torch.equal(flash_attention(q[:, :, begin:], *more, mask, False), whole[:, :, begin:])


@pytest.mark.parametrize("mask", [None, window(20, 150, 60), window(20, 150, 1000)])
def test_many_keys_are_taken_in_parts(mask: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draws(2, 4, 20, 32, 1), draws(2, 2, 150, 32, 2), draws(2, 2, 150, 32, 3)
    whole = flash_attention(q, k, v, mask, False)
    monkeypatch.setattr(flash, "MOST", 64)
    parts = flash_attention(q, k, v, mask, mask is not None)
    assert suits(q, k, v, mask, mask is not None)
    assert not suits(q.clone().requires_grad_(), k, v, mask, False)
    assert (parts - whole).norm() < 0.005 * whole.norm()


def test_any_layout_will_do() -> None:
    """Heads side by side, one after the other, or with the numbers of a vector apart."""
    q, k, v = (draws(2, 2, 40, 32, seed) for seed in (1, 2, 3))
    wanted = flash_attention(q, k, v, None, True)
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.contiguous(),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat((x, x), dim=-1)[..., :32],
    ]
    for layout in layouts:
        given = [layout(x).requires_grad_() for x in (q, k, v)]
        attended = flash_attention(*given, None, True)
        attended.sum().backward()  # whose gradient has one number for all
        assert torch.equal(attended, wanted)


def test_it_is_for_bfloat16_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", True)
    q, k, v = (draws(2, 2, 8, 8, seed) for seed in (1, 2, 3))
    assert suits(q, k, v, None, True)
    assert not suits(q.float(), k.float(), v.float(), None, True)
    assert not suits(q[:, :, :1], k, v, None, False), "a product of one row is another matter"
    assert not suits(q, k, v, torch.zeros(8, 8), True), "an additive mask"
    assert not suits(q, k[:, :, 1:], v[:, :, 1:], None, True)
    assert suits(q, k[:, :, 1:], v[:, :, 1:], torch.ones(8, 7, dtype=torch.bool), True)
    with of_another_machine():
        assert not suits(q, k, v, None, True)
    with together.left_out():
        assert not suits(q, k, v, None, True)


def test_a_layer_trains_through_it_as_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of every weight under autocast, with it and with torch's kernel."""
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


@pytest.mark.parametrize("is_causal", [False, True])
def test_it_can_be_planned(is_causal: bool) -> None:
    """On fake tensors, whose layouts are those of real ones; seven products are counted, of the keys that are seen."""

    def step() -> list[tuple[torch.Size, tuple[int, ...]]]:
        q, k, v = (draws(2, heads, 40, 32, heads).requires_grad_() for heads in (4, 2, 2))
        attended = flash_attention(q, k, v, None, is_causal)
        attended.sum().backward()
        return [(x.shape, x.stride()) for x in (attended, q.grad, k.grad, v.grad) if x is not None]

    with FlopCounter() as counter:
        real = step()
    with FakeTensorMode():
        assert step() == real
    pairs = 40 * 41 // 2 if is_causal else 40 * 40
    assert counter.flops == 7 * 2 * 2 * 4 * pairs * 32


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_it_can_be_compiled_into_a_graph() -> None:
    torch.compiler.reset()
    q, k, v = (draws(2, 2, 40, 32, seed).requires_grad_() for seed in (1, 2, 3))
    layer = torch.compile(lambda *x: flash_attention(*x, None, True) * 2, backend="aot_eager", fullgraph=True)
    found = [
        (attended := function(q, k, v), *torch.autograd.grad(attended.float().square().sum(), (q, k, v)))
        for function in (layer, lambda *x: flash_attention(*x, None, True) * 2)
    ]
    assert all(map(torch.equal, *found))


def test_power_of_two_is_near_enough() -> None:
    """One key more than none: its odds are a sigmoid of the score, over the range in which that is not 0 or 1; below
    2^-100 it is 0, never a number too small to be normal."""
    scores = torch.linspace(-110, 110, 4096)
    q = torch.zeros(1, 2, 4096, 32).bfloat16()
    q[..., 0] = scores
    k, v = torch.zeros(1, 2, 2, 32).bfloat16(), torch.zeros(1, 2, 2, 32).bfloat16()
    k[:, :, 1, 0], v[:, :, 1, :] = math.sqrt(32), 1
    found = flash_attention(q, k, v, None, False)[0, 0, :, 5].double()
    wanted = torch.sigmoid(q[0, 0, :, 0].double() * k[0, 0, 1, 0].double() / math.sqrt(32))
    is_some = wanted > 1.01 * 2.0**-100
    assert ((found - wanted).abs() <= 2**-7 * wanted)[is_some].all()  # odds are rounded, and what is found
    assert (found[wanted < 0.99 * 2.0**-100] == 0).all()
    assert (wanted < 2.0**-126).any()
