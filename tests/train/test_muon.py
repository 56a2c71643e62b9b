"""Muon: the update is orthogonal, as torch's own Muon makes it, and in any dtype."""

import pytest
import torch
from torch import nn

from diptych.core.randomness import normal
from diptych.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_singular_values_come_out_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    """Against the exact answer: U V^T of the singular value decomposition. Five rounds leave singular values between
    about 0.7 and 1.2 (Jordan et al. 2024)."""
    matrices = normal((3, *shape), seed=1).double()
    found = orthogonalise(matrices, torch.float64)
    for matrix, made in zip(matrices, found, strict=True):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        in_its_axes = u.T @ made @ v.T  # diagonal where the singular directions are kept
        assert (in_its_axes - torch.diag(in_its_axes.diagonal())).abs().max() < 1e-9
        is_large = s > 0.02 * s.max()
        assert ((in_its_axes.diagonal()[is_large] > 0.6) & (in_its_axes.diagonal()[is_large] < 1.25)).all()


def test_it_steps_as_torchs_own_muon() -> None:
    """torch iterates in bfloat16; with the same dtype five steps with Nesterov momentum and decay agree to its
    precision."""
    start = [normal((12, 30), seed=2), normal((30, 12), seed=3), normal((12, 30), seed=4)]
    ours, theirs = ([nn.Parameter(part.clone()) for part in start] for _ in range(2))
    mine = Muon(ours, 0.02, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = normal(tuple(one.shape), seed=5, sample=index, step=step)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    for one, two, begun in zip(ours, theirs, start, strict=True):
        assert (one - begun).abs().max() > 0.05
        assert torch.allclose(one, two, atol=2e-3)


def test_float32_and_bfloat16_give_nearly_the_same_update() -> None:
    matrices = normal((2, 16, 40), seed=6)
    exact, rough = (orthogonalise(matrices, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.float32
    assert (exact - rough).norm() / exact.norm() < 0.03


def test_each_matrix_of_a_stack_moves_as_it_would_alone() -> None:
    stack = normal((3, 8, 20), seed=7)
    together, apart = nn.Parameter(stack.clone()), [nn.Parameter(matrix.clone()) for matrix in stack]
    both = Muon([together], 0.02, dtype=torch.float32), Muon(apart, 0.02, dtype=torch.float32)
    together.grad = normal((3, 8, 20), seed=8)
    for matrix, gradient in zip(apart, together.grad, strict=True):
        matrix.grad = gradient.clone()
    for optimizer in both:
        optimizer.step()
    torch.testing.assert_close(together, torch.stack(list(apart)))


def test_it_takes_matrices_only() -> None:
    with pytest.raises(ValueError, match=r"Muon takes matrices, not a tensor of shape \(4,\)"):
        Muon([nn.Parameter(torch.zeros(4))], 0.1)
