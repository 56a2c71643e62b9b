"""Paths and nodes against published schedules and their own inverses."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from diptych.image.nodes import NODES, karras, nodes_named
from diptych.image.path import PATHS, add_noise, ddpm_cosine, ddpm_linear, path_named, variance_exploding


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
    assert node.noise_share == pytest.approx(node.sigma**2)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("rule", NODES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_nodes_fall_from_the_noisiest_to_the_clean_picture(name: str, rule: str, steps: int) -> None:
    path = path_named(name)
    nodes = NODES[rule](path, steps)
    ratios = [node.noise_ratio for node in nodes]
    assert len(nodes) == steps + 1
    assert ratios[0] == pytest.approx(path.node(path.start).noise_ratio)
    assert ratios[-1] == 0
    assert all(before > after for before, after in pairwise(ratios))


def test_karras_nodes_follow_their_equation() -> None:
    """Karras et al. 2022, eq. 5, sigma 80 to 0.002, rho 7: the third of five is the seventh power of the middle."""
    nodes = karras(variance_exploding(), 5)
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
