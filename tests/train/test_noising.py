"""A diffusion recipe chooses how noise is added, what is predicted, how levels count and how often they are seen."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.core.weights import read_config
from diptych.image.model import ImageModel
from diptych.train.footprint import footprint
from diptych.train.loop import train
from diptych.train.outline import outline_of
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build
from diptych.train.tasks.diffusion import DiffusionTask

Read = Callable[..., Recipe]

CHOICES = [
    ("rectified-flow:shift=2", "velocity", "simple", "logit-normal:mean=0.5"),
    ("variance-exploding", "edm:sigma_data=1", "edm:sigma_data=1", "log-normal"),
    ("ddpm-scaled-linear:zero_snr=true", "v", "min-snr:gamma=5", "uniform"),
    ("ddpm-cosine", "image", "soft-min-snr", "uniform"),
]


@pytest.mark.parametrize(("path", "prediction", "weighting", "times"), CHOICES)
def test_a_painter_trained_any_way_is_planned_trained_loaded_and_paints(
    recipe: Read, tmp_path: Path, path: str, prediction: str, weighting: str, times: str
) -> None:
    chosen = {"path": path, "prediction": prediction, "weighting": weighting, "times": times}
    read = recipe("diffusion", *(f'model.{key}="{value}"' for key, value in chosen.items()))
    assert footprint(outline_of(read), 4, read.optimizer, torch.float32).block > 0
    run = RunDirectory(tmp_path / "run")
    train(read, build(read), run, lambda progress: None)
    lines = map(json.loads, run.metrics.read_text().splitlines())
    losses = [value for line in lines for key, value in line.items() if key in ("loss", "validation/noise_loss")]
    assert len(losses) >= 2
    assert np.isfinite(losses).all()
    config = read_config(run.model)
    assert (config["path"], config["prediction"]) == (path, prediction)
    model = ImageModel.load(run.model, dtype="float32")
    for sampler in ("dpm++-2m", "heun", "euler-ancestral"):
        result = model.generate("a cat on a beach", steps=3, seed=1, sampler=sampler).result()
        assert result.image.size == (32, 32)
        assert torch.isfinite(result.latents).all()
        result.trace.save(tmp_path / "paint.trace")  # its numbers are finite, also of pure noise


def test_times_are_drawn_as_the_recipe_says(recipe: Read) -> None:
    """One draw in each equal part of the distribution: of 64, half lie below the median."""
    task = build(recipe("diffusion", 'model.path="variance-exploding"', "model.times=log-normal", "run.batch=64"))
    assert isinstance(task, DiffusionTask)
    times = task.source.batch(0, range(64)).times
    logarithms = task.painter.path.coefficients(times)[1].log()
    assert (logarithms < -1.2).sum().item() == 32


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.prediction=epsilon"], "model.prediction 'epsilon': unknown prediction 'epsilon'; known: noise, image"),
        (["model.weighting=snr"], "model.weighting 'snr': unknown weighting 'snr'"),
        (["model.times=logit-normal:std=2"], "unknown setting of distribution of times 'logit-normal' 'std'"),
        (["model.path=rectified-flow"], "begins with pure noise, where predicting the noise says nothing"),
    ],
)
def test_what_cannot_be_chosen_is_refused_at_the_door(recipe: Read, overrides: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        build(recipe("diffusion", *overrides))
    with pytest.raises(ValueError, match=re.escape(expected)):
        outline_of(recipe("diffusion", *overrides))
