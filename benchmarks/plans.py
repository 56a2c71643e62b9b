"""Plans beside runs: what `diptych plan` says of each recipe, and what `diptych train` then takes.

    DIPTYCH_DATA=... python benchmarks/plans.py [RECIPE ...]

Each recipe is planned whole, and run for `--steps` steps with a validation in the middle and all that comes at the end,
each in a process of its own. Memory is the most that the process held (VmHWM). Time is that of the whole recipe: the
median step and the validation of the short run as often as the recipe asks for them, and once the rest of the short
run: starting, samples, a checkpoint, the finished model. The data are made before. A recipe that goes on from another
one starts from a bundled model instead, or from the short run of that other one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diptych.train.recipe import read_recipe

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
BRUSH = HERE.parent / "src" / "diptych" / "models" / "brush"
PAINTER = ("run.init_from=brush", f"data.autoencoder={BRUSH}")
INSTEAD = {  # of the models that other runs make
    "brush-decoder": ("run.init_from=brush",),
    "brush-draft": PAINTER[1:],
    "brush-weighted": PAINTER,
    "brush": PAINTER,
    "quill": ("run.init_from=quill",),
    "passkey-long": ("run.init_from=passkey/model",),  # in the folder of all runs
}
PASSKEY_FIRST = sorted(RECIPES.glob("*.toml"), key=lambda path: path.stem)  # passkey-long goes on from it
ALL = [*PASSKEY_FIRST, HERE / "recipes" / "adapter.toml"]
# The data of a recipe, made where they are not in the cache.
MADE = (
    "import sys; from pathlib import Path; from diptych.train.recipe import read_recipe\n"
    "from diptych.train.tasks import build\n"
    "if __name__ == '__main__':\n"
    "    build(read_recipe(Path(sys.argv[1]), sys.argv[2:]))\n"
)
# A run that says what it held.
RUN = (
    "import sys; from diptych.cli import main; from diptych.train.meter import most_held\n"
    "if __name__ == '__main__':\n"
    "    status = main(sys.argv[1:]); print(most_held()); sys.exit(status)\n"
)


@dataclass(frozen=True)
class Taken:
    """What a short run took: bytes, and seconds of a step, of a validation, and of all that comes once."""

    memory: int
    step: float
    validation: float
    once: float


def script(folder: Path, name: str, code: str) -> None:
    (folder / name).write_text(code, encoding="utf-8")


def planned(recipe: Path, folder: Path, threads: int) -> dict[str, Any]:
    """What the plan says; in `folder`, in which the models lie that other runs have made."""
    command = [sys.executable, "-m", "diptych", "plan", str(recipe), *INSTEAD.get(recipe.stem, ()), "--json"]
    found = subprocess.run(
        [*command, "--threads", str(threads)], check=True, cwd=folder, capture_output=True, text=True
    )
    plan: dict[str, Any] = json.loads(found.stdout)
    return plan


def taken(recipe: Path, folder: Path, steps: int, threads: int) -> Taken:
    """What a run of `steps` steps takes, whose model lies in `folder` afterwards."""
    run = folder / recipe.stem
    changes = [f"run.steps={steps}", f"run.validate_every={steps // 2}", "run.log_every=1", "run.save_every=0"]
    if "sample_every = 0" not in recipe.read_text(encoding="utf-8"):
        changes.append(f"run.sample_every={steps}")
    script(folder, "run.py", RUN)
    command = [sys.executable, "run.py", "train", str(recipe), *INSTEAD.get(recipe.stem, ()), *changes]
    command += ["--out", str(run), "--threads", str(threads), "--fresh"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True)
    whole = time.perf_counter() - started
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = {line["step"]: line["seconds"] for line in lines if "loss" in line}
    both = {step: ends[step] - ends[step - 1] for step in ends if step - 1 in ends}
    validated = both.pop(steps // 2 + 1)  # it came before that step
    step = statistics.median(list(both.values())[1:])
    validation = validated - step
    return Taken(int(done.stdout.split()[-1]), step, validation, whole - steps * step - 2 * validation)


def compare(recipes: list[Path], folder: Path, steps: int, threads: int) -> Iterator[str]:
    """The rows of the table."""
    for recipe in recipes:
        read = read_recipe(recipe, list(INSTEAD.get(recipe.stem, ())))
        script(folder, "data.py", MADE)
        subprocess.run([sys.executable, "data.py", str(recipe), *INSTEAD.get(recipe.stem, ())], check=True, cwd=folder)
        plan, run = planned(recipe, folder, threads), taken(recipe, folder, steps, threads)
        every = read.run.validate_every
        validations = -(-read.run.steps // every) if every else 1
        seconds = run.once + read.run.steps * run.step + validations * run.validation
        yield (
            f"| {recipe.stem} | {sum(plan['memory'].values()) / 2**20:,.0f} | {run.memory / 2**20:,.0f} | "
            f"{sum(plan['memory'].values()) / run.memory - 1:+.1%} | {plan['step_seconds']:.3f} | {run.step:.3f} | "
            f"{plan['validating']:.1f} | {run.validation:.1f} | {plan['seconds'] / 60:,.1f} | {seconds / 60:,.1f} | "
            f"{plan['seconds'] / seconds - 1:+.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=lambda name: Path(name).resolve(strict=True), default=ALL)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=lambda name: Path(name).resolve(), help="keeps the runs")
    options = parser.parse_args()
    print(
        "| recipe | plan, MiB | run | off | plan, s a step | run | plan, s a validation | run | plan, min | run | off |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for row in compare(options.recipes, folder, options.steps, options.threads):
            print(row, flush=True)


if __name__ == "__main__":
    main()
