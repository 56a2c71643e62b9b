"""Steps that are recorded, as on a GPU: there is none here, so a recording is stood in for by one that runs again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        monkeypatch.setattr(steps, "allow_recording", lambda optimizers: None)  # AdamW has none on a CPU
    assert len(found[0]) == 8
    for direct, recorded in zip(*found, strict=True):
        assert recorded == pytest.approx(direct, rel=1e-5)


class Told:
    """A source that tells when it is read."""

    def __init__(self, source: Any, order: list[str]) -> None:
        self.source, self.order = source, order

    def batch(self, step: int, rows: range) -> Any:
        self.order.append(f"read {step}")
        return self.source.batch(step, rows)

    def troubles(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_the_next_batch_is_read_while_a_device_computes(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_elsewhere: bool
) -> None:
    """Each once, in order, and none after the last step."""
    chosen = recipe("next-token", "run.steps=3", "run.validate_every=0", "run.sample_every=0")
    task, order, numbers = build(chosen), list[str](), steps._numbers
    task.source = Told(task.source, order)  # type: ignore[misc]
    monkeypatch.setattr(steps, "_numbers", lambda values: (order.append("wait"), numbers(values))[1])
    monkeypatch.setattr(steps.Stepper, "is_elsewhere", is_elsewhere)
    train(chosen, task, RunDirectory(tmp_path / "run"), lambda progress: None, dtype="float32")
    assert order == (
        ["read 0", "read 1", "wait", "read 2", "wait", "wait"]
        if is_elsewhere
        else ["read 0", "wait", "read 1", "wait", "read 2", "wait"]
    )
