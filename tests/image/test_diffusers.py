"""Samplers and node rules against diffusers' schedulers: the same noise, the same exact denoiser, the same trajectory.

Their schedulers are driven as their pipelines drive them; what the network would have predicted is worked out from the
exact denoiser of two Gaussians.
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import diffusers.schedulers
import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.image.nodes import nodes_named
from diptych.image.path import Node, Path, path_named
from diptych.image.prediction import prediction_named
from diptych.image.samplers import sampler_named

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")

STEPS, SHAPE = 10, (4, 3, 2, 2)
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
Solve = Callable[..., Tensor]


def two_modes(x: Tensor, node: Node) -> Tensor:
    """E[x_0 | x] for x_0 from N(-0.8, 0.3^2) or N(1, 0.3^2), each as often."""
    variance = (node.alpha * 0.3) ** 2 + node.sigma**2
    apart = (node.alpha * x * 1.8 - node.alpha**2 * 0.18) / variance  # log odds of the right mode
    mode = -0.8 + 1.8 * torch.sigmoid(apart)
    return (node.sigma**2 * mode + node.alpha * 0.09 * x) / variance


def scheduler_of(name: str, **settings: Any) -> Any:
    return getattr(diffusers.schedulers, f"{name}Scheduler")(**settings)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Noises that both sides take, one a call; theirs come from the hook that their schedulers draw with."""
    return list(torch.randn(3 * STEPS, *SHAPE, generator=torch.Generator().manual_seed(7)))


def node_of(scheduler: Any, timestep: Tensor) -> Node:
    """Where a scheduler that works with alpha = 1, or on the flow, is: its own sigma at this call."""
    kind, index = type(scheduler).__name__, scheduler.step_index
    if kind.startswith("KDPM2") and not scheduler.state_in_first_order:
        sigma = scheduler.sigmas_interpol[index - 1 if "Ancestral" in kind else index]
    elif kind.startswith("DPMSolverSDE") and not scheduler.state_in_first_order:
        sigma = torch.as_tensor(scheduler.mid_point_sigma)
    else:
        sigma = scheduler.sigmas[index or 0]
    sigma = float(sigma)
    return Node(0.0, 1 - sigma, sigma, True) if kind.startswith("FlowMatch") else Node(0.0, 1.0, sigma)


EXPLODING = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE")
MULTISTEP = ("DPMSolverMultistep", "UniPC", "DEIS")
PRESERVING = ("DDIM", "DDPM", "PNDM", "LCM")


def theirs(scheduler: Any, noise: Tensor, draws: list[Tensor], **step: Any) -> tuple[Tensor, Node]:
    """The end of diffusers' trajectory, and the node that it began at."""
    kind = type(scheduler).__name__
    first, x = None, noise
    taken: Iterator[Tensor] = iter(draws)
    module = importlib.import_module(type(scheduler).__module__)
    before = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *shape, **settings: next(taken)  # type: ignore[attr-defined]
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(noise, timestep)  # which counts the steps
        if kind.startswith(PRESERVING):
            bar = float(scheduler.alphas_cumprod[int(timestep)])
            node = Node(0.0, bar**0.5, (1 - bar) ** 0.5)
        elif kind.startswith(MULTISTEP) and scheduler.config.use_flow_sigmas:
            sigma = float(scheduler.sigmas[scheduler.step_index or 0])
            node = Node(0.0, 1 - sigma, sigma, True)
        elif kind.startswith(MULTISTEP):
            ratio = float(scheduler.sigmas[scheduler.step_index or 0])
            node = Node(0.0, (1 + ratio**2) ** -0.5, ratio * (1 + ratio**2) ** -0.5)
        else:
            node = node_of(scheduler, timestep)
        if first is None:
            first = node
            x = noise * node.sigma if kind.startswith((*EXPLODING, "EDM")) else noise
        denoised = two_modes(x, node)
        if kind.startswith("EDM"):
            output = prediction_named("edm").target(
                denoised, (x - denoised) / node.sigma, torch.tensor(1.0), torch.tensor(node.sigma)
            )
        elif node.is_flow:
            output = (x - denoised) / node.sigma
        else:
            output = (x - node.alpha * denoised) / node.sigma
        if scheduler.config.get("prediction_type") == "v_prediction":
            output = node.alpha * output - node.sigma * denoised
        if step.get("variance_noise"):
            x = scheduler.step(output, timestep, x, **(step | {"variance_noise": next(taken)}))[0]
        else:
            x = scheduler.step(output, timestep, x, **step)[0]
    if before is not None:
        module.randn_tensor = before  # type: ignore[attr-defined]
    assert first is not None
    return x, first


def check_nodes(scheduler: Any, path: Path, nodes: list[Node], has_timesteps: bool = True) -> None:
    """Theirs and ours: the noise ratios, and the trained steps that the network is told."""
    sigmas = [float(sigma) for sigma in getattr(scheduler, "sigmas", [])]
    kind = type(scheduler).__name__
    if kind.startswith(PRESERVING):
        bars = [float(scheduler.alphas_cumprod[int(timestep)]) for timestep in scheduler.timesteps]
        sigmas = [*(((1 - bar) / bar) ** 0.5 for bar in bars), 0.0]
        if kind.startswith("PNDM"):
            sigmas.pop(1)  # the second node is visited twice
    elif kind.startswith(("Heun", "FlowMatchHeun")):
        sigmas = [sigmas[0], *sigmas[1::2]]
    elif kind.startswith(("KDPM2", "DPMSolverSDE")):
        sigmas = list(dict.fromkeys(sigmas))
    assert [node.coordinate for node in nodes] == pytest.approx(sigmas, rel=2e-4, abs=1e-6)
    if has_timesteps:
        told = list(dict.fromkeys(float(timestep) for timestep in scheduler.timesteps))
        of_flow = path.kind == "flow"
        ours = [1000 * node.sigma if of_flow else path.timestep(node) for node in nodes[:-1]]
        if kind.startswith("KDPM2"):  # told of the points between, too
            told = [min(told, key=lambda other: abs(other - timestep)) for timestep in ours]
        assert ours == pytest.approx(told, abs=2e-2 if of_flow or kind.startswith(("Euler", "LMS", "Heun")) else 1e-6)


# class, its settings, our sampler, our nodes, what its step is told besides
PAIRS: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    ("DDIM", {"clip_sample": False}, "ddim", "leading", {}),
    ("DDIM", {"clip_sample": False, "steps_offset": 1}, "ddim", "leading:offset=1", {}),
    ("DDIM", {"clip_sample": False, "timestep_spacing": "trailing"}, "ddim", "trailing", {}),
    ("DDIM", {"clip_sample": False}, "ddim:eta=0.7", "leading", {"eta": 0.7, "variance_noise": True}),
    ("DDPM", {"clip_sample": False}, "ddpm", "leading", {}),
    ("DDPM", {"clip_sample": False, "timestep_spacing": "trailing"}, "ddpm", "trailing", {}),
    ("PNDM", {"skip_prk_steps": True, "set_alpha_to_one": True}, "plms", "leading", {}),
    (  # which remembers v there, and not the noise
        "PNDM",
        {"skip_prk_steps": True, "set_alpha_to_one": True, "prediction_type": "v_prediction"},
        "plms:of=v",
        "leading",
        {},
    ),
    ("LCM", {}, "lcm", "lcm", {}),
    ("EulerDiscrete", {}, "euler", "linspace", {}),
    ("EulerDiscrete", {"timestep_spacing": "leading", "steps_offset": 1}, "euler", "leading:offset=1", {}),
    ("EulerDiscrete", {"timestep_spacing": "trailing"}, "euler", "trailing", {}),
    ("EulerDiscrete", {"use_karras_sigmas": True}, "euler", "karras", {}),
    ("EulerDiscrete", {"use_exponential_sigmas": True}, "euler", "exponential", {}),
    ("EulerDiscrete", {"use_beta_sigmas": True}, "euler", "beta:of=sigmas", {}),
    ("EulerAncestralDiscrete", {}, "euler-ancestral", "linspace", {}),
    ("HeunDiscrete", {}, "heun", "linspace", {}),
    ("HeunDiscrete", {"use_karras_sigmas": True}, "heun", "karras", {}),
    ("KDPM2Discrete", {}, "dpm2", "linspace", {}),
    ("KDPM2AncestralDiscrete", {}, "dpm2-ancestral", "linspace", {}),
    ("LMSDiscrete", {}, "lms", "linspace", {}),
    ("LMSDiscrete", {"use_karras_sigmas": True}, "lms", "karras", {}),
    ("DPMSolverMultistep", {}, "dpm++-2m", "sgm-uniform:rounded=true", {}),
    ("DPMSolverMultistep", {"solver_type": "heun"}, "dpm++-2m:kind=heun", "sgm-uniform:rounded=true", {}),
    ("DPMSolverMultistep", {"use_karras_sigmas": True}, "dpm++-2m", "karras:rounded=true", {}),
    ("DPMSolverMultistep", {"timestep_spacing": "leading"}, "dpm++-2m", "leading:ahead=1", {}),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++"},
        "dpm++-2m-sde",
        "sgm-uniform:rounded=true",
        {"variance_noise": True},
    ),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        "dpm++-2m-sde:kind=heun",
        "sgm-uniform:rounded=true",
        {"variance_noise": True},
    ),
    ("UniPCMultistep", {}, "unipc", "sgm-uniform:rounded=true", {}),
    (  # theirs is not a number at the clean picture
        "UniPCMultistep",
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        "unipc:variant=bh1",
        "sgm-uniform:rounded=true,clean=false",
        {},
    ),
    ("UniPCMultistep", {"solver_order": 3}, "unipc:order=3", "sgm-uniform:rounded=true", {}),
    ("UniPCMultistep", {"use_karras_sigmas": True}, "unipc", "karras:rounded=true", {}),
    ("DEISMultistep", {}, "deis", "sgm-uniform:rounded=true,clean=false", {}),
    ("DEISMultistep", {"solver_order": 3}, "deis:order=3", "sgm-uniform:rounded=true,clean=false", {}),
]


@pytest.mark.parametrize(("name", "settings", "sampler", "rule", "step"), PAIRS)
def test_trajectories_of_the_ddpm_family_are_theirs(
    name: str,
    settings: dict[str, Any],
    sampler: str,
    rule: str,
    step: dict[str, Any],
    draws: list[Tensor],
    solve: Solve,
) -> None:
    scheduler = scheduler_of(name, **LATENT, **settings)
    scheduler.set_timesteps(STEPS)
    path = path_named("ddpm-scaled-linear")
    nodes = nodes_named(rule)(path, STEPS)
    check_nodes(scheduler, path, nodes)
    noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    wanted, first = theirs(scheduler, noise, draws, **step)
    x = noise * (nodes[0].sigma if first.alpha == 1 else 1.0)
    ours = solve(sampler, path, nodes, x, two_modes, _as_called(sampler, draws))
    assert torch.allclose(ours, wanted, atol=1e-4), float((ours - wanted).abs().max())


def _as_called(sampler: str, draws: list[Tensor]) -> Iterator[Tensor]:
    """Ours are given one at each call; theirs ask only when they add it, at the end of a step of two calls."""
    twice = sampler_named(sampler).looks == "between"
    for draw in draws:
        if twice:
            yield torch.zeros(SHAPE)
        yield draw


def test_dpmpp_sde_is_theirs_with_draws_of_one_brownian_path(
    draws: list[Tensor], solve: Solve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their noise comes from a tree of a package that is not needed here; it is given ours, at the same two levels."""
    stand_in = types.ModuleType("torchsde")
    monkeypatch.setitem(sys.modules, "torchsde", stand_in)
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    scheduler = module.DPMSolverSDEScheduler(**LATENT)
    scheduler.set_timesteps(STEPS)
    taken: list[tuple[float, float, Tensor]] = []

    def noise_sampler(high: Tensor, low: Tensor) -> Tensor:
        here, there = float(high), float(low)
        if taken and taken[-1][0] == pytest.approx(here):  # the whole step, after its half
            middle, half = taken[-1][1], taken[-1][2]
            share = (here - middle) / (here - there)
            return share**0.5 * half + (1 - share) ** 0.5 * draws[len(taken) * 2 - 1]
        taken.append((here, there, draws[len(taken) * 2]))
        return taken[-1][2]

    scheduler.noise_sampler = noise_sampler
    path = path_named("ddpm-scaled-linear")
    nodes = nodes_named("linspace")(path, STEPS)
    noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    wanted, _ = theirs(scheduler, noise, [])
    check_nodes(scheduler, path, nodes, has_timesteps=False)
    ours = solve("dpm++-sde", path, nodes, noise * nodes[0].sigma, two_modes, draws)
    assert torch.allclose(ours, wanted, atol=1e-4), float((ours - wanted).abs().max())


@pytest.mark.parametrize(
    ("name", "settings", "sampler", "path", "rule", "mu"),
    [
        ("FlowMatchEulerDiscrete", {}, "euler", "rectified-flow", "linspace", None),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, "euler", "rectified-flow:shift=3", "linspace", None),
        ("FlowMatchHeunDiscrete", {"shift": 3.0}, "heun", "rectified-flow:shift=3", "linspace", None),
        (
            "FlowMatchEulerDiscrete",
            {"use_dynamic_shifting": True},
            "euler",
            "rectified-flow:max_shift=1.15",
            "linspace:shifted=once",
            0.8,
        ),
        (
            "FlowMatchEulerDiscrete",
            {"use_dynamic_shifting": True, "time_shift_type": "linear"},
            "euler",
            "rectified-flow:max_shift=1.15,time_shift=linear",
            "linspace:shifted=once",
            0.8,
        ),
        ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}, "euler", "rectified-flow", "karras", None),
        ("FlowMatchEulerDiscrete", {"use_exponential_sigmas": True}, "euler", "rectified-flow", "exponential", None),
    ],
)
def test_trajectories_of_flow_matching_are_theirs(
    name: str, settings: dict[str, Any], sampler: str, path: str, rule: str, mu: float | None, solve: Solve
) -> None:
    """From pure noise, where alpha is 0, with the shift of the path or that of a picture's size."""
    scheduler = scheduler_of(name, **settings)
    scheduler.set_timesteps(STEPS, **({} if mu is None else {"mu": mu}))
    # mu = 0.8 on the line from (256, 0.5) to (4096, 1.15)
    tokens = 256 if mu is None else 256 + (mu - 0.5) * 3840 / 0.65
    way = path_named(path).for_tokens(tokens)  # type: ignore[arg-type]
    nodes = nodes_named(rule)(way, STEPS)
    check_nodes(scheduler, way, nodes)
    assert nodes[0].alpha == 0
    noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    wanted, _ = theirs(scheduler, noise, [])
    assert torch.allclose(solve(sampler, way, nodes, noise, two_modes), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "sampler"),
    [
        ("DPMSolverMultistep", {}, "dpm++-2m"),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "dpm++-2m-sde"),
        ("UniPCMultistep", {}, "unipc"),
        ("UniPCMultistep", {"solver_order": 3}, "unipc:order=3"),
    ],
)
def test_trajectories_of_multistep_solvers_on_a_flow_are_theirs(
    name: str, settings: dict[str, Any], sampler: str, draws: list[Tensor], solve: Solve
) -> None:
    """Their sigmas there are a list of their own, from just below 1."""
    flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    scheduler = scheduler_of(name, **settings, **flow)
    scheduler.set_timesteps(STEPS)
    path = path_named("rectified-flow:shift=3")
    nodes = nodes_named("sigmas:" + ",".join(str(float(sigma)) for sigma in scheduler.sigmas[:-1]))(path, STEPS)
    noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    step = {"variance_noise": True} if sampler.endswith("sde") else {}
    wanted, _ = theirs(scheduler, noise, draws, **step)
    ours = solve(sampler, path, nodes, noise, two_modes, draws)
    assert torch.allclose(ours, wanted, atol=1e-4), float((ours - wanted).abs().max())


def test_consistency_sampling_on_a_flow_is_theirs(draws: list[Tensor], solve: Solve) -> None:
    scheduler = scheduler_of("FlowMatchLCM", shift=3.0)
    scheduler.set_timesteps(STEPS)
    path = path_named("rectified-flow:shift=3")
    nodes = nodes_named("linspace")(path, STEPS)
    check_nodes(scheduler, path, nodes)
    noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    wanted, _ = theirs(scheduler, noise, draws)
    assert torch.allclose(solve("lcm", path, nodes, noise, two_modes, draws), wanted, atol=1e-4)


def test_the_third_order_of_the_ode_is_theirs(solve: Solve) -> None:
    """With 16 steps, where they do not lower the order of the last but one."""
    scheduler = scheduler_of("DPMSolverMultistep", **LATENT, solver_order=3)
    scheduler.set_timesteps(16)
    path = path_named("ddpm-scaled-linear")
    nodes = nodes_named("sgm-uniform:rounded=true")(path, 16)
    check_nodes(scheduler, path, nodes)
    noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    wanted, _ = theirs(scheduler, noise, [])
    ours = solve("dpm++-3m-sde:eta=0", path, nodes, noise, two_modes)
    assert torch.allclose(ours, wanted, atol=1e-4), float((ours - wanted).abs().max())


def test_flux_passes_its_own_times() -> None:
    """Its pipeline asks for 1, 1 - 1/n, ..., 1/n before the shift: our uniform nodes."""
    scheduler = scheduler_of("FlowMatchEulerDiscrete", use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS).tolist(), mu=1.15)
    path = path_named("rectified-flow:max_shift=1.15").for_tokens(4096)
    check_nodes(scheduler, path, nodes_named("uniform")(path, STEPS))


@pytest.mark.parametrize(("name", "sampler"), [("EDMEuler", "euler"), ("EDMDPMSolverMultistep", "dpm++-2m")])
def test_trajectories_of_edm_are_theirs(name: str, sampler: str, solve: Solve) -> None:
    scheduler = scheduler_of(name)
    scheduler.set_timesteps(STEPS)
    path = path_named("variance-exploding")
    nodes = nodes_named("karras")(path, STEPS)
    check_nodes(scheduler, path, nodes, has_timesteps=False)
    noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    wanted, _ = theirs(scheduler, noise, [])
    assert torch.allclose(solve(sampler, path, nodes, 80 * noise, two_modes), wanted, atol=1e-4)


def test_ipndm_is_theirs_from_where_there_is_a_signal(solve: Solve) -> None:
    """Their path is one of its own; its sigmas are given as a list, from where there is a signal on."""
    sigmas = np.sin(np.linspace(0.9, 0, STEPS + 1) * np.pi / 2) ** 2
    scheduler = scheduler_of("IPNDM", trained_betas=sigmas.tolist())
    scheduler.set_timesteps(STEPS)
    path = path_named("ddpm-scaled-linear")
    nodes = [path.at_ratio(float(sigma / np.sqrt(1 - sigma**2))) for sigma in sigmas]
    x = noise = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))
    for timestep, node in zip(scheduler.timesteps, nodes, strict=False):
        v = node.alpha * (x - node.alpha * two_modes(x, node)) / node.sigma - node.sigma * two_modes(x, node)
        x = scheduler.step(v, timestep, x)[0]
    assert torch.allclose(solve("ipndm", path, nodes, noise, two_modes), x, atol=1e-4)


def test_a_schedule_of_zero_terminal_snr_is_theirs_but_for_its_last_step() -> None:
    """They end at alpha_bar = 2^-24, so that nothing divides by 0."""
    scheduler = scheduler_of("DDIM", **LATENT, rescale_betas_zero_snr=True)
    path = path_named("ddpm-scaled-linear:zero_snr=true")
    ours = [path.at_timestep(timestep).alpha ** 2 for timestep in range(1000)]
    assert np.allclose(ours, scheduler.alphas_cumprod.numpy(), rtol=5e-3, atol=1e-6)
    cosine = scheduler_of("DDIM", beta_schedule="squaredcos_cap_v2")
    path = path_named("ddpm-cosine:largest=0")
    assert np.allclose([path.at_timestep(t).alpha ** 2 for t in range(1000)], cosine.alphas_cumprod, rtol=1e-3)


# ---- the numbers of diffusers' own tests ---------------------------------------------------------------------------
# tests/schedulers of diffusers: beta from 1e-4 to 0.02, T = 1000, 10 steps, a sample of 0, 1, 2, ... over their number,
# a model that says x t / (t + 1).


def published_start() -> Tensor:
    numbers = torch.arange(4 * 3 * 8 * 8, dtype=torch.float64) / (4 * 3 * 8 * 8)
    return numbers.reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


def published(path: Path, prediction: str) -> Callable[[Tensor, Node], Tensor]:
    meaning = prediction_named(prediction)

    def denoised(x: Tensor, node: Node) -> Tensor:
        t = path.timestep(node)
        alpha, sigma = torch.tensor(node.alpha, dtype=x.dtype), torch.tensor(node.sigma, dtype=x.dtype)
        return meaning.denoised(x, x * t / (t + 1), alpha, sigma)

    return denoised


@pytest.mark.parametrize(
    ("sampler", "rule", "prediction", "sum_", "mean"),
    [
        ("dpm++-2m", "sgm-uniform:rounded=true,clean=false", "noise", None, 0.3301),
        ("dpm++-2m", "sgm-uniform:rounded=true,clean=false", "v", None, 0.2251),
        ("dpm++-2m", "karras:rounded=true,clean=false", "v", None, 0.2096),
        ("unipc", "sgm-uniform:rounded=true,clean=false", "noise", None, 0.2464),
        ("unipc", "sgm-uniform:rounded=true,clean=false", "v", None, 0.1014),
        ("ddim", "leading", "noise", 172.0067, None),
        ("ddim", "leading", "v", 52.5302, None),
    ],
)
def test_the_numbers_that_diffusers_publishes(
    sampler: str, rule: str, prediction: str, sum_: float | None, mean: float | None, solve: Solve
) -> None:
    path = path_named("ddpm-linear")
    end = solve(sampler, path, nodes_named(rule)(path, STEPS), published_start(), published(path, prediction)).abs()
    assert sum_ is None or end.sum().item() == pytest.approx(sum_, abs=1e-2)
    assert mean is None or end.mean().item() == pytest.approx(mean, abs=1e-3)


def test_the_number_that_diffusers_publishes_for_edm(solve: Solve) -> None:
    """EDM's Euler: the model is told log(sigma) / 4, and sees the sample over sqrt(sigma^2 + sigma_data^2): 34.1855."""
    path, edm = path_named("variance-exploding"), prediction_named("edm")

    def denoised(x: Tensor, node: Node) -> Tensor:
        alpha, sigma = torch.tensor(1.0, dtype=x.dtype), torch.tensor(node.sigma, dtype=x.dtype)
        t = -node.log_snr / 8
        return edm.denoised(x, x / edm.size(alpha, sigma, path.kind) * t / (t + 1), alpha, sigma)

    nodes = nodes_named("karras")(path, STEPS)
    start = published_start() * (80**2 + 1) ** 0.5
    assert solve("euler", path, nodes, start, denoised).abs().sum().item() == pytest.approx(34.1855, abs=1e-2)
