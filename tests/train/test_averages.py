"""Averages of the weights: the running one, and one whose length is chosen afterwards, against the definition."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diptych.core.randomness import normal
from diptych.train.averages import (
    PowerAverages,
    average_model,
    gamma_of,
    save_snapshot,
    snapshot_path,
    synthesise,
)


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_has_the_published_values(length: float, gamma: float) -> None:
    """Karras et al. 2024, sec. 3.1 names both; and the length of the profile t^gamma is what was asked for."""
    assert gamma_of(length) == pytest.approx(gamma, abs=0.01)
    g = gamma_of(length)
    assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(length**2)


def test_each_running_average_weighs_steps_by_their_power() -> None:
    """By the definition: weights proportional to (approximately) t^gamma, here summed directly over 400 steps."""
    model, values = nn.Linear(3, 1, bias=False), normal((400, 3), seed=1)
    averages = PowerAverages(model)
    for step, value in enumerate(values):
        with torch.no_grad():
            model.weight.copy_(value[None])
        averages.update(model, step)
    times = torch.arange(1, 401, dtype=torch.float64)
    for found, length in zip(averages.weights, (0.05, 0.10), strict=True):
        gamma = gamma_of(length)
        weights = times ** (gamma + 1) - (times - 1) ** (gamma + 1)
        # The recursion's own weights: prod of (1 - 1/t)^(gamma + 1), a telescope.
        direct = (weights[:, None] * values).sum(0) / weights.sum()
        assert torch.allclose(found["weight"][0].double(), direct, atol=1e-5)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.12, 0.2])
def test_an_average_of_any_length_comes_out_of_snapshots(tmp_path: Path, length: float) -> None:
    """Weights that move like a real run's, smoothly with noise: the average put together from 16 snapshots is the one
    that a pass over all steps gives."""
    model, steps = nn.Linear(4, 1, bias=False), 512
    drift = normal((steps, 4), seed=2).cumsum(0) * 0.05 + normal((steps, 4), seed=3) * 0.2
    averages = PowerAverages(model)
    for step, value in enumerate(drift):
        with torch.no_grad():
            model.weight.copy_(value[None])
        averages.update(model, step)
        if (step + 1) % 32 == 0:
            save_snapshot(snapshot_path(tmp_path, step + 1), averages.tensors(), step + 1)
    times = torch.arange(1, steps + 1, dtype=torch.float64)
    gamma = gamma_of(length)
    weights = times ** (gamma + 1) - (times - 1) ** (gamma + 1)
    direct = (weights[:, None] * drift).sum(0) / weights.sum()
    found = synthesise(tmp_path, length)["weight"][0].double()
    plain = drift[-1].double()
    assert (found - direct).norm() < 0.1 * (plain - direct).norm()
    assert torch.allclose(found, direct, atol=0.02)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3])
def test_an_impossible_length_is_refused(tmp_path: Path, length: float) -> None:
    with pytest.raises(ValueError, match=r"length of an average must be above 0 and at most 0\.25"):
        synthesise(tmp_path, length)


def test_no_snapshots_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no snapshots; run\.snapshot_every makes them"):
        synthesise(tmp_path, 0.1)


def test_a_finished_model_takes_another_average_afterwards(tmp_path: Path) -> None:
    """What the run does not average (here a tensor of another network) stays as it is, in the file's own precision."""
    averages = PowerAverages(model := nn.Linear(3, 2))
    for step in range(8):
        with torch.no_grad():
            model.weight.copy_(normal((2, 3), seed=step))
        averages.update(model, step)
        save_snapshot(snapshot_path(made_folder(tmp_path / "snapshots"), step + 1), averages.tensors(), step + 1)
    made_folder(tmp_path / "model")
    kept = {name: value.bfloat16() for name, value in model.state_dict().items()} | {"other.weight": torch.ones(2)}
    save_file(kept, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "README.md").write_text("# tiny\n")
    average_model(tmp_path, 0.1, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["weight"], synthesise(tmp_path / "snapshots", 0.1)["weight"].bfloat16())
    assert not torch.equal(found["weight"], kept["weight"])
    assert torch.equal(found["other.weight"], kept["other.weight"])
    assert "averaged over 0.1 of the training" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="has no finished model"):
        average_model(tmp_path / "out", 0.1, tmp_path / "again")


def made_folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path
