"""However the rows of a step are divided, the weights move alike: 1 x 8, 8 x 1, 2 x 4."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.train.loop import train
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build

STEPS = 50


def losses(recipe: Recipe, folder: Path, dtype: str) -> list[float]:
    run = RunDirectory(folder)
    train(recipe, build(recipe), run, lambda progress: None, dtype=dtype)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("objective", ["next-token", "diffusion", "autoencoder"])
def test_parts_of_a_batch_give_the_losses_of_the_whole(
    recipe: Callable[..., Recipe], tmp_path: Path, objective: str, dtype: str, tolerance: float
) -> None:
    """Fifty steps: a part's weight is its share of the step's tokens, and rows of text hold different numbers of
    them, so a mean of means would differ at once."""
    settings = [f"run.steps={STEPS}", "run.batch=8", "run.log_every=1", "run.sample_every=0", "run.validate_every=0"]
    if objective == "next-token":
        settings.append("model.dropout=0.0")
    whole, divided = (
        losses(recipe(objective, *settings, f"run.accumulate={parts}"), tmp_path / f"{parts}", dtype)
        for parts in (1, 8)
    )
    assert len(whole) == STEPS
    assert whole[-1] < whole[0]
    assert divided == pytest.approx(whole, abs=tolerance)


def test_experts_balanced_by_a_bias_do_not_feel_the_division_either(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Their load is that of the whole step, and so is the z-loss. Everything else that a step can be is on, too:
    Muon on stacked matrices, recomputation, an average."""
    experts = 'model.overrides.experts={num_experts=4,top_k=2,hidden=24,balance="bias",bias_rate=0.01}'
    settings = ["run.steps=20", "run.batch=8", "run.log_every=1", "run.sample_every=0", "run.validate_every=0"]
    settings += ["model.dropout=0.0", "optimizer.name=muon", "run.recompute=true", experts]
    found = []
    for parts in (1, 8):
        chosen = recipe("next-token", *settings, f"run.accumulate={parts}")
        folder = tmp_path / f"{parts}"
        told = losses(chosen, folder, "float64")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        loads = [line["busiest_expert"] for line in lines if "loss" in line]
        biases = load_file(folder / "model" / "model.safetensors")["blocks.0.feed_forward.bias"]
        found.append((told, loads, biases))
    (whole, loads, biases), (divided, same, equal) = found
    assert divided == pytest.approx(whole, abs=1e-9)
    assert same == loads
    assert torch.equal(biases, equal)
    assert biases.abs().max() > 0
