"""Kill a training run again and again, wherever it stands, and see whether it always comes to the same end.

    python benchmarks/kills.py --kills 200

A run of a small language model is started in a process of its own, which kills itself with SIGKILL at its n-th
operation on files (opening, renaming, making and removing: in the middle of a checkpoint as well as before and after),
n drawn anew each time. The same start is repeated until the run ends, then another run begins, until there were enough
kills. Every run must end with the weights, the optimizer state and the metrics of one that was never killed.
"""

import argparse
import json
import os
import random
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from diptych.train.loop import train
from diptych.train.recipe import Recipe, read_recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build

RECIPE = """
[run]
objective = "next-token"
steps = 24
batch = 2
average = 0.9
save_every = 3
validate_every = 8
sample_every = 0
snapshot_every = 6
log_every = 1
keep = 2
keep_best = true
workers = 0

[model]
depth = 1
context = 32
dropout = 0.1

[model.overrides]
width = 16
num_heads = 2
num_kv_heads = 1
head_dim = 8
hidden = 16

[data]
vocab_size = 270
validation_documents = 1
validation_share = 0.1

[data.mix]
"TALES" = 1.0

[optimizer]
name = "muon"
warmup = 2
"""
TIMED = ("speed", "seconds", "waited")
WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
FURTHEST = 500  # operations after which a start is killed at the latest


def start(recipe: Recipe, folder: Path, dies_at: int | None) -> bool:
    """One start of the run, in a process of its own. Whether it was killed."""
    child = os.fork()
    if child == 0:
        task = build(recipe)
        if dies_at is not None:
            left = dies_at

            def count(event: str, arguments: Any) -> None:
                nonlocal left
                if event in WATCHED:
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
        try:
            train(recipe, task, RunDirectory(folder), lambda progress: None, dtype="float32")
        except BaseException as error:
            print(f"a start failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"{folder} does not resume")
    return False


def ends_alike(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether two finished runs left the same numbers."""
    if _lines(one) != _lines(other) or one.steps() != other.steps():
        return False
    pairs = [(one.path / part, other.path / part) for part in ("model", "best", "snapshots")]
    pairs += [(one.checkpoints / f"step-{step:08d}", other.checkpoints / f"step-{step:08d}") for step in one.steps()]
    for left, right in pairs:
        names = sorted(path.relative_to(left) for path in left.rglob("*.safetensors"))
        if not names or names != sorted(path.relative_to(right) for path in right.rglob("*.safetensors")):
            return False
        for name in names:
            first, second = load_file(left / name), load_file(right / name)
            if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
                return False
    return True


def _lines(run: RunDirectory) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(chosen.seed)
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DIPTYCH_CACHE"] = name
        tales = [f"Tale {n}. " + "The fox ran to the sea, and the sea was cold. " * 6 for n in range(40)]
        (folder / "tales.txt").write_text("<|endoftext|>".join(tales))
        (folder / "tiny.toml").write_text(RECIPE.replace("TALES", str(folder / "tales.txt")))
        recipe = read_recipe(folder / "tiny.toml")
        start(recipe, folder / "straight", None)
        kills = runs = 0
        in_a_checkpoint = 0
        while kills < chosen.kills:
            runs += 1
            place = folder / f"run-{runs}"
            while start(recipe, place, draw.randrange(FURTHEST)):
                kills += 1
                in_a_checkpoint += bool(list((place / "checkpoints").glob(".*.part")))
            if not ends_alike(RunDirectory(folder / "straight"), RunDirectory(place)):
                raise SystemExit(f"run {runs} came to another end")
    print(f"{kills} kills, {in_a_checkpoint} in the middle of a checkpoint, in {runs} runs: all came to the same end")


if __name__ == "__main__":
    main()
