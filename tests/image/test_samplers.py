"""Samplers against what is known exactly: for Gaussian data the denoiser and the end of the ODE have closed forms."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.image.nodes import NODES, karras
from diptych.image.path import Node, Path, ddpm_cosine, ddpm_linear, ddpm_scaled_linear, variance_exploding
from diptych.image.samplers import SAMPLERS, Sampler, Visit, sampler_named

SPREAD = 0.5  # standard deviation of the data
PATHS = [variance_exploding(), ddpm_linear(), ddpm_scaled_linear(), ddpm_cosine()]


def gaussian_denoiser(x: Tensor, node: Node) -> Tensor:
    """E[x_0 | x] for x_0 ~ N(0, SPREAD^2)."""
    signal = (node.alpha * SPREAD) ** 2
    return node.alpha * SPREAD**2 / (signal + node.sigma**2) * x


def run(
    sampler: Sampler,
    nodes: list[Node],
    x: Tensor,
    denoiser: Callable[[Tensor, Node], Tensor] = gaussian_denoiser,
    seed: int = 0,
) -> Tensor:
    """The runner's loop, without a runner."""
    random = torch.Generator().manual_seed(seed)
    route = sampler.route(path, nodes)
    visits: list[Visit] = []
    for index, here in enumerate(route[:-1]):
        visits = [*visits[-3:], Visit(here, x, denoiser(x, here))]
        x = sampler.step(visits, route[index + 1 :], torch.randn(x.shape, generator=random, dtype=x.dtype))
    return x


def exact_end(nodes: list[Node], x: Tensor) -> Tensor:
    """The probability-flow ODE keeps x at a constant number of standard deviations of its marginal."""

    def deviation(node: Node) -> float:
        return math.hypot(node.alpha * SPREAD, node.sigma)

    return x * deviation(nodes[-1]) / deviation(nodes[0])


def convergence_order(errors: list[float]) -> float:
    """Slope of log error against log step, over the finer half of doublings."""
    return float(np.mean(np.log2(np.array(errors[1:-1]) / np.array(errors[2:]))))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm++-2m", 2)])
def test_the_order_of_convergence_is_the_published_one_on_every_path(name: str, order: int, path: Path) -> None:
    """Between the paths' noisiest and least noisy level: sigma 80 to 0.002 for the variance-exploding one."""
    errors = []
    for steps in (40, 80, 160, 320):
        nodes = karras(path, steps)[:-1]  # the jump to the clean picture has no order
        start = torch.full((1, 1, 1, 1), nodes[0].sigma, dtype=torch.float64)
        errors.append(float((run(SAMPLERS[name], nodes, start) - exact_end(nodes, start)).abs()))
    assert convergence_order(errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral"])
def test_ancestral_sampling_reproduces_the_variance(name: str, path: Path) -> None:
    """What starts at the marginal of the first node ends with the variance of the data."""
    nodes = karras(path, 600)
    start = torch.randn(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = nodes[0]
    x = start * math.hypot(first.alpha * SPREAD, first.sigma)
    end = run(SAMPLERS[name], nodes, x.reshape(-1, 1, 1, 1))
    assert end.var().item() == pytest.approx(SPREAD**2, rel=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("rule", NODES)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_every_sampler_ends_on_the_picture_when_the_denoiser_knows_it(name: str, rule: str, steps: int) -> None:
    """A constant denoiser is exact for every formula: all noise must be gone at the end, after any number of steps."""
    picture = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 2, 2)
    nodes = NODES[rule](ddpm_cosine(), steps)
    end = run(SAMPLERS[name], nodes, torch.ones(1, 3, 2, 2, dtype=torch.float64), lambda x, node: picture)
    assert torch.allclose(end, picture, atol=1e-12)


def test_samplers_that_are_one_formula_give_one_picture() -> None:
    """DDIM with eta 0 is Euler, and DDPM's posterior is Euler ancestral, when they visit the same nodes."""
    nodes = karras(ddpm_linear(), 15)
    start = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for one, other in (("ddim", "euler"), ("ddpm", "euler-ancestral")):
        assert torch.equal(run(SAMPLERS[one], nodes, start), run(SAMPLERS[other], nodes, start))


def test_ddpm_step_by_step_is_the_posterior_of_the_paper() -> None:
    """Ho et al. 2020, eq. 7: mean and variance of q(x_{t-1} | x_t, x_0), written with their betas."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    path, t = ddpm_linear(), 500
    here, there = path.node((t + 1) / 1000), path.node(t / 1000)
    x, clean = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64), torch.full((1, 1, 1, 1), -0.3, dtype=torch.float64)
    mean = (
        math.sqrt(bars[t - 1]) * betas[t] / (1 - bars[t]) * -0.3
        + math.sqrt(1 - betas[t]) * (1 - bars[t - 1]) / (1 - bars[t]) * 0.7
    )
    deviation = math.sqrt((1 - bars[t - 1]) / (1 - bars[t]) * betas[t])
    update = SAMPLERS["ddpm"].update
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    without = update([Visit(here, x, clean)], there, zero).item()
    assert without == pytest.approx(mean, abs=1e-9)
    assert update([Visit(here, x, clean)], there, one).item() - without == pytest.approx(deviation, abs=1e-9)


def published_start() -> Tensor:
    """The deterministic sample of diffusers' scheduler tests: (4, 3, 8, 8) of 0, 1, 2, ... over their number."""
    numbers = torch.arange(4 * 3 * 8 * 8, dtype=torch.float64) / (4 * 3 * 8 * 8)
    return numbers.reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


def published_denoiser(x: Tensor, node: Node) -> Tensor:
    """The same tests' model, predicted noise = x t / (t + 1) at training step t."""
    t = round(node.time * 1000) - 1
    return (x - node.sigma * x * t / (t + 1)) / node.alpha


def test_ddim_gives_the_number_that_diffusers_publishes() -> None:
    """tests/schedulers of diffusers: 10 steps, t = 900, 800, ..., 0, sum of absolute values 172.0067."""
    path = ddpm_linear()
    nodes = [*(path.node((t + 1) / 1000) for t in range(900, -1, -100)), path.at_ratio(0)]
    end = run(SAMPLERS["ddim"], nodes, published_start(), published_denoiser)
    assert end.abs().sum().item() == pytest.approx(172.0067, abs=1e-2)


def test_dpmpp_2m_gives_the_number_that_diffusers_publishes() -> None:
    """The same, t = 999, 899, ..., 100 and then the least noisy level: mean of absolute values 0.3301."""
    path = ddpm_linear()
    nodes = [path.node((t + 1) / 1000) for t in [*np.linspace(0, 999, 11).round().astype(int)[::-1][:-1].tolist(), 0]]
    end = run(SAMPLERS["dpm++-2m"], nodes, published_start(), published_denoiser)
    assert end.abs().mean().item() == pytest.approx(0.3301, abs=1e-3)


def test_heun_visits_each_inner_node_twice() -> None:
    nodes = karras(ddpm_cosine(), 5)
    route = SAMPLERS["heun"].route(nodes)
    assert [nodes.index(node) for node in route] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_an_unknown_sampler_is_answered_with_the_nearest_and_all_known() -> None:
    with pytest.raises(ValueError, match=r"unknown sampler 'dpm\+\+2m'; did you mean 'dpm\+\+-2m'\? Known: ddpm, ddim"):
        sampler_named("dpm++2m")
