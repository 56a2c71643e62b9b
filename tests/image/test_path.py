"""Paths and nodes against published schedules and their own inverses."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch

from diptych.image.nodes import NODES, beta_quantile, nodes_named
from diptych.image.path import (
    PATHS,
    add_noise,
    ddpm_cosine,
    ddpm_linear,
    path_named,
    rectified_flow,
    shift_for,
    variance_exploding,
)


def test_the_linear_schedule_ends_where_ddpm_ends() -> None:
    """alpha_bar_T of beta 1e-4..0.02 over 1000 steps is 4.04e-5 (and its square root the 0.00635 of the literature)."""
    assert ddpm_linear().node(1.0).alpha ** 2 == pytest.approx(4.0358e-5, rel=1e-4)


def test_the_cosine_schedule_follows_its_equation() -> None:
    """Nichol & Dhariwal 2021, eq. 17, where beta is not cut off."""
    path = ddpm_cosine()
    for t in (0.1, 0.3, 0.5, 0.8):
        wanted = (math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
        assert path.node(t).alpha ** 2 == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_a_node_found_by_its_ratio_is_the_node_of_its_time(name: str) -> None:
    path = path_named(name)
    for time in (0.02, 0.3, 0.77, 0.98):
        node = path.node(time)
        again = path.at_ratio(node.noise_ratio)
        assert (again.time, again.alpha, again.sigma) == pytest.approx((time, node.alpha, node.sigma), rel=1e-9)
    clean = path.at_ratio(0)
    assert (clean.alpha, clean.sigma, clean.log_snr) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize("name", PATHS)
def test_coefficients_of_a_batch_are_those_of_the_nodes(name: str) -> None:
    path = path_named(name)
    times = [0.01, 0.4, 0.9]
    alpha, sigma = path.coefficients(torch.tensor(times, dtype=torch.float64))
    nodes = [path.node(time) for time in times]
    assert alpha.tolist() == pytest.approx([node.alpha for node in nodes], rel=1e-5)
    assert sigma.tolist() == pytest.approx([node.sigma for node in nodes], rel=1e-5)


def test_variance_is_preserved_where_the_path_says_so() -> None:
    node = ddpm_linear().node(0.37)
    assert node.alpha**2 + node.sigma**2 == pytest.approx(1)
    assert variance_exploding().node(0.37).alpha == 1
    flowing = rectified_flow(shift=3).node(0.37)
    assert flowing.alpha + flowing.sigma == pytest.approx(1)
    assert node.noise_share == pytest.approx(node.sigma**2)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("rule", NODES)
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_nodes_fall_from_the_noisiest_to_the_clean_picture(name: str, rule: str, steps: int) -> None:
    path = path_named(name)
    nodes = nodes_named(rule)(path, steps)
    ratios = [node.noise_ratio for node in nodes]
    assert len(nodes) == steps + 1
    if rule != "leading":  # whose flaw it is to begin below
        assert nodes[0].coordinate == pytest.approx(path.node(path.start).coordinate, rel=0.05)
    assert ratios[-1] == 0
    assert all(before > after for before, after in pairwise(ratios))


def test_karras_nodes_follow_their_equation() -> None:
    """Karras et al. 2022, eq. 5, sigma 80 to 0.002, rho 7: the third of five is the seventh power of the middle."""
    nodes = NODES["karras"](variance_exploding(), 5)
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert nodes[2].sigma == pytest.approx(middle, rel=1e-9)


def test_noise_is_added_as_the_path_says() -> None:
    x, noise = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 10.0)
    noisy = add_noise(x, noise, torch.tensor([1.0, 0.6]), torch.tensor([0.0, 0.8]))
    assert noisy.flatten().tolist() == pytest.approx([1.0, 8.6])


def test_many_pictures_noised_have_the_variance_of_the_path() -> None:
    """Unit-variance pictures stay of unit variance on a path that preserves it."""
    random = torch.Generator().manual_seed(0)
    x, noise = torch.randn(4000, 1, 4, 4, generator=random), torch.randn(4000, 1, 4, 4, generator=random)
    alpha, sigma = ddpm_cosine().coefficients(torch.full((4000,), 0.6, dtype=torch.float64))
    assert add_noise(x, noise, alpha, sigma).var().item() == pytest.approx(1, abs=0.02)


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match="unknown path 'ddpm-cosin'; did you mean 'ddpm-cosine'"):
        path_named("ddpm-cosin")
    with pytest.raises(ValueError, match="unknown node rule 'karas'; did you mean 'karras'"):
        nodes_named("karas")
    assert np.all([name == path_named(name).name for name in PATHS])


@pytest.mark.parametrize("name", [*PATHS, "ddpm-scaled-linear:zero_snr=true", "rectified-flow:shift=3"])
def test_log_snr_and_its_inverse_undo_each_other(name: str) -> None:
    path = path_named(name)
    for value in (-7.0, -1.5, 0.0, 2.0, 6.5):
        node = path.at_log_snr(value)
        assert node.log_snr == pytest.approx(value, abs=1e-9)
        assert path.node(node.time).log_snr == pytest.approx(value, abs=1e-6)
        assert path.at_coordinate(node.coordinate).log_snr == pytest.approx(value, abs=1e-9)
        timestep = path.timestep(node)
        assert path.node((timestep + 1) / path.steps).log_snr == pytest.approx(value, abs=1e-6)


def test_a_schedule_of_zero_terminal_snr_is_that_of_its_paper() -> None:
    """Lin et al. 2024, alg. 1: the first alpha_bar stays, the last is 0, and roots move in a straight line."""
    path, plain = path_named("ddpm-scaled-linear:zero_snr=true"), path_named("ddpm-scaled-linear")
    assert (path.node(1.0).alpha, path.node(1.0).sigma) == (0.0, 1.0)
    assert path.node(1.0).log_snr == -math.inf
    first, last = plain.at_timestep(0).alpha, plain.at_timestep(999).alpha
    for timestep in (0, 1, 500, 998):
        wanted = (plain.at_timestep(timestep).alpha - last) * first / (first - last)
        assert path.at_timestep(timestep).alpha == pytest.approx(wanted, rel=1e-9)


def test_a_flow_is_shifted_as_its_papers_say() -> None:
    """Esser et al. 2024, eq. 23; Flux.1's mu for 1024 x 1024 pixels, 4096 patches, is its max_shift 1.15."""
    for shift in (1.0, 3.0):
        path = rectified_flow(shift=shift)
        for time in (0.0, 0.1, 0.5, 0.9, 1.0):
            assert path.node(time).sigma == pytest.approx(shift * time / (1 + (shift - 1) * time))
    dynamic = path_named("rectified-flow:max_shift=1.15")
    assert dynamic.for_tokens(4096).node(0.5).sigma == pytest.approx(math.exp(1.15) / (math.exp(1.15) + 1))
    assert dynamic.for_tokens(256).node(0.5).sigma == pytest.approx(math.exp(0.5) / (math.exp(0.5) + 1))
    assert shift_for(2176, 0.5, 1.15, 256, 4096, "linear") == pytest.approx(0.825)
    assert path_named("ddpm-linear").for_tokens(4096).name == "ddpm-linear"


def test_lists_of_nodes_are_taken_as_they_are() -> None:
    path, flow = path_named("ddpm-scaled-linear"), path_named("rectified-flow:shift=3")
    for rule, values in (("sigmas:14.6,3.1,0.5", [14.6, 3.1, 0.5, 0]), ("sigmas:2,1,0", [2, 1, 0])):
        assert [node.noise_ratio for node in nodes_named(rule)(path, 30)] == pytest.approx(values)
    found = nodes_named("timesteps:999,499,99")(path, 30)
    assert [path.timestep(node) for node in found[:-1]] == pytest.approx([999, 499, 99])
    assert [node.sigma for node in nodes_named("timesteps:1000,750")(flow, 2)] == pytest.approx([1, 0.75, 0])
    for rule, message in (
        ("sigmas:1,2", "must be falling numbers"),
        ("sigmas:0", "must be falling numbers"),
        ("timesteps:1,nan", "must be falling numbers"),
        ("timesteps:1000,1", "timesteps of the path 'ddpm-scaled-linear' are at most 999"),
    ):
        with pytest.raises(ValueError, match=message):
            nodes_named(rule)(path, 30)
    with pytest.raises(ValueError, match="sigmas of the path 'rectified-flow:shift=3' are at most 1, not 2"):
        nodes_named("sigmas:2,1")(flow, 30)


def test_the_last_node_may_be_the_least_noisy_one_that_training_saw() -> None:
    path = path_named("ddpm-scaled-linear")
    for rule in ("uniform:clean=false", "karras:clean=false", "leading:offset=1,clean=false"):
        nodes = nodes_named(rule)(path, 10)
        assert path.timestep(nodes[-1]) == pytest.approx(0)
        assert all(before.noise_ratio > after.noise_ratio for before, after in pairwise(nodes))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rectified-flow:shift=0", "shift of path 'rectified-flow' must be above 0, not 0"),
        ("rectified-flow:shifts=3", "unknown setting of path 'rectified-flow' 'shifts'; did you mean 'shift'"),
        ("ddpm-linear:steps=1", "steps of path 'ddpm-linear' must be at least 2, not 1"),
        ("ddpm-linear:steps=1.5", "steps of path 'ddpm-linear' must be a whole number, not '1.5'"),
        ("ddpm-linear:zero_snr=1", "zero_snr of path 'ddpm-linear' must be true or false, not '1'"),
        ("variance-exploding:largest=0.001", "largest of path 'variance-exploding' must be above smallest, not 0.001"),
    ],
)
def test_settings_of_a_path_that_cannot_be_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        path_named(name)


@pytest.mark.parametrize("steps", [10, 20, 25])
def test_rules_of_comfyui_are_theirs(steps: int) -> None:
    """Written out from their tables of levels, 1000 of them, with the logarithm straight between two."""
    path = path_named("ddpm-scaled-linear")
    table = np.array([path.at_timestep(timestep).noise_ratio for timestep in range(1000)])

    def between(timesteps: np.ndarray) -> np.ndarray:
        return np.exp(np.interp(timesteps, np.arange(1000), np.log(table)))

    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    wanted = {
        "simple": [table[-(1 + int(k * 1000 / steps))] for k in range(steps)],
        "normal": between(np.linspace(999, 0, steps)),
        "sgm_uniform": between(np.linspace(999, 0, steps + 1)[:-1]),
        "ddim_uniform": table[1 :: 1000 // steps][::-1],
        "beta": table[np.rint(quantiles * 999).astype(int)],
    }
    for rule, levels in wanted.items():
        found = [node.noise_ratio for node in nodes_named(rule)(path, steps)]
        assert found == pytest.approx([*levels, 0], rel=1e-6), rule


def test_quantiles_of_the_beta_distribution_are_scipys() -> None:
    for a, b in ((0.6, 0.6), (2.0, 5.0), (1.0, 1.0)):
        for part in (0.0, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0):
            assert beta_quantile(part, a, b) == pytest.approx(scipy.stats.beta.ppf(part, a, b), abs=1e-8)
