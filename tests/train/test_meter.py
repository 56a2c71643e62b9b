"""The meter: operations against the count on paper, and that being counted changes nothing."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from diptych.image.unet import UNet, UNetConfig
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.train.meter import FlopCounter, Meter, flops_of, measured_peak, resident_bytes

CPU = torch.device("cpu")


def counted(work: Callable[[], object]) -> int:
    with FlopCounter() as counter:
        work()
    return counter.flops


def test_a_matrix_product_costs_two_operations_an_entry_and_backward_twice_that() -> None:
    """(5, 7) @ (7, 3): 2 * 5 * 7 * 3 forward; backward one product for the input and one for the weight."""
    x, weight = torch.ones(5, 7, requires_grad=True), torch.ones(7, 3, requires_grad=True)
    assert counted(lambda: x @ weight) == 210
    assert counted(lambda: (x @ weight).sum().backward()) == 630


def test_a_convolution_costs_its_kernel_at_every_place() -> None:
    """2 * places * kernel * in * out; 6 times parameters times examples, a decoder's rule, is 36 times less."""
    layer, x = nn.Conv2d(4, 8, 3, padding=1, bias=False), torch.ones(2, 4, 6, 6, requires_grad=True)
    forward = 2 * (2 * 6 * 6) * 9 * 4 * 8
    assert counted(lambda: layer(x)) == forward
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_counts_on_the_cpu_too(is_causal: bool) -> None:
    """Two products of S x S x head_dim forward; backward makes the odds again and has four more. A mask saves nothing
    here, as in the counts of papers."""
    query, key, value = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 16 * 16 * 8

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)

    assert counted(attend) == 2 * product
    assert counted(lambda: attend().sum().backward()) == (2 + 5) * product


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_attention_of_a_gpu_counts_where_queries_share_keys(kernel: str) -> None:
    """As of as many keys as queries: torch's formulas refused it before 2.13, and so did a training its first step."""
    query, key, out = (torch.empty(2, heads, 16, 8, device="meta") for heads in (6, 2, 6))
    forward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention").default
    backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention_backward").default
    product = 2 * 2 * 6 * 16 * 16 * 8
    assert flops_of(forward, (query, key, key), {}, out) == 2 * product
    assert flops_of(backward, (out, query, key, key), {}, (query, key, key)) == 5 * product


def decoder() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    sizes = DecoderConfig(50, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden=48, context=16)
    tokens = torch.randint(0, 50, (2, 16))
    return Decoder(sizes), lambda model: model(tokens).float().logsumexp(-1).mean()


def unet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    sizes = UNetConfig(channels=4, widths=(32,), has_attention=(True,), head_dim=16, context_width=16)
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    mask = torch.ones(2, 5, dtype=torch.bool)
    return UNet(sizes), lambda model: model(x, torch.tensor([0.3, 0.7]), context, mask).square().mean()


@pytest.mark.parametrize("network", [decoder, unet])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_a_counted_step_is_the_same_step(
    network: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]], is_mixed: bool
) -> None:
    """Loss, gradients and the random state are equal bit for bit, in float32 and under autocast; and what torch's own
    counter finds, which takes operations apart and does not see torch's attention on a CPU, is no more than that."""
    torch.manual_seed(0)
    model, objective = network()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    meter = Meter(CPU, torch.float32, peak=1e9)

    def step() -> tuple[list[Tensor], Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss = objective(model)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [loss.detach(), *gradients], torch.get_rng_state()

    plain, state = step()
    with meter.counting():
        measured, state_after = step()
    assert torch.equal(state, state_after)
    assert all(torch.equal(one, other) for one, other in zip(plain, measured, strict=True))
    with FlopCounterMode(display=False) as other:
        step()
    assert meter.flops is not None
    assert other.get_total_flops() <= meter.flops < 2 * other.get_total_flops()


def test_only_the_first_step_is_counted() -> None:
    meter = Meter(CPU, torch.float32, peak=1000.0)
    x = torch.ones(2, 5)
    assert meter.share_of_peak(1.0) is None
    with meter.counting():
        x @ x.T
    with meter.counting():
        torch.ones(50, 50) @ torch.ones(50, 50)
    assert meter.flops == 40
    assert meter.share_of_peak(0.1) == pytest.approx(0.4)
    assert meter.memory() > 0


def test_a_step_that_fails_is_not_taken_for_counted() -> None:
    meter = Meter(CPU, torch.float32, peak=1.0)
    with pytest.raises(KeyError), meter.counting():
        raise KeyError
    assert meter.flops is None


def test_the_peak_is_what_a_product_reaches_and_no_draw_of_the_run_changes() -> None:
    """Between a thousandth and a thousand times what a product of 256 x 256 takes here right now."""
    state = torch.get_rng_state()
    peak = measured_peak(CPU, torch.float32, seconds=0.05)
    assert torch.equal(state, torch.get_rng_state())
    x = torch.ones(256, 256)
    began = time.perf_counter()
    x @ x
    here = 2 * 256**3 / (time.perf_counter() - began)
    assert here / 1e3 < peak < here * 1e3


def test_setting_up_takes_nothing_from_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's library may take longer for it than the measuring is given, and small matrices alone are slow there."""
    product, sizes = torch.mm, set[int]()

    def prepared(left: Tensor, right: Tensor) -> Tensor:
        if not sizes:
            time.sleep(0.1)
        sizes.add(len(left))
        return product(left, right)

    monkeypatch.setattr(torch, "mm", prepared)
    measured_peak(CPU, torch.float32, seconds=0.01)
    assert len(sizes) > 1


def test_a_format_that_cannot_be_multiplied_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(left: Tensor, right: Tensor) -> Tensor:
        raise RuntimeError("not implemented for 'Half'")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", refuse)
        meter = Meter(CPU, torch.float16)
    assert meter.peak == 0.0
    with meter.counting():
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert meter.share_of_peak(1.0) is None


def test_memory_grows_by_what_is_held() -> None:
    before = resident_bytes(CPU)
    held = torch.ones(16 * 2**20)
    assert resident_bytes(CPU) - before > 0.9 * held.nbytes
