"""Activations, norms and the loss in one pass against torch's own in float64: no further from it than torch's own in
bfloat16."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diptych.core import sweep_plan as at
from diptych.core import sweeps, together
from diptych.core.feedforward import ACTIVATIONS, FeedForward, activated
from diptych.core.kernels import of_another_machine
from diptych.core.likelihood import IGNORED, negative_log_likelihood
from diptych.core.norms import NORMS, branch

pytestmark = pytest.mark.skipif(not together.IS_HERE, reason="this processor multiplies no pairs of bfloat16")


def numbers(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], pull: Tensor) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    found = function(*inputs)
    return [found, *torch.autograd.grad(found, inputs, pull.to(found.dtype))]


def far(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).norm() / wanted.norm()


@pytest.mark.parametrize("activation", at.BENDS)
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("shape", [(1, 32), (3, 5, 96), (700, 480)])  # alone, odd, and several shares
def test_a_bend_is_as_near_as_torchs(activation: str, is_gated: bool, shape: tuple[int, ...]) -> None:
    def plainly(x: Tensor, *times: Tensor) -> Tensor:
        return ACTIVATIONS[activation](x) * times[0] if times else ACTIVATIONS[activation](x)

    inputs, pull = [numbers(*shape, seed=seed) for seed in range(1 + is_gated)], numbers(*shape, seed=9)
    exact = with_gradients(plainly, [x.double() for x in inputs], pull)
    torchs = with_gradients(plainly, inputs, pull)
    ours = with_gradients(partial(activated, activation), inputs, pull)
    for found, other, wanted in zip(ours, torchs, exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert far(found, wanted) < 1.05 * far(other, wanted) + 1e-4
    with torch.no_grad():
        assert torch.equal(activated(activation, *inputs), ours[0])


@pytest.mark.parametrize("activation", at.BENDS)
def test_a_bend_holds_for_every_bfloat16(activation: str) -> None:
    """All 65,536 of them but those that are no number: within a rounding of the value, or of what is lost beside x."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite()]
    x = F.pad(x, (0, -len(x) % at.STEP)).view(-1, at.STEP)
    found, slope = with_gradients(partial(activated, activation), [x], torch.ones_like(x))
    exact, rise = with_gradients(ACTIVATIONS[activation], [x.double()], torch.ones_like(x))
    for ours, wanted in ((found, exact), (slope, rise)):
        is_there = wanted.isfinite() & (wanted.abs() < 3e38)
        assert ours[is_there].isfinite().all()
        assert ((ours - wanted).abs() <= 2**-8 * wanted.abs() + 2e-6)[is_there].all()


def test_pictures_may_lie_channels_last() -> None:
    """And what comes back to them need not."""
    x, pull = numbers(2, 8, 6, 4, seed=1), numbers(2, 8, 6, 4, seed=2)
    whole = with_gradients(partial(activated, "silu"), [x], pull)
    last = with_gradients(partial(activated, "silu"), [x.contiguous(memory_format=torch.channels_last)], pull)
    assert all(map(torch.equal, last, whole))
    assert last[0].is_contiguous(memory_format=torch.channels_last)


def test_what_does_not_suit_goes_another_way() -> None:
    x = numbers(4, 64, seed=1)
    assert sweeps.bends("gelu", x, None)
    assert sweeps.bends("silu", x, x)
    assert not sweeps.bends("relu", x, None)
    assert not sweeps.bends("gelu", x.float(), None)
    assert not sweeps.bends("gelu", x[:3, :33], None)
    assert not sweeps.bends("gelu", x[:, :48], None)
    assert not sweeps.bends("silu", x, x.mT.contiguous().mT)
    assert not sweeps.bends("gelu", x[:, ::2], None)
    assert not sweeps.bends("silu", x, x.float())
    with of_another_machine():
        assert not sweeps.bends("gelu", x, None)
    with together.left_out():
        assert not sweeps.bends("gelu", x, None)
        assert not sweeps.scores(x, x)


@pytest.mark.parametrize("activation", ["silu", "gelu-tanh"])
def test_a_layer_trains_through_it_as_without_it(activation: str) -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(32, 96, activation=activation), torch.randn(5, 7, 32)
    gradients = []
    for is_here in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), together.left_out(not is_here):
            layer(x).float().square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert far(one, other) < 0.02


@pytest.mark.parametrize("scale", [1.0, 30.0])  # with 30 odds are too small for a float32
@pytest.mark.parametrize("size", [32, 4096])
def test_a_loss_is_that_of_float64(scale: float, size: int) -> None:
    logits, targets = numbers(50, size, seed=1, scale=scale), torch.arange(50) * 7 % size
    targets[3] = IGNORED
    found, gradient = with_gradients(lambda x: negative_log_likelihood(x, targets), [logits], torch.tensor(1.0))
    exact, wanted = with_gradients(
        lambda x: F.cross_entropy(x, targets, ignore_index=IGNORED, reduction="sum"),
        [logits.double()],
        torch.tensor(1.0),
    )
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)
    assert gradient[3].count_nonzero() == 0
    assert ((gradient - wanted).abs() <= 2**-8 * wanted.abs() + 1e-7).all()


@pytest.mark.parametrize("is_layer", [False, True])
@pytest.mark.parametrize("shape", [(1, 32), (3, 5, 96), (700, 480)])  # alone, odd, and several shares
def test_a_norm_is_that_of_float64(is_layer: bool, shape: tuple[int, ...]) -> None:
    """Far from 0 and of another size, with the gradients of its gain and shift, whose sums stay float32."""
    x, pull = 3 * numbers(*shape, seed=1) + 1, numbers(*shape, seed=2)
    weights = [numbers(shape[-1], seed=seed).float() for seed in range(3, 4 + is_layer)]
    ours = with_gradients(
        lambda x, *w: sweeps.norm(x, w[0], *(w[1:] or [None]), 1e-5, is_layer=is_layer), [x, *weights], pull
    )

    def exactly(x: Tensor, *weights: Tensor) -> Tensor:
        return (F.layer_norm if is_layer else F.rms_norm)(x, shape[-1:], *weights, eps=1e-5)

    exact = with_gradients(exactly, [one.double() for one in (x, *weights)], pull)
    for found, wanted in zip(ours, exact, strict=True):
        assert far(found, wanted) < (2**-8 if found.dtype == torch.bfloat16 else 1e-5)
    with torch.no_grad():
        again = sweeps.norm(x, weights[0], weights[1] if is_layer else None, 1e-5, is_layer=is_layer)
    assert torch.equal(again, ours[0])


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_takes_heads_as_they_lie(name: str) -> None:
    """(B, T, H, D) in memory, seen as (B, H, T, D); other layouts go another way."""
    module = NORMS[name](32, 1e-6)
    heads = numbers(2, 5, 3, 32, seed=1).transpose(1, 2)
    assert sweeps.norms(heads)
    assert not sweeps.norms(heads[:, :, 1:])
    assert not sweeps.norms(heads.mT)
    assert not sweeps.norms(heads[..., :16])
    assert not sweeps.norms(heads[:0])
    assert torch.equal(module(heads), module(heads.contiguous()))
    assert module(heads).stride() == heads.stride()
    assert module(heads[:0]).shape == heads[:0].shape


@pytest.mark.parametrize("name", NORMS)
def test_a_branch_has_the_gradient_of_both(name: str) -> None:
    """Of x and of its norm, of either alone, and with rows of the gradients that lie otherwise."""
    module, x = NORMS[name](64, 1e-5), numbers(3, 40, 64, seed=1)
    kept, pull = numbers(3, 40, 64, seed=2), numbers(3, 40, 64, seed=3)
    for one, other in ((kept, pull), (kept.mT.contiguous().mT, pull.mT.contiguous().mT), (None, pull), (kept, None)):
        given = x.clone().requires_grad_()
        outs = [(out, by) for out, by in zip(branch(module, given), (one, other), strict=True) if by is not None]
        assert torch.equal(branch(module, given)[0], x)
        torch.autograd.backward(*map(list, zip(*outs, strict=True)))
        wide = x.double().requires_grad_()
        wanted = torch.zeros_like(wide)
        if other is not None:
            normed = F.rms_norm(wide, (64,), eps=1e-5) if name == "rms" else F.layer_norm(wide, (64,))
            (wanted,) = torch.autograd.grad(normed, wide, other.double())
        wanted = wanted if one is None else wanted + one
        assert given.grad is not None
        assert far(given.grad, wanted) < 2**-8


def test_a_branch_goes_by_way_of_what_hangs_on_a_norm() -> None:
    module, x, seen = NORMS["rms"](64, 1e-6), numbers(2, 64, seed=1).requires_grad_(), list[Tensor]()
    handle = module.register_forward_hook(lambda module, given, found: seen.append(found))
    branch(module, x)
    handle.remove()
    branch(module, x)
    assert len(seen) == 1


def test_what_is_no_number_is_not_hidden() -> None:
    x, targets = numbers(2, 64, seed=1), torch.tensor([3, 4])
    for wrong in (torch.nan, torch.inf):
        x[1, 9] = wrong
        assert not negative_log_likelihood(x.clone().requires_grad_(), targets).isfinite()
        for activation in at.BENDS:
            assert not activated(activation, x)[1, 9].isfinite()
        for norm in NORMS.values():
            assert not norm(64, 1e-6)(x)[1, 9].isfinite()


def test_a_target_beyond_the_vocabulary_is_refused() -> None:
    logits = numbers(2, 64, seed=1).requires_grad_()
    with pytest.raises(IndexError, match="targets must be below 64, not 64"):
        negative_log_likelihood(logits, torch.tensor([3, 64]))


def test_threads_change_nothing() -> None:
    x, times, logits = (numbers(300, 512, seed=seed) for seed in range(3))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            gradient = torch.empty_like(logits)
            losses = sweeps.score(logits, torch.arange(300), gradient)
            bent = with_gradients(partial(activated, "silu"), [x, times], logits)
            gain = torch.ones(512, requires_grad=True)
            normed = with_gradients(lambda x, w: sweeps.norm(x, w, None, 1e-6, is_layer=True), [x, gain], logits)
            found.append([losses, gradient, *bent, *normed])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_they_can_be_planned() -> None:
    """On fake tensors, which have the shapes of real ones."""

    def step() -> list[torch.Size]:
        x, times = (torch.ones(4, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        bent = activated("silu", NORMS["layer"](64, 1e-6)(x), times)
        loss = negative_log_likelihood(bent, torch.ones(4, dtype=torch.int64))
        loss.backward()
        return [one.shape for one in (bent, loss, x.grad, times.grad) if one is not None]

    real = step()
    with FakeTensorMode():
        assert step() == real
