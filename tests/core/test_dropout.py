"""Dropout: how much goes, that nothing changes in the mean, and that what goes is a function of the seed."""

import pytest
import torch

from diptych.core.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.001, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_goes_and_the_rest_makes_up(share, dtype):
    torch.manual_seed(0)
    x = torch.ones(401, 999, dtype=dtype, requires_grad=True)
    thinned = Dropout(share)(x)
    kept = (thinned != 0).float().mean().item()
    assert kept == pytest.approx(1 - share, abs=0.004)
    assert thinned.dtype == dtype
    values = thinned.detach().unique()
    assert len(values) == 2
    assert values[1].item() == pytest.approx(1 / kept, rel=0.01 if share < 0.9 else 0.3)
    thinned.sum().backward()
    assert torch.equal(x.grad, thinned.detach())


def test_it_is_a_function_of_the_seed_and_leaves_evaluation_alone():
    layer, x = Dropout(0.3), torch.randn(7, 5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_places_do_not_follow_each_other():
    """Each byte of a random word decides alone."""
    torch.manual_seed(0)
    gone = (Dropout(0.5)(torch.ones(4096, 64)) == 0).float() - 0.5
    for shift in range(1, 9):
        assert abs((gone[:, shift:] * gone[:, :-shift]).mean().item()) < 0.005


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(ValueError, match=r"dropout must be a number >= 0 and < 1"):
        Dropout(share)
