"""The run directory: what a training run leaves behind, and what it resumes from.

recipe.json          the resolved recipe, versions, git state, machine
metrics.jsonl        one line a log point
checkpoints/step-…/  weights, average, optimizer (safetensors) and state.json
samples/             what the model made on the way
model/               the finished checkpoint
"""

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych import __version__
from diptych.core.files import atomic_directory, write_atomically
from diptych.train.recipe import Recipe

Tensors = dict[str, Tensor]


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.model = path / "model"
        self.metrics = path / "metrics.jsonl"

    def prepare(self, recipe: Recipe) -> None:
        """Create the directory and write down what is about to run.

        Raises:
            ValueError: the directory holds a run of another objective, model, data or kind of optimizer.
        """
        self.samples.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
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
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps past `step`: the resumed run makes them again."""
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

    def save(self, step: int, parts: dict[str, Tensors], state: dict[str, Any], keep: int) -> None:
        """Write checkpoint `step` whole, then thin out the old ones."""
        with atomic_directory(self.checkpoints / f"step-{step:08d}") as temporary:
            for name, tensors in parts.items():
                save_file(
                    {key: value.detach().contiguous() for key, value in tensors.items()},
                    temporary / f"{name}.safetensors",
                )
            (temporary / "state.json").write_text(json.dumps({"step": step, **state}))
        for old in self.steps()[:-keep]:
            shutil.rmtree(self.checkpoints / f"step-{old:08d}", ignore_errors=True)

    def load(self, step: int) -> tuple[dict[str, Tensors], dict[str, Any]]:
        folder = self.checkpoints / f"step-{step:08d}"
        parts = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
        return parts, json.loads((folder / "state.json").read_text())


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    """What must stay for a run to go on: the rest (steps, rates, intervals) may change on the way."""
    return {
        "run.objective": recipe["run"]["objective"],
        "optimizer.name": recipe["optimizer"]["name"],
        "[model]": recipe.get("model"),
        "[data]": recipe.get("data"),
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


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> Tensors:
    """The state of several optimizers as one flat dict: "<optimizer>.<parameter>.<name>"."""
    flat: Tensors = {}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                flat[f"{number}.{index}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return flat


def restore_optimizers(optimizers: list[torch.optim.Optimizer], flat: Tensors) -> None:
    """Give the optimizers back what `optimizer_tensors` took.

    A moment takes its parameter's layout in memory: fused AdamW walks both in memory's order, not by index, and a file
    keeps every tensor in plain order.
    """
    parameters = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in flat.items():
        number, index, name = key.split(".", 2)
        like = parameters[int(number)][int(index)]
        laid_out = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value
        states[int(number)].setdefault(int(index), {})[name] = laid_out
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Average:
    """Exponential moving average of a model's weights, with a short memory at the start (as in TensorFlow's EMA)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value.detach(), 1 - keep)
            else:
                self.weights[name].copy_(value)
