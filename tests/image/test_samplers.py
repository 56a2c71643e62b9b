"""Samplers against what is known exactly: denoisers of a Gaussian and of two, the end of the ODE, the law of a step."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diptych.image.moves import Midway, Visit, ancestral_levels
from diptych.image.nodes import NODES, nodes_named
from diptych.image.path import Node, Path, path_named
from diptych.image.samplers import SAMPLERS, sampler_named
from diptych.image.single_step import euler

SPREAD = 0.5  # standard deviation of the data, or of each of its two modes
PATHS = ["variance-exploding", "ddpm-linear", "ddpm-scaled-linear", "ddpm-cosine", "rectified-flow:shift=3"]
DETERMINISTIC = [name for name, row in SAMPLERS.items() if not row.is_random]
RANDOM = [name for name, row in SAMPLERS.items() if row.is_random]
Solve = Callable[..., Tensor]


def gaussian(x: Tensor, node: Node) -> Tensor:
    """E[x_0 | x] for x_0 ~ N(0, SPREAD^2)."""
    return node.alpha * SPREAD**2 / ((node.alpha * SPREAD) ** 2 + node.sigma**2) * x


def two_modes(x: Tensor, node: Node) -> Tensor:
    """E[x_0 | x] for x_0 from N(-1, SPREAD^2) or N(1, SPREAD^2), each as often."""
    variance = (node.alpha * SPREAD) ** 2 + node.sigma**2
    side = torch.tanh(node.alpha * x / variance)  # how much more likely the right mode is
    return (node.sigma**2 * side + node.alpha * SPREAD**2 * x) / variance


def karras(path: Path, steps: int) -> list[Node]:
    """Without the jump to the clean picture, which has no order."""
    return NODES["karras"](path, steps)


def exact_end(nodes: list[Node], x: Tensor) -> Tensor:
    """The probability-flow ODE keeps x at a constant number of standard deviations of its marginal."""

    def deviation(node: Node) -> float:
        return math.hypot(node.alpha * SPREAD, node.sigma)

    return x * deviation(nodes[-1]) / deviation(nodes[0])


def ode_end(denoised: Callable[[Tensor, Node], Tensor], x: Tensor, first: Node, last: Node) -> Tensor:
    """The end of the ODE by an eighth-order Runge-Kutta method with small steps, over log sigma (alpha = 1)."""

    def slope(log_sigma: float, value: np.ndarray) -> np.ndarray:
        node = Node(0.0, 1.0, math.exp(log_sigma))
        here = torch.from_numpy(value)
        return np.asarray((here - denoised(here, node)).numpy())

    span = math.log(first.sigma), math.log(last.sigma)
    found = solve_ivp(slope, span, x.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    return torch.from_numpy(found.y[:, -1]).reshape(x.shape)


def order_of(errors: list[float]) -> float:
    """Slope of log error against log step, over the finer doublings."""
    return float(np.mean(np.log2(np.array(errors[1:-1]) / np.array(errors[2:]))))


# What is published or measured elsewhere on this problem: sigma 80 to 0.002, Karras nodes, 20 to 160 steps.
ORDERS = {
    "ddim": (0.9, 1.1),
    "euler": (0.9, 1.1),
    "heun": (1.85, 2.15),
    "dpm2": (1.85, 2.15),
    "dpm++-2s-ancestral:eta=0": (1.85, 2.15),
    "dpm++-sde:eta=0": (1.85, 2.15),
    "dpm++-2m": (1.85, 2.25),
    "dpm++-2m:kind=heun": (1.85, 2.35),
    "dpm++-3m-sde:eta=0": (0.9, 2.3),  # not 3: see its docstring
    "unipc": (2.7, 3.4),
    "unipc:variant=bh1": (2.7, 3.4),
    "unipc:order=3": (3.2, 4.5),
    "deis": (1.85, 2.3),
    "deis:order=3": (2.6, 3.4),
    "lms": (3.0, 4.2),
    "lms:order=2": (1.8, 2.2),
    "ipndm": (1.85, 2.2),  # as if its steps were equal, which these are not
    "plms": (1.85, 2.2),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("data", ["one", "two"])
def test_the_order_of_convergence_is_the_published_one(name: str, data: str, solve: Solve) -> None:
    """The end of the ODE is known: in closed form for one Gaussian, by a far finer method for two."""
    path = path_named("variance-exploding")
    denoised = gaussian if data == "one" else two_modes
    errors = []
    for steps in (20, 40, 80, 160):
        nodes = karras(path, steps)
        start = nodes[0].sigma * torch.tensor([-1.3, 0.4, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1)
        end = exact_end(nodes, start) if data == "one" else ode_end(denoised, start, nodes[0], nodes[-1])
        errors.append(float((solve(name, path, nodes, start, denoised) - end).abs().max()))
    low, high = ORDERS[name]
    assert low <= order_of(errors) <= high, (order_of(errors), errors)
    assert set(DETERMINISTIC) <= set(ORDERS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_path_leads_to_the_same_end(name: str, path: str, solve: Solve) -> None:
    """Between the paths' noisiest and least noisy level, against the closed form."""
    way = path_named(path)
    nodes = [node for node in karras(way, 201) if node.alpha > 0]
    start = torch.full((1, 1, 1, 1), nodes[0].sigma, dtype=torch.float64)
    assert solve(name, way, nodes, start, gaussian).item() == pytest.approx(exact_end(nodes, start).item(), rel=0.05)


def on(path: Path, log_snrs: list[float]) -> list[Node]:
    return [path.at_log_snr(value) for value in log_snrs]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [*SAMPLERS, "unipc:order=3", "deis:order=3", "dpm++-2m-sde:kind=heun", "ddim:eta=0.5"])
def test_one_solver_gives_one_picture_on_all_paths_at_equal_signal_to_noise(name: str, path: str, solve: Solve) -> None:
    """At equal log_snr the paths differ by a scale alone. On the flow's path, whose coordinate is another, that must
    hold for the solvers that have none: all but Heun, DPM-Solver-2, LMS, iPNDM and PLMS."""
    row, way, plain = sampler_named(name), path_named(path), path_named("variance-exploding")
    if way.kind == "flow" and (row.looks in ("twice", "first-twice", "between") or name in ("lms", "ipndm")):
        nodes = on(way, [-4.0, 3.0])
        assert nodes[0].coordinate == pytest.approx(nodes[0].sigma)
        return
    levels = np.linspace(-8, 6, 12).tolist()
    noises = torch.randn(30, 4, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * math.exp(4)
    ends = []
    for one in (plain, way):
        nodes = on(one, levels)
        x = start * nodes[0].sigma / math.exp(4)
        ends.append(solve(name, one, nodes, x, two_modes, noises) / nodes[-1].alpha)
    assert torch.allclose(ends[0], ends[1], atol=1e-5)


def law(name: str, path: Path, nodes: list[Node], solve: Solve, count: int) -> tuple[float, float]:
    """Mean and variance of what comes of the marginal of the first node, for data N(1, SPREAD^2)."""

    def shifted(x: Tensor, node: Node) -> Tensor:
        return 1 + gaussian(x - node.alpha, node)

    random = torch.Generator().manual_seed(1)
    draws = torch.randn(2 * len(nodes), count, 1, 1, 1, generator=random, dtype=torch.float32)
    first = nodes[0]
    x = first.alpha + draws[-1] * math.hypot(first.alpha * SPREAD, first.sigma)
    end = solve(name, path, nodes, x, shifted, draws)
    return end.mean().item(), end.var().item()


@pytest.mark.parametrize("path", ["ddpm-cosine", "rectified-flow"])
@pytest.mark.parametrize(
    "name", [*(name for name in RANDOM if name != "lcm"), "ddim:eta=0.6", "dpm++-2m-sde:kind=heun"]
)
def test_random_samplers_reproduce_mean_and_variance(name: str, path: str, solve: Solve) -> None:
    """What starts at the marginal of the first node ends with the mean and the variance of the data; those that draw
    the posterior as if the denoised picture were known need more steps for it."""
    way = path_named(path)
    rule = "exponential" if way.kind == "flow" else "karras"
    steps, count = (600, 15_000) if sampler_named(name).update is euler else (80, 60_000)
    middle, variance = law(name, way, nodes_named(rule)(way, steps), solve, count)
    assert middle == pytest.approx(1, abs=0.015)
    assert variance == pytest.approx(SPREAD**2, rel=0.04)


def test_lcm_draws_from_the_marginal_of_the_next_node(solve: Solve) -> None:
    """With the picture known, x at the next node is alpha x_0 + sigma noise, whatever it was before."""
    path = path_named("ddpm-scaled-linear")
    here, there = path.at_timestep(799), path.at_timestep(399)
    noise = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    x = solve("lcm", path, [here, there], torch.zeros_like(noise), lambda x, node: torch.full_like(x, 0.3), [noise])
    assert torch.allclose(x, there.alpha * 0.3 + there.sigma * noise)


@pytest.mark.parametrize("name", [*SAMPLERS, "unipc:order=3", "deis:order=3", "lms:order=1"])
@pytest.mark.parametrize("path", ["ddpm-cosine", "ddpm-linear:zero_snr=true", "rectified-flow:shift=3"])
@pytest.mark.parametrize("rule", ["uniform", "karras"])
def test_every_sampler_ends_on_the_picture_when_the_denoiser_knows_it(
    name: str, path: str, rule: str, solve: Solve
) -> None:
    """A constant denoiser is exact for every formula: all noise must be gone at the end, after any number of steps,
    also from pure noise."""
    picture = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 2, 2)
    way = path_named(path)
    for steps in (1, 2, 3, 9):
        nodes = nodes_named(rule)(way, steps)
        noises = torch.randn(40, 1, 3, 2, 2, dtype=torch.float64)
        end = solve(name, way, nodes, torch.ones(1, 3, 2, 2, dtype=torch.float64), lambda x, node: picture, noises)
        assert torch.allclose(end, picture, atol=1e-9)


@pytest.mark.parametrize("name", [*SAMPLERS, "unipc:order=3", "deis:order=3"])
@pytest.mark.parametrize("path", ["ddpm-scaled-linear:zero_snr=true", "rectified-flow"])
def test_from_pure_noise_the_data_come(name: str, path: str, solve: Solve) -> None:
    """alpha = 0 at the first node: the end is finite, and many of them have the spread of the data."""
    way = path_named(path)
    nodes = nodes_named("uniform")(way, 40)
    assert nodes[0].alpha == 0
    draws = torch.randn(82, 4000, 1, 1, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    end = solve(name, way, nodes, draws[-1], two_modes, draws)
    assert end.mean().item() == pytest.approx(0, abs=0.08)
    # Consistency sampling draws anew at each node from a denoiser that is no consistency function: it only comes near.
    wanted = math.sqrt(1 + SPREAD**2)
    assert end.std().item() == pytest.approx(wanted, rel=0.25 if name == "lcm" else 0.1)


def test_samplers_that_are_one_formula_give_one_picture(solve: Solve) -> None:
    """DDIM with eta 0 is Euler, and DDPM's posterior is Euler ancestral, when they visit the same nodes; the SDE's
    second-order solver with eta 0 is the ODE's."""
    path = path_named("ddpm-linear")
    nodes = karras(path, 15)
    random = torch.Generator().manual_seed(3)
    start, noises = (torch.randn(*shape, generator=random) for shape in ((2, 1, 2, 2), (15, 2, 1, 2, 2)))
    same = (("ddim", "euler"), ("ddpm", "euler-ancestral"), ("dpm++-2m-sde:eta=0", "dpm++-2m"), ("ddim:eta=1", "ddpm"))
    for one, other in same:
        assert torch.equal(*(solve(name, path, nodes, start, gaussian, noises) for name in (one, other)))


def test_ddpm_step_by_step_is_the_posterior_of_the_paper() -> None:
    """Ho et al. 2020, eq. 7: mean and variance of q(x_{t-1} | x_t, x_0), written with their betas."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    path, t = path_named("ddpm-linear"), 500
    here, there = path.at_timestep(t), path.at_timestep(t - 1)
    x, clean = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64), torch.full((1, 1, 1, 1), -0.3, dtype=torch.float64)
    mean = (
        math.sqrt(bars[t - 1]) * betas[t] / (1 - bars[t]) * -0.3
        + math.sqrt(1 - betas[t]) * (1 - bars[t - 1]) / (1 - bars[t]) * 0.7
    )
    deviation = math.sqrt((1 - bars[t - 1]) / (1 - bars[t]) * betas[t])
    step = SAMPLERS["ddpm"].step
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    without = step([Visit(here, x, clean)], [there], zero).item()
    assert without == pytest.approx(mean, abs=1e-9)
    assert step([Visit(here, x, clean)], [there], one).item() - without == pytest.approx(deviation, abs=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_and_k_diffusion_mean_the_same_by_eta(eta: float) -> None:
    """Song et al. 2021, eq. 16, in alphas, against k-diffusion's ancestral step, in sigmas."""
    path = path_named("ddpm-scaled-linear")
    here, there = path.at_timestep(700), path.at_timestep(600)
    of_ddim = eta * there.sigma / here.sigma * math.sqrt(1 - (here.alpha / there.alpha) ** 2) / there.alpha
    goal, ratio = there.noise_ratio, here.noise_ratio
    of_k_diffusion = eta * math.sqrt(goal**2 * (ratio**2 - goal**2) / ratio**2)
    down, up = ancestral_levels(here, there, eta)
    assert up == pytest.approx(of_ddim, rel=1e-12)
    assert up == pytest.approx(of_k_diffusion, rel=1e-12)
    assert math.hypot(down, up) == pytest.approx(goal, rel=1e-12)


def test_routes_visit_what_their_samplers_look_at() -> None:
    path = path_named("ddpm-cosine")
    nodes = nodes_named("karras")(path, 5)
    places = [nodes.index(node) for node in SAMPLERS["heun"].route(path, nodes)]
    assert places == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert [nodes.index(node) for node in SAMPLERS["plms"].route(path, nodes)] == [0, 1, 1, 2, 3, 4, 5]
    for name in ("dpm2", "dpm2-ancestral", "dpm++-sde", "dpm++-2s-ancestral"):
        route = SAMPLERS[name].route(path, nodes)
        assert [isinstance(node, Midway) for node in route] == [False, True] * 4 + [False, False]
        ratios = [node.noise_ratio for node in route]
        assert all(before >= after * (1 - 1e-9) for before, after in pairwise(ratios)), name
    middle = SAMPLERS["dpm++-sde"].route(path, nodes)[1]
    assert middle.lambda_ == pytest.approx((nodes[0].lambda_ + nodes[1].lambda_) / 2)


def test_names_of_other_programs_are_understood() -> None:
    for name, ours, nodes in (
        ("DPM++ 2M Karras", "dpm++-2m", "karras"),
        ("DPM++ 2M SDE Heun Exponential", "dpm++-2m-sde:kind=heun", "exponential"),
        ("DPM++ 2S a", "dpm++-2s-ancestral", "karras"),
        ("Euler a", "euler-ancestral", "karras"),
        ("dpmpp_2m", "dpm++-2m", "karras"),
        ("dpmpp_3m_sde_gpu", "dpm++-3m-sde", "exponential"),
        ("dpm_2_ancestral", "dpm2-ancestral", "karras"),
        ("uni_pc_bh2", "unipc:order=3", "karras"),
        ("UniPC", "unipc:order=3,variant=bh1", "karras"),
        ("DDIMScheduler", "ddim", "leading"),
        ("UniPCMultistepScheduler", "unipc", "sgm-uniform:rounded=true"),
        ("dpm++2m", "dpm++-2m", "karras"),
        ("dpmpp_2m_sde:eta=0.5", "dpm++-2m-sde:eta=0.5", "karras"),
    ):
        found, wanted = sampler_named(name), sampler_named(ours)
        assert (found.update, found.settings, found.nodes) == (wanted.update, wanted.settings, nodes), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpm++-2", r"unknown sampler 'dpm\+\+-2'; did you mean 'dpm\+\+-2m'\? Known: ddpm, ddim"),
        ("ddim:eta=2", "eta of sampler 'ddim' must be from 0 to 1, not 2"),
        ("ddim:eta=x", "eta of sampler 'ddim' must be a finite number, not 'x'"),
        ("ddim:etta=1", "unknown setting of sampler 'ddim' 'etta'; did you mean 'eta'"),
        ("lms:order=5", "order of sampler 'lms' must be from 1 to 4, not 5"),
        ("unipc:variant=bh3", "variant of sampler 'unipc' must be bh1 or bh2, not 'bh3'"),
        ("heun:eta=1", "sampler 'heun' has no settings"),
    ],
)
def test_what_is_not_known_is_answered_with_what_is(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_named(name)
