"""What a run directory tells of its run: how far it came, in what state it is, what its figures were.

Everything here only reads, and a directory may be anything: of a run that is going on, was killed in the middle of a
line, or was damaged since. What cannot be read is named in `Run.troubles`; the rest is still told.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

PARTS = ("recipe.json", "metrics.jsonl", "checkpoints", "samples", "model")
VALIDATION = "validation/"
QUIET = 120.0  # seconds without a new line after which a run is taken for stopped, at least
LARGER_IS_BETTER = re.compile(r"psnr|accuracy|right|share|score|reward|^(animal|worn|place|time|style|mean)(_|$)")

Line = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One run, as its directory tells it.

    Args:
        lines: of metrics.jsonl, in order: figures by name, each line with its "step"; only finite numbers.
        recipe: the resolved tables; empty when recipe.json cannot be read.
        made_with: versions and machine.
        state: "finished", "running?" (its files changed a moment ago), "stopped", or "damaged".
        troubles: what is wrong with the directory, each in one line.
        size: bytes on disk.
        changed: when it was last written to, in seconds since 1970.
    """

    path: Path
    lines: tuple[Line, ...]
    recipe: dict[str, Any]
    made_with: dict[str, Any]
    state: str
    troubles: tuple[str, ...]
    size: int
    changed: float

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def objective(self) -> str | None:
        objective: str | None = _setting(self.recipe, "run", "objective", str)
        return objective

    @property
    def steps(self) -> int | None:
        """Steps that the recipe asks for."""
        steps: int | None = _setting(self.recipe, "run", "steps", int)
        return steps

    @property
    def step(self) -> int:
        """The last step that the run tells of."""
        return max([*checkpoints(self.path), *(int(line["step"]) for line in self.lines[-1:])], default=0)

    @property
    def seconds(self) -> float | None:
        """Time spent on training, over all parts of the run."""
        points = self.points("seconds")
        return points[-1][1] if points else None

    @property
    def validation_names(self) -> list[str]:
        """The figures of its validations, without "validation/", in the order in which they are written."""
        names = dict.fromkeys(name for line in self.lines for name in line if name.startswith(VALIDATION))
        return [name.removeprefix(VALIDATION) for name in names]

    def points(self, name: str, by: str = "step") -> list[tuple[float, float]]:
        """(place, value) of one figure; `by` is what the place counts: a figure of the training lines, or "step".

        A validation's line names only its step: its place is that of the last training line before it.
        """
        points, place = [], None
        for line in self.lines:
            place = line.get(by, place)
            if name in line and place is not None:
                points.append((place, line[name]))
        return points

    def last(self, name: str) -> float | None:
        points = self.points(name)
        return points[-1][1] if points else None

    def best(self, name: str) -> tuple[int, float] | None:
        """(step, value) of the best of a figure's values, the first of equals."""
        points = self.points(name)
        if not points:
            return None
        better = max if is_larger_better(name) else min
        step, value = better(points, key=lambda point: point[1])
        return int(step), value

    @property
    def loss(self) -> float | None:
        """The training loss at the end, smoothed: single batches differ too much to be compared."""
        values = smoothed([value for _, value in self.points("loss")])
        return values[-1] if values else None


def is_larger_better(name: str) -> bool:
    """Whether a figure of this name is better when it is larger; losses, errors, distances and bits are not."""
    return LARGER_IS_BETTER.search(name.removeprefix(VALIDATION).partition("/")[0]) is not None


def smoothed(values: list[float]) -> list[float]:
    """Averages over neighbours, weighted by exp(-distance), about a hundredth of all values wide on either side.

    Both sides count alike, so that the curve does not lag behind a loss that falls; at its end there is only the past,
    and the last value is the exponential moving average, corrected as Adam's moments are (Kingma & Ba 2015, section 3).
    """
    keep = 1 - 1 / max(1.0, len(values) / 100)
    before = _decayed(values, keep)
    after = _decayed(values[::-1], keep)[::-1]
    sides = zip(values, before, after, strict=True)
    return [(past + future - value) / (left + right - 1) for value, (past, left), (future, right) in sides]


def _decayed(values: list[float], keep: float) -> list[tuple[float, float]]:
    """(sum, sum of weights) of the values up to each one, those before it weighing less and less."""
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        result.append((total, weight))
    return result


def list_runs(folder: Path, now: float | None = None) -> list[Run]:
    """The runs below a folder, the one that was written to last first.

    A folder that holds something else is left out; an empty one is a run that did not begin.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}' with runs; 'diptych train RECIPE' makes the first one")
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    runs = [read_run(path, now) for path in inside if is_run(path)]
    return sorted(runs, key=lambda run: (-run.changed, run.name))


def is_run(path: Path) -> bool:
    """Whether a directory holds a part of a run, or nothing at all, or cannot be looked into."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return True
    return not names or not names.isdisjoint(PARTS)


def read_run(path: Path, now: float | None = None) -> Run:
    """Whatever can be read of a run directory.

    Args:
        now: seconds since 1970; the clock's unless given.

    Raises:
        ValueError: there is no such directory.
    """
    if not path.is_dir():
        raise ValueError(f"there is no run at '{path}'")
    troubles: list[str] = []
    about = _about(path / "recipe.json", troubles)
    lines = tuple(read_metrics(path / "metrics.jsonl", troubles))
    size, changed = _size_and_time(path, troubles)
    recipe = about.get("recipe", {})
    run = Run(path, lines, recipe, about.get("made_with", {}), "", tuple(troubles), size, changed)
    return replace(run, state=_state(run, time.time() if now is None else now))


def _state(run: Run, now: float) -> str:
    if not run.recipe or not run.objective or run.steps is None:
        return "damaged"
    if (run.path / "model" / "README.md").is_file() and run.step >= run.steps:
        return "finished"
    times = [place for place, _ in run.points("seconds", "seconds")]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    is_fresh = now - run.changed < max([QUIET, *(3 * pause for pause in pauses[-20:])])
    return "running?" if is_fresh else "stopped"


def _about(path: Path, troubles: list[str]) -> dict[str, Any]:
    """recipe.json, with "recipe" a table of tables."""
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        troubles.append("it has no recipe.json")
        return {}
    except OSError as error:
        troubles.append(f"recipe.json: {error.strerror}")
        return {}
    except (ValueError, RecursionError):
        troubles.append("recipe.json is not JSON")
        return {}
    recipe = about.get("recipe") if isinstance(about, dict) else None
    if not isinstance(recipe, dict) or not all(isinstance(table, dict) for table in recipe.values()):
        troubles.append("recipe.json holds no recipe")
        return {}
    for name, kind, words in (("objective", str, "a string"), ("steps", int, "a whole number")):
        if _setting(recipe, "run", name, kind) is None:
            troubles.append(f"recipe.json: run.{name} is not {words}")
    made_with = about.get("made_with")
    return {"recipe": recipe, "made_with": made_with if isinstance(made_with, dict) else {}}


def read_metrics(path: Path, troubles: list[str] | None = None) -> list[Line]:
    """The lines of metrics.jsonl that can be read.

    The last line may be torn, of a run that writes it now or was killed: it is left out without a word. Where steps go
    back, the run went on from an older checkpoint, and what came after that is left out.
    """
    troubles = [] if troubles is None else troubles
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        troubles.append(f"metrics.jsonl: {error.strerror}")
        return []
    lines: list[Line] = []
    wrong = []
    written = text.splitlines()
    for number, one in enumerate(written, 1):
        line = _line(one)
        if line is not None:
            while lines and lines[-1]["step"] > line["step"]:
                lines.pop()
            lines.append(line)
        elif one.strip() and (number < len(written) or text.endswith("\n")):
            wrong.append(number)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        troubles.append(f"metrics.jsonl: line {wrong[0]}{more} cannot be read")
    return lines


def _line(text: str) -> Line | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    line = {str(name): value for name, value in values.items() if _is_number(value)}
    step = line.get("step")
    return line if isinstance(step, int) and step >= 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _setting(recipe: dict[str, Any], section: str, name: str, kind: type) -> Any:
    value = recipe.get(section, {}).get(name)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def checkpoints(path: Path) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    found = (re.fullmatch(r"step-(\d+)", state.parent.name) for state in path.glob("checkpoints/step-*/state.json"))
    return sorted(int(match[1]) for match in found if match)


def samples(path: Path, ending: str) -> list[tuple[int, Path]]:
    """(step, file) of what a run sampled, in order of the steps; `path` is its folder of samples."""
    found = ((re.fullmatch(r"step-(\d+)", file.stem), file) for file in path.glob(f"step-*{ending}"))
    return sorted((int(match[1]), file) for match, file in found if match)


def _size_and_time(path: Path, troubles: list[str]) -> tuple[int, float]:
    """Bytes of all files, links not followed, and when the newest part changed; files may go while they are counted."""
    size, changed = 0, path.stat().st_mtime
    try:
        for entry in _files(path):
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            size, changed = size + facts.st_size, max(changed, facts.st_mtime)
    except OSError as error:
        troubles.append(f"'{error.filename}': {error.strerror}")
    return size, changed


def _files(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        else:
            yield entry


def differences(runs: list[Run]) -> list[tuple[str, list[Any]]]:
    """(setting, its value in each run) of the settings whose values differ; None where a recipe does not have it."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = ((name, [settings.get(name) for settings in flat]) for name in names)
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
