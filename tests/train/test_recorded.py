"""Steps that are recorded, as on a GPU: there is none here, so a recording is stood in for by one that runs again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.core import graphs
from diptych.train import step as steps
from diptych.train.loop import train
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build


class Again:
    """As `graphs.Graphs`: what was called `DIRECT` times is kept with its inputs, and from then on it is that first
    recorded function, on those inputs, that is run."""

    def __init__(self, device: torch.device, *, is_on: bool = True) -> None:
        self.is_on, self.kept, self.count = is_on, dict[Any, Any](), dict[Any, int]()

    def call(self, name: Any, function: Callable[..., Any], *inputs: Tensor) -> Any:
        if not self.is_on:
            return function(*inputs)
        key = (name, *(tensor.shape for tensor in inputs))
        self.count[key] = self.count.get(key, 0) + 1
        if self.count[key] <= graphs.DIRECT:
            return function(*inputs)
        function, kept = self.kept.setdefault(key, (function, [tensor.clone() for tensor in inputs]))
        for old, new in zip(kept, inputs, strict=True):
            old.copy_(new)
        return function(*kept)


@pytest.mark.parametrize("objective", ["next-token", "diffusion", "autoencoder", "classifier", "contrastive"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_recorded_steps_are_the_steps(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, optimizer: str
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
        monkeypatch.setattr(steps, "Graphs", Again)
        monkeypatch.setattr(steps, "record_updates", lambda optimizers, rate: None)
    assert len(found[0]) == 8
    for direct, recorded in zip(*found, strict=True):
        assert recorded == pytest.approx(direct, rel=1e-5)
