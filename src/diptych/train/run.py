"""The run directory: what a training run leaves behind, and what it resumes from.

recipe.json          the resolved recipe, versions, git state, machine
metrics.jsonl        one line a log point
checkpoints/step-…/  weights, average, optimizer (a folder of safetensors each) and state.json
samples/             what the model made on the way
snapshots/           averages, to choose a length of when training is over
refused/             batches of steps whose loss or gradient was not finite
best/                the model of the best validation
model/               the finished checkpoint
"""

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diptych import __version__
from diptych.core.files import put_in_place, write_atomically
from diptych.train.ranks import Ranks
from diptych.train.recipe import Recipe
from diptych.train.sharded import Tensors, read_tensors, write_tensors


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.snapshots = path / "snapshots"
        self.refused = path / "refused"
        self.best = path / "best"
        self.model = path / "model"
        self.metrics = path / "metrics.jsonl"

    def prepare(self, recipe: Recipe) -> None:
        """Create the directory and write down what is about to run.

        Raises:
            ValueError: the directory holds a run of another objective, model, data or kind of optimizer.
        """
        self.samples.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        for unfinished in self.checkpoints.glob(".*.part"):  # of a start that was killed in writing it
            shutil.rmtree(unfinished, ignore_errors=True)
        about = {"recipe": recipe.resolved(), "made_with": surroundings()}
        kept = self.path / "recipe.json"
        if kept.is_file() and self.steps():
            before = json.loads(kept.read_text())["recipe"]
            for part, now in _identity(about["recipe"]).items():
                if _identity(before)[part] != now:
                    raise ValueError(
                        f"'{self.path}' holds a run with another {part}; "
                        "choose another --out or start over with --fresh"
                    )
        write_atomically(kept, (json.dumps(about, indent=2) + "\n").encode())

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        found = self.checkpoints.glob("step-*/state.json") if self.checkpoints.is_dir() else []
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)

    def log(self, line: dict[str, Any]) -> None:
        with _room(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics and snapshots of steps past `step`: the resumed run makes them again."""
        for path in self.snapshots.glob("step-*.safetensors"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):
                continue  # a line torn by a kill
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def save(self, step: int, parts: dict[str, Tensors], numbers: dict[str, Any], ranks: Ranks) -> None:
        """Write checkpoint `step`, whole or not at all. Every process writes what it holds, so that any number of
        processes can read it (`sharded`).

        Raises:
            ValueError: it cannot be written; the checkpoints before it stay.
        """
        place = self._checkpoint(step)
        unfinished = self.checkpoints / f".{place.name}.part"
        with _room(place):
            if ranks.is_first:
                unfinished.mkdir()
            ranks.wait()
            for name, tensors in parts.items():
                write_tensors(tensors, unfinished / name, ranks)
            if ranks.is_first:
                (unfinished / "state.json").write_text(json.dumps({"step": step, **numbers}))
                put_in_place(unfinished, place)
        ranks.wait()

    def parts(self, step: int) -> set[str]:
        """What the checkpoint of `step` keeps."""
        return {path.name for path in self._checkpoint(step).iterdir() if path.is_dir()}

    def load(self, step: int, parts: dict[str, Tensors]) -> dict[str, Any]:
        """Read these parts of a checkpoint into the tensors given, and the numbers beside them."""
        place = self._checkpoint(step)
        for name, tensors in parts.items():
            read_tensors(tensors, place / name)
        numbers: dict[str, Any] = json.loads((place / "state.json").read_text())
        return numbers

    def thin(self, keep: int, keep_every: int) -> None:
        """Remove checkpoints but for the newest `keep` and those at multiples of `keep_every` (0 is none)."""
        for step in self.steps()[:-keep]:
            if not (keep_every and step % keep_every == 0):
                shutil.rmtree(self._checkpoint(step), ignore_errors=True)

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """What the disk refuses is said in one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"'{path}' cannot be written: {error.strerror or error}; earlier checkpoints stay") from error


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    """What must stay for a run to go on: the rest (steps, rates, intervals) may change on the way."""
    return {
        "run.objective": recipe["run"]["objective"],
        "optimizer.name": recipe["optimizer"]["name"],
        "[model]": recipe.get("model"),
        "[data]": recipe.get("data"),
        "[adapter]": recipe.get("adapter"),
    }


def surroundings() -> dict[str, Any]:
    """What else a run depends on: versions, processor, threads, git state where there is one."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except FileNotFoundError:
        commit = changed = None
    return {
        "diptych": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "git_commit": commit,
        "git_is_clean": None if changed is None else not changed,
    }
