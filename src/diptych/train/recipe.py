"""A recipe: a TOML file that describes a training run, complete, and is checked before anything starts.

`[run]` and `[optimizer]` are the same for every objective; `[model]` and `[data]` belong to the objective, whose task
reads them with `Recipe.section`. A key that nobody knows is an error with its line and the nearest right key.
"""

import math
import tomllib
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from diptych.core.checks import typed
from diptych.core.randomness import LARGEST_SEED
from diptych.core.spelling import nearest
from diptych.train.dial import derive, follows

SectionT = TypeVar("SectionT")
SECTIONS = ("run", "model", "data", "optimizer", "parallel", "adapter")


@dataclass(frozen=True)
class RunSettings:
    """[run]: what is trained and for how long.

    Args:
        objective: the kind of training, one of `tasks.TASKS`.
        steps: optimizer steps in all.
        batch: documents' rows or pictures in one step, over all parts and processes; `model.depth` derives it where it
            is left out.
        accumulate: parts that a process works through one after the other in one step; the result is that of one.
        seed: of the initial weights, the order of the data and every draw.
        validate_every, sample_every, save_every: steps between; 0 is never (the end always validates and saves).
        log_every: steps between lines of metrics.
        average: decay of the exponential moving average of the weights that validation, samples and the finished
            model use; 0 is no average.
        snapshot_every: steps between snapshots of two power averages, from which an average of any length can be put
            together when training is over (`diptych runs average`); 0 makes none.
        keep: checkpoints kept, the newest.
        keep_every: checkpoints at multiples of this are kept, too; 0 is none.
        keep_best: whether the model of the best validation is kept as `best/`.
        workers: processes that read data ahead; 0 reads between steps.
        recompute: activations inside blocks are computed again in the backward pass instead of kept (activation
            checkpointing: Chen et al. 2016).
        tensorboard: whether figures and samples are also written for TensorBoard; needs `diptych[train]`.
        compile: blocks are compiled (`torch.compile`).
        graphs: on a CUDA device, in one process, the operations of a step are launched as one (see `core.graphs`).
        init_from: a bundled model or a finished checkpoint directory whose weights (and tokenizer) the run starts
            from; "" starts from random weights.
    """

    objective: str
    steps: int
    batch: int
    accumulate: int = 1
    seed: int = 1
    validate_every: int = 500
    sample_every: int = 500
    save_every: int = 500
    log_every: int = 10
    average: float = 0.999
    snapshot_every: int = 0
    keep: int = 2
    keep_every: int = 0
    keep_best: bool = False
    workers: int = 1
    recompute: bool = False
    compile: bool = False
    graphs: bool = True
    tensorboard: bool = False
    init_from: str = ""

    @property
    def records(self) -> bool:
        """Whether steps may be recorded: recomputation brings randomness back on the host."""
        return self.graphs and not self.recompute

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("validate_every", "sample_every", "save_every", "snapshot_every", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name} must be 0 (never) or more, not {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"run.workers must be 0 or more, not {self.workers}")
        if self.batch % self.accumulate:
            raise ValueError(f"run.batch ({self.batch}) must be a multiple of run.accumulate ({self.accumulate})")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"run.seed must be a whole number from 0 to {LARGEST_SEED}, not {self.seed}")
        if not 0 <= self.average < 1:
            raise ValueError(f"run.average must be at least 0 and below 1, not {self.average}")


@dataclass(frozen=True)
class OptimizerSettings:
    """[optimizer]: how the weights move.

    Args:
        name: "adamw" for everything, or "muon" for the matrices of hidden layers (Jordan et al. 2024, update scaled to
            AdamW's as in Liu et al. 2025) with AdamW for the rest.
        learning_rate: at the plateau; `model.depth` derives it where it is left out.
        weight_decay: on matrices and kernels only, decoupled.
        beta1, beta2: AdamW's.
        clip: largest gradient norm; 0 is no clipping.
        warmup: steps of linear warm-up.
        decay: the last share of the run over which the learning rate falls to `final` of the plateau (warm-up, stable,
            decay: Hu et al. 2024); 1.0 falls from the end of the warm-up on.
        shape: of the fall, "linear" or "cosine".
        final: share of the learning rate at the end.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0
    warmup: int = 100
    decay: float = 0.3
    shape: str = "linear"
    final: float = 0.0

    def __post_init__(self) -> None:
        allowed = {"name": ("adamw", "muon"), "shape": ("linear", "cosine")}
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise ValueError(f"optimizer.{name} must be one of {', '.join(words)}, not '{getattr(self, name)}'")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"optimizer.learning_rate must be a finite number > 0, not {self.learning_rate}")
        for name in ("weight_decay", "clip", "warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimizer.{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must be at least 0 and below 1, not {getattr(self, name)}")
        for name in ("decay", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name} must be from 0 to 1, not {getattr(self, name)}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        start = max(self.warmup, round(steps * (1 - self.decay)))
        through = 0.0 if step < start else (step - start + 1) / max(1, steps - start)
        fall = through if self.shape == "linear" else (1 - math.cos(math.pi * through)) / 2
        return self.learning_rate * warm * (1 - (1 - self.final) * fall)


@dataclass(frozen=True)
class ParallelSettings:
    """[parallel]: how a model is laid over the processes that torchrun starts; their product is the number of them.

    Args:
        replicate: whole copies of the model, each with other rows; 0 is all processes that are left.
        shard: processes that share the weights of a copy and read other rows (FSDP2); 0 is all that are left.
        tensor: processes that divide each matrix of the transformer blocks and read the same rows.
    """

    replicate: int = 0
    shard: int = 0
    tensor: int = 1

    def __post_init__(self) -> None:
        for name, least in (("replicate", 0), ("shard", 0), ("tensor", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"parallel.{name} must be at least {least}, not {getattr(self, name)}")

    def filled(self, processes: int, on: str) -> "ParallelSettings":
        """The same with `replicate` and `shard` worked out. Where neither is set, processes on CPUs have a copy each,
        as long as nothing divides their matrices, and processes on GPUs share one: what either is quicker at.

        Args:
            on: torch's type of device.

        Raises:
            ValueError: where the layout does not fill the processes.
        """
        replicate, shard = self.replicate, self.shard
        if not replicate and not shard:
            replicate, shard = (0, 1) if on == "cpu" and self.tensor == 1 else (1, 0)
        left = max(1, processes // ((replicate or shard) * self.tensor))
        full = ParallelSettings(replicate or left, shard or left, self.tensor)
        if full.processes != processes:
            raise ValueError(
                f"[parallel] replicate {full.replicate} x shard {full.shard} x tensor {full.tensor} is "
                f"{full.processes} processes, and there {'is' if processes == 1 else 'are'} "
                f"{processes}; start the run with torchrun --nproc-per-node, or change [parallel]"
            )
        return full

    @property
    def readers(self) -> int:
        """How many parts the rows of a step are divided into: ranks of one tensor-parallel group read the same."""
        return self.replicate * self.shard

    @property
    def processes(self) -> int:
        return self.readers * self.tensor


ONE_PROCESS = ParallelSettings(1, 1, 1)


@dataclass(frozen=True)
class Recipe:
    path: Path
    text: str
    run: RunSettings
    optimizer: OptimizerSettings
    parallel: ParallelSettings
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()  # "section.key=value", of the command line
    derived: frozenset[str] = frozenset()  # "section.key" of what follows from `model.depth`

    @property
    def name(self) -> str:
        return self.path.stem

    def section(self, name: str, cls: type[SectionT]) -> SectionT:
        """One section as the dataclass `cls`: unknown keys, missing keys and wrong types are named with their line."""
        return _fill(cls, name, self.tables.get(name, {}), self.path, self.text)

    def sizes(self, name: str, cls: type) -> dict[str, Any]:
        """What a table inside a section ("model.unet") sets of the dataclass `cls`, each key known and of its type."""
        table: Any = self.tables
        for part in name.split("."):
            table = table.get(part, {})
        return _typed_table(cls, name, table, self.path, self.text)

    def where(self, section: str, key: str | None = None) -> str:
        """The place of a key for a message: the file, and the line or at least the section."""
        return _where(self.path, self.text, section, key)

    def origin(self, section: str, key: str) -> str:
        """Where a value came from: "recipe, line 12", "command line", "derived from depth" or "default".

        Args:
            section: with dots where a table lies in a table, as "model.unet".
        """
        name = f"{section}.{key}"
        for override in reversed(self.overrides):
            changed = override.partition("=")[0]
            if name == changed or name.startswith(f"{changed}."):
                return "command line"
        if name in self.derived:
            return "derived from depth"
        table: Any = self.tables
        for part in section.split("."):
            table = table.get(part, {})
        if key not in table:
            return "default"
        line = _line(self.text, key, section)
        while line is None and "." in section:  # { a table in a line }
            section, _, key = section.rpartition(".")
            line = _line(self.text, key, section)
        return f"recipe, line {line}" if line else "recipe"

    @contextmanager
    def checking(self, section: str, key: str | None = None) -> Iterator[None]:
        """What turns out to be wrong inside is said with its place in the recipe."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.where(section, key)}: {error}") from error

    def resolved(self) -> dict[str, Any]:
        """Everything that the run will use and that the file may have left out; JSON values."""
        return {
            "run": vars(self.run) | {},
            "optimizer": vars(self.optimizer) | {},
            "parallel": vars(self.parallel) | {},
            **{name: table for name, table in self.tables.items() if name in ("model", "data", "adapter")},
        }


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe; `overrides` are "section.key=value" with TOML values.

    Raises:
        ValueError: in one line with the file, the line number and the nearest right key.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no recipe at '{path}'")
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    for name, table in tables.items():
        line = _line(text, name)
        place = f"{path}, line {line}" if line else f"{path}"
        if name not in SECTIONS:
            raise ValueError(f"{place}: unknown section [{name}]{_hint(name, SECTIONS)}")
        if not isinstance(table, dict):
            raise ValueError(f"{place}: '{name}' must be a section, [{name}]")
    for override in overrides or []:
        _override(tables, override)
    derived = derive(tables)
    for key, value in derived.items():
        _set(tables, key.split("."), value)
    return Recipe(
        path,
        text,
        _fill(RunSettings, "run", tables.get("run", {}), path, text),
        _fill(OptimizerSettings, "optimizer", tables.get("optimizer", {}), path, text),
        _fill(ParallelSettings, "parallel", tables.get("parallel", {}), path, text),
        tables,
        tuple(overrides or ()),
        follows(tables) | frozenset(derived),
    )


def _override(tables: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *sections, name = key.split(".")
    if not equals or not sections or not name:
        raise ValueError(f"'{override}' must be section.key=value, for example run.steps=100")
    if sections[0] not in SECTIONS:
        raise ValueError(f"'{override}': unknown section '{sections[0]}'{_hint(sections[0], SECTIONS)}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    try:
        _set(tables, [*sections, name], parsed)
    except ValueError as error:
        raise ValueError(f"'{override}': {error}") from error


def _set(tables: dict[str, Any], path: list[str], value: Any) -> None:
    table = tables
    for section in path[:-1]:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ValueError(f"'{section}' is a setting, not a section")
    table[path[-1]] = value


def _typed_table(cls: type, section: str, table: Any, path: Path, text: str) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    known = [entry.name for entry in fields(cls)]
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = _where(path, text, section, key)
        if key not in known:
            raise ValueError(f"{where}: unknown key '{key}' in [{section}]{_hint(key, known)}")
        tables = [kind for kind in (hints[key], *typing.get_args(hints[key])) if is_dataclass(kind)]
        if tables and isinstance(value, dict):
            values[key] = _fill(tables[0], f"{section}.{key}", value, path, text)  # type: ignore[arg-type]
        else:
            values[key] = typed(value, hints[key], f"{where}: {section}.{key}")
    return values


def _fill(cls: type[SectionT], section: str, table: dict[str, Any], path: Path, text: str) -> SectionT:
    values = _typed_table(cls, section, table, path, text)
    known = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
    for key, entry in known.items():
        if key not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{path}: [{section}] lacks '{key}'")
    try:
        return cls(**values)
    except ValueError as error:
        named = next((key for key in known if f".{key} " in str(error) or str(error).startswith(f"{key} ")), None)
        raise ValueError(f"{_where(path, text, section, named)}: {error}") from error


def _hint(word: str, known: Any) -> str:
    guess = nearest(word, known)
    return f"; did you mean '{guess}'?" if guess else f"; known: {', '.join(known)}"


def _where(path: Path, text: str, section: str, key: str | None) -> str:
    line = _line(text, key, section) if key else None
    return f"{path}, line {line}" if line else f"{path}, [{section}]"


def _line(text: str, key: str, section: str | None = None) -> int | None:
    """The number of the line that sets `key`, or opens the section `key`; None when it came from elsewhere."""
    current = None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped.strip("[] ").split("#")[0].strip().strip("]")
            if section is None and current == key:
                return number
        elif section == current and stripped.partition("=")[0].strip().strip("\"'") == key:
            return number
    return None
