"""Several processes train one model as one process does: torchrun, gloo, FSDP2, hybrid sharding, tensor parallelism.

Every run here is the real command, `torchrun ... -m diptych train RECIPE`.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.train.recipe import ParallelSettings, Recipe

STEPS = 50
PLAIN = ["run.batch=12", "run.log_every=1", "run.validate_every=0", "run.sample_every=0", "optimizer.decay=0.0"]
SIZES = {
    "next-token": ["model.dropout=0.0", "model.overrides.num_heads=4", "model.overrides.num_kv_heads=2"],
    "diffusion": ["model.unet.widths=[32,64]", "model.unet.has_attention=[true,true]", "model.encoder.width=48"],
}


def environment() -> dict[str, str]:
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "NO_COLOR": "1"}
    return os.environ | quiet | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def train(recipe: Recipe, folder: Path, processes: int, *settings: str, launcher: tuple[str, ...] = ()) -> None:
    """`diptych train` alone or under torchrun; fails with what it said."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *launcher, "-m"]
    command = [*start, "diptych", "train", str(recipe.path), "--out", str(folder), "--threads", "1", *settings]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, len(trained) + 1)), "no gaps and no repeats"
    return [line["loss"] for line in trained]


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of one process, by objective; filled by the first test that needs them."""
    return {}


@pytest.mark.parametrize("objective", ["next-token", "diffusion"])
@pytest.mark.parametrize(
    ("processes", "layout"),
    [(2, "parallel.shard=2"), (4, "parallel.replicate=2"), (2, "parallel.replicate=2"), (2, "parallel.tensor=2")],
    ids=["sharded", "hybrid", "copies", "tensor"],
)
def test_fifty_steps_of_several_processes_have_the_losses_of_one(
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    alone: dict[str, list[float]],
    objective: str,
    processes: int,
    layout: str,
) -> None:
    """Within rounding of float32, and the finished models agree, too."""
    chosen = recipe(objective)
    settings = [*PLAIN, *SIZES[objective], f"run.steps={STEPS}", "optimizer.learning_rate=3e-4"]
    if objective not in alone:
        train(chosen, tmp_path / "alone", 1, *settings)
        alone[objective] = losses(tmp_path / "alone")
    train(chosen, tmp_path / "many", processes, *settings, layout)
    found = losses(tmp_path / "many")
    assert len(found) == STEPS
    assert found == pytest.approx(alone[objective], abs=1e-4)
    assert len(set(found)) == STEPS
    model = load_file(tmp_path / "many" / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in model.values())


def test_what_two_processes_saved_goes_on_in_one_three_or_four(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """With Muon, whose updates are gathered, AdamW and an average: the losses are those of one process throughout. On
    the way to one they are two that have a copy each."""
    chosen = recipe("next-token")
    settings, shards = [*PLAIN, *SIZES["next-token"]], "parallel.replicate=1"
    train(chosen, tmp_path / "alone", 1, *settings, "run.steps=16")
    train(chosen, tmp_path / "two", 2, *settings, "run.steps=8", shards)
    expected = losses(tmp_path / "alone")
    for processes in (1, 3, 4):
        folder = tmp_path / f"then-{processes}"
        subprocess.run(["cp", "-r", str(tmp_path / "two"), str(folder)], check=True)
        if processes == 1:
            train(chosen, folder, 2, *settings, "run.steps=12")
        train(chosen, folder, processes, *settings, "run.steps=16", shards)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found = [line["loss"] for line in lines if "loss" in line]
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_killed_process_is_replaced_and_the_run_goes_on(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """One of three dies by SIGKILL at step 9; torchrun starts all again, and they go on from the checkpoint of step 8.
    The end is that of a run in which nobody died."""
    chosen = recipe("next-token")
    settings = [*PLAIN, *SIZES["next-token"], "run.steps=14", "run.save_every=4", "parallel.replicate=1"]
    train(chosen, tmp_path / "whole", 3, *settings)
    once = tmp_path / "died"
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(KILLER)
    extra = {"PYTHONPATH": f"{killer}:{environment()['PYTHONPATH']}", "KILL_ONCE": str(once), "KILL_AT": "9"}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "--max-restarts=1"),
        *("-m", "diptych", "train", str(chosen.path), "--out", str(tmp_path / "cut"), "--threads", "1", *settings),
    ]
    done = subprocess.run(command, env=environment() | extra, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert once.exists(), "nobody was killed"
    assert re.search(r"going on from step 8", done.stderr)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_copies_sum_gradients_that_only_some_of_them_have(tmp_path: Path) -> None:
    """The second of three parameters has one in the second process, the third has none in either."""
    script = tmp_path / "sums.py"
    script.write_text(SUMS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for reader in (0, 1):
        assert json.loads((tmp_path / f"{reader}.json").read_text()) == [[3.0, 3.0], [5.0, 5.0], None]


SUMS = """
import json
from pathlib import Path

import torch
from diptych.train.ranks import Ranks
from diptych.train.recipe import ParallelSettings

ranks = Ranks.join(ParallelSettings(replicate=2), torch.device("cpu"))
ones = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
ones[0].grad = torch.full((2,), 1.0 + ranks.reader)
if ranks.reader == 1:
    ones[1].grad = torch.full((2,), 5.0)
ranks.add_up(ones)
found = [None if one.grad is None else one.grad.tolist() for one in ones]
Path(f"{ranks.reader}.json").write_text(json.dumps(found))
ranks.leave()
"""

KILLER = f"""
import os, signal, sys
if os.environ.get("LOCAL_RANK") == "1":
    def watch(event, arguments):
        if event == "import" and arguments[0] == "diptych.train.loop":
            import diptych.train.step as step
            healthy = step.Stepper.__call__
            def deadly(self, parts, number, *others):
                if number == int(os.environ["KILL_AT"]) and not os.path.exists(os.environ["KILL_ONCE"]):
                    open(os.environ["KILL_ONCE"], "w").close()
                    os.kill(os.getpid(), {int(signal.SIGKILL)})
                return healthy(self, parts, number, *others)
            step.Stepper.__call__ = deadly
    sys.addaudithook(watch)
"""


# ---- the layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "on", "full"),
    [
        (ParallelSettings(), "cpu", (8, 1, 1)),
        (ParallelSettings(), "cuda", (1, 8, 1)),
        (ParallelSettings(replicate=1), "cpu", (1, 8, 1)),
        (ParallelSettings(replicate=2), "cpu", (2, 4, 1)),
        (ParallelSettings(shard=2), "cuda", (4, 2, 1)),
        (ParallelSettings(shard=1), "cuda", (8, 1, 1)),
        (ParallelSettings(tensor=2), "cpu", (1, 4, 2)),
        (ParallelSettings(tensor=8), "cpu", (1, 1, 8)),
    ],
)
def test_what_is_not_set_fills_the_processes(settings: ParallelSettings, on: str, full: tuple[int, int, int]) -> None:
    """Where nothing is, CPUs have a copy each and GPUs share one; what divides matrices shards as well."""
    assert settings.filled(8, on) == ParallelSettings(*full)
    assert ParallelSettings().filled(1, on) == ParallelSettings(1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "processes", "said"),
    [
        (ParallelSettings(replicate=2), 1, "2 processes, and there is 1; start the run with torchrun"),
        (ParallelSettings(shard=3, tensor=2), 4, "replicate 1 x shard 3 x tensor 2 is 6 processes, and there are 4"),
    ],
)
def test_a_layout_that_does_not_fill_the_processes_is_refused(
    settings: ParallelSettings, processes: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        settings.filled(processes, "cpu")


def test_several_processes_are_refused_before_they_start_where_there_is_no_room(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    chosen = recipe("next-token")
    with pytest.raises(AssertionError, match=r"not enough memory: each process needs about .* are free for it"):
        train(chosen, tmp_path / "run", 2, *PLAIN, "run.steps=2", "model.overrides.hidden=2000000000")
    assert not (tmp_path / "run").exists()


def test_heads_that_do_not_divide_are_refused(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    chosen = recipe("next-token")  # one key-value head
    with pytest.raises(AssertionError, match=r"tensor = 2 does not divide the 1 key-value heads of blocks\.0"):
        train(chosen, tmp_path / "run", 2, *PLAIN, "run.steps=2", "parallel.tensor=2")
