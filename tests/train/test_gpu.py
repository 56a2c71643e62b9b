"""Training on a GPU: steps that are recorded are those that are launched one operation at a time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diptych.core import graphs
from diptych.train.loop import train
from diptych.train.plan import plan_here
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build

pytestmark = pytest.mark.gpu
OBJECTIVES = ["next-token", "diffusion", "autoencoder", "classifier", "contrastive"]


def lines(recipe: Recipe, folder: Path, dtype: str) -> list[dict[str, float]]:
    run = RunDirectory(folder)
    train(recipe, build(recipe), run, lambda progress: None, dtype=dtype)
    return [line for line in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in line]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_recorded_steps_are_the_steps(
    recipe: Callable[..., Recipe], tmp_path: Path, recorded: list[int], objective: str, optimizer: str, dtype: str
) -> None:
    """With dropout in the text: random numbers are those of the step's seed, recorded or not."""
    parts = 1 if objective == "contrastive" else 2
    changes = ["run.steps=8", "run.log_every=1", "run.batch=4", f"run.accumulate={parts}", "run.sample_every=0"]
    changes += ["run.validate_every=0", "optimizer.warmup=3", "optimizer.clip=0.5", f"optimizer.name={optimizer}"]
    direct, replayed = (
        lines(recipe(objective, *changes, f"run.graphs={graphs}"), tmp_path / graphs, dtype)
        for graphs in ("false", "true")
    )
    assert recorded[0] > 8
    for one, other in zip(direct, replayed, strict=True):
        # Sums of a gradient are made in no fixed order on a GPU.
        for key in ("loss", "gradient_norm"):
            assert other[key] == pytest.approx(one[key], rel=1e-3 if dtype == "float32" else 3e-2)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_is_recorded_too(recipe: Callable[..., Recipe], tmp_path: Path, recorded: list[int]) -> None:
    changes = ["run.steps=8", "run.log_every=1", "run.sample_every=0", "model.dropout=0.0"]
    plain, compiled = (
        lines(recipe("next-token", *changes, f"run.compile={value}"), tmp_path / value, "float32")
        for value in ("false", "true")
    )
    assert recorded[0] > 8
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], rel=1e-3)


def test_what_must_wait_for_the_device_is_called_directly() -> None:
    device = torch.device("cuda")
    calls = graphs.Graphs(device)
    x = torch.ones(3, device=device)
    for _ in range(graphs.DIRECT):
        assert calls.call("sum", lambda x: float(x.sum()), x) == 3
    with pytest.warns(UserWarning, match="each operation by itself"):
        assert calls.call("sum", lambda x: float(x.sum()), x) == 3
    assert not calls.is_on
    assert calls.call("sum", lambda x: float(x.sum()), x * 2) == 6
    assert (x @ x).item() == 3  # the device goes on, and so do its random numbers, which recordings have, too
    draws = []
    for direct in (graphs.DIRECT, 0):
        calls = graphs.Graphs(device, direct=direct)
        torch.manual_seed(1)
        draws.append([calls.call("draw", lambda: torch.rand(4, device=device)).tolist() for _ in range(3)])
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][1] != draws[0][2]


def test_a_run_goes_on_from_its_checkpoint(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    changes = ["run.log_every=1", "run.sample_every=0", "run.save_every=4"]
    whole = lines(recipe("next-token", "run.steps=8", *changes), tmp_path / "whole", "float32")
    lines(recipe("next-token", "run.steps=4", *changes), tmp_path / "parts", "float32")
    parts = lines(recipe("next-token", "run.steps=8", *changes), tmp_path / "parts", "float32")
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in whole], rel=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gpu_is_measured_for_a_plan(recipe: Callable[..., Recipe], objective: str) -> None:
    planned = plan_here(recipe(objective), seconds=0.5)
    assert planned.is_measured
    assert planned.fits
    assert torch.cuda.get_device_name() in planned.on
    assert planned.step_seconds > 0


@pytest.mark.parametrize("is_recorded", ["true", "false"])
def test_the_memory_of_a_plan_is_that_of_a_run(recipe: Callable[..., Recipe], tmp_path: Path, is_recorded: str) -> None:
    """Within 10 %, of the most that the run's process has on the GPU: what torch took at its most, and what lies there
    beside it."""
    wide = ["run.steps=6", "run.batch=64", f"run.graphs={is_recorded}", "model.depth=6", "model.context=256"]
    wide += [f"model.overrides.{size}" for size in ("width=512", "num_heads=8", "hidden=1536")]
    read = recipe("next-token", *wide)
    planned = plan_here(read)
    code = (
        "import sys, torch; from diptych.cli import main; status = main(sys.argv[1:]); "
        "free, total = torch.cuda.mem_get_info(); beside = total - free - torch.cuda.memory_reserved(); "
        "print(torch.cuda.max_memory_reserved() + beside); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "train", str(read.path), *wide, "--out", str(tmp_path / "run")]
    free, total = torch.cuda.mem_get_info()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert planned.total == pytest.approx(int(done.stdout.split()[-1]) - (total - free), rel=0.1)


def test_more_processes_than_gpus_are_refused_in_a_line(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    count = torch.cuda.device_count() + 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "diptych", "train", str(recipe("next-token").path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert f"torchrun started more processes here than there are GPUs ({count - 1})" in done.stderr
