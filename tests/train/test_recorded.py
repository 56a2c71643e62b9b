"""Steps that are recorded, as on a GPU: there is none here, so a recording is stood in for by one that runs again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.train import step as steps
from diptych.train.loop import train
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build


@pytest.mark.parametrize("objective", ["next-token", "diffusion", "autoencoder", "classifier", "contrastive"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_recorded_steps_are_the_steps(
    recipe: Callable[..., Recipe],
    recordings: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    optimizer: str,
) -> None:
    """What a recording may not miss: the batch, the part's weight, the learning rate, clipping, the gradients' end."""
    parts = 1 if objective == "contrastive" else 2
    changes = ("run.steps=8", "run.log_every=1", "run.batch=4", f"run.accumulate={parts}", "run.validate_every=0")
    changes += ("run.sample_every=0", "optimizer.warmup=3", "optimizer.clip=0.5", f"optimizer.name={optimizer}")
    found = []
    for name in ("direct", "recorded"):
        chosen, run = recipe(objective, *changes), RunDirectory(tmp_path / name)
        train(chosen, build(chosen), run, lambda progress: None, dtype="float32")
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        found.append([{key: line[key] for key in ("loss", "gradient_norm")} for line in lines if "loss" in line])
        monkeypatch.setattr(steps, "Graphs", recordings)
        monkeypatch.setattr(steps, "record_updates", lambda optimizers, rate: None)
    assert len(found[0]) == 8
    for direct, recorded in zip(*found, strict=True):
        assert recorded == pytest.approx(direct, rel=1e-5)
