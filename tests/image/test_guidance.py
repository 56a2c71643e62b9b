"""Guidance held against its equations, and against what each way of it is for."""

import math
from typing import Any

import pytest
import torch
from tests.image.conftest import make_tiny_model
from torch import Tensor

from diptych.image.guidance import Guidance, guide, length
from diptych.image.model import ImageModel
from diptych.image.path import Node


def estimates(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 4, 8, 8, generator=random)


def guided(**settings: Any) -> Tensor:
    return guide(*estimates(), Guidance(**settings))[0]


def test_plain_guidance_is_the_equation_and_scale_one_the_estimate_itself() -> None:
    """Ho & Salimans 2022, eq. 6; with noise or v as the prediction it is the same line of their estimates."""
    conditional, unconditional = estimates()
    assert torch.allclose(guided(scale=3.5), unconditional + 3.5 * (conditional - unconditional), atol=1e-5)
    assert torch.equal(guided(scale=1), conditional)
    x, alpha, sigma = torch.randn(2, 4, 8, 8), 0.6, 0.8
    in_noise = (x - alpha * unconditional) / sigma + 3.5 * (unconditional - conditional) * alpha / sigma
    assert torch.allclose((x - sigma * in_noise) / alpha, guided(scale=3.5), atol=1e-4)


def test_rescaling_brings_the_deviation_back() -> None:
    """Lin et al. 2024, eq. 15, 16: wholly with 1, and in between the mixture."""
    conditional, _ = estimates()
    plain, whole, part = (guided(scale=7, rescale=share) for share in (0.0, 1.0, 0.7))
    assert torch.allclose(whole.std((1, 2, 3)), conditional.std((1, 2, 3)), rtol=1e-5)
    assert torch.allclose(part, 0.7 * whole + 0.3 * plain, atol=1e-5)


def test_a_push_is_bounded_and_loses_its_parallel_part() -> None:
    """Sadat et al. 2024: with eta 0 the push is orthogonal to the estimate; it is no longer than the limit."""
    conditional, _ = estimates()
    push = guided(scale=2, parallel=0.0) - conditional
    assert float((push * conditional).sum((1, 2, 3)).abs().max()) < 1e-3
    push = guided(scale=2, limit=0.3) - conditional
    assert torch.allclose(length(push), 0.3 * length(conditional), rtol=1e-5)
    assert torch.allclose(guided(scale=2, limit=100.0), guided(scale=2))


def test_momentum_adds_the_pushes_before() -> None:
    """Sadat et al. 2024, eq. 8: running = push + beta running."""
    guidance = Guidance(3.0, momentum=-0.5)
    first, running = guide(*estimates(0), guidance)
    second, running = guide(*estimates(1), guidance, running)
    pushes = [one - other for one, other in (estimates(0), estimates(1))]
    assert torch.allclose(first, estimates(0)[0] + 2 * pushes[0], atol=1e-5)
    assert torch.allclose(second, estimates(1)[0] + 2 * (pushes[1] - 0.5 * pushes[0]), atol=1e-5)
    assert torch.allclose(running, pushes[1] - 0.5 * pushes[0], atol=1e-6)


def test_dynamic_thresholding_cuts_off_what_lies_outside_and_no_more() -> None:
    conditional, _ = estimates()
    cut = guided(scale=10, threshold=0.95)
    usual = conditional.abs().flatten(1).quantile(0.95, dim=1)
    assert torch.allclose(cut.abs().flatten(1).amax(1), usual, rtol=1e-4)
    assert torch.allclose(guided(scale=1, threshold=0.95).abs().amax((1, 2, 3)), usual, rtol=1e-4)


def test_outside_its_interval_guidance_asks_for_nothing(tiny: ImageModel) -> None:
    """The second estimate is not made there: the network sees half of the rows. Inside, it is guidance as ever."""
    rows: list[int] = []
    hook = tiny.network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    steps = list(tiny.generate("a cat", steps=6, seed=1, guidance_interval=(0.3, 5.0)))
    hook.remove()
    is_inside = [0.3 <= step.sigma / step.alpha <= 5.0 for step in steps]
    assert rows == [1 + inside for inside in is_inside]
    assert [step.guidance_push > 0 for step in steps] == is_inside
    assert len(set(is_inside)) == 2
    whole = tiny.generate("a cat", steps=6, seed=1).result()
    again = tiny.generate("a cat", steps=6, seed=1, guidance_interval=(0, math.inf)).result()
    assert torch.equal(whole.latents, again.latents)


def test_pure_noise_lies_above_every_level() -> None:
    node = Node(1.0, 0.0, 1.0)
    assert Guidance(2.0).acts_at(node)
    assert not Guidance(2.0, interval=(0, 80)).acts_at(node)


def test_a_weaker_network_guides_in_the_place_of_no_prompt(tiny: ImageModel) -> None:
    """Karras et al. 2024: D = D_weak + scale (D - D_weak), both with the prompt; the negative prompt plays no part."""
    weak = make_tiny_model(seed=1)
    first = next(iter(tiny.generate("a cat", steps=3, seed=2, guidance_scale=1)))
    poor = next(iter(weak.generate("a cat", steps=3, seed=2, guidance_scale=1)))
    both = next(iter(tiny.generate("a cat", steps=3, seed=2, guidance_scale=2.5, weaker=weak)))
    assert torch.allclose(both.denoised, poor.denoised + 2.5 * (first.denoised - poor.denoised), atol=2e-3)
    assert not torch.allclose(poor.denoised, first.denoised)
    with pytest.raises(ValueError, match="either from negative_prompt or from weaker, not from both"):
        tiny.generate("a cat", negative_prompt="a dog", weaker=weak)


def test_a_guidance_that_diverges_says_where() -> None:
    model = make_tiny_model()
    with pytest.raises(ValueError, match=r"painting diverged at step \d+ of 8: the denoised estimate .*guidance_scale"):
        model.generate("a cat", steps=8, seed=1, guidance_scale=1e6).result()
    with torch.no_grad():
        next(iter(model.network.parameters())).fill_(float("nan"))
    with pytest.raises(
        ValueError, match="step 1 of 8: the denoised estimate is not finite; the network's own prediction"
    ):
        model.generate("a cat", steps=8, seed=1, guidance_scale=1).result()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "guidance_scale must be a finite number >= 0, not -1"),
        ({"scale": math.nan}, "guidance_scale must be a finite number >= 0, not nan"),
        ({"rescale": 1.5}, "guidance_rescale must be a finite number from 0 to 1"),
        ({"threshold": 1.0}, "guidance_threshold must be a number from 0 to below 1"),
        ({"momentum": 1}, "guidance_momentum must be a number between -1 and 1"),
        ({"parallel": "all"}, "guidance_parallel must be a finite number from 0 to 1, not 'all'"),
        ({"limit": -0.1}, "guidance_limit must be a finite number >= 0"),
        ({"interval": (3.0, 1.0)}, "guidance_interval must be two noise levels"),
        ({"interval": 3.0}, "guidance_interval must be two noise levels"),
        ({"interval": (0.0, math.nan)}, "guidance_interval must be two noise levels"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**settings)
