"""The loop, on a task small enough to know what must come out: it learns, stops, goes on bit for bit, and refuses."""

import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.core.randomness import normal
from diptych.data.trouble import Trouble
from diptych.train.averages import synthesise
from diptych.train.card import About
from diptych.train.loop import Interrupted, Progress, train
from diptych.train.optimizers import make_optimizers
from diptych.train.recipe import OptimizerSettings, Recipe, read_recipe
from diptych.train.run import RunDirectory

TIMED = ("speed", "seconds", "waited")  # of a line of metrics: the only figures that may differ


class Points(NamedTuple):
    x: Tensor
    y: Tensor


class Lines:
    """A small network with dropout learns y = A x from fresh random x at every step, drawn by (seed, step).

    It is its own source, and what happens before a step happens when the step's batch is read.
    """

    unit = "points"
    is_splittable = True
    remarks = ()

    def __init__(self, recipe: Recipe, *, dropout: float = 0.2, is_channels_last: bool = False) -> None:
        self.recipe = recipe
        self.truth = normal((4, 2), seed=99)
        torch.manual_seed(recipe.run.seed)
        self.model: nn.Module = nn.Sequential(
            nn.Unflatten(1, (4, 1, 1)),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.Flatten(),
            nn.Linear(8, 16),
            nn.Dropout(dropout),
            nn.Linear(16, 2),
        )
        if is_channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step = 0  # whose batch was read last
        self.events: dict[int, Any] = {}  # step -> what happens before it
        self.broken: list[Trouble] = []
        self.saved: list[dict[str, Tensor]] = []

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model]

    @property
    def source(self) -> "Lines":
        return self

    def batch(self, step: int, rows: range) -> Points:
        self.step = step
        if step in self.events and rows.start == 0:
            self.events[step]()
        x = normal((self.recipe.run.batch, 4), seed=self.recipe.run.seed, step=step)[rows.start : rows.stop]
        return Points(x, x @ self.truth)

    def troubles(self) -> list[Trouble]:
        told, self.broken = self.broken, []
        return told

    def count(self, batch: Points) -> int:
        """Points of a positive first coordinate count alone, so the parts of a batch weigh differently."""
        return max(1, int((batch.x[:, 0] > 0).sum()))

    def loss(self, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        errors = (self.model(batch.x) - batch.y).square().mean(1) * (batch.x[:, 0] > 0)
        error = errors.sum() / self.count(batch)
        return error, {"root": error.detach().sqrt()}

    def rank(self, figures: dict[str, float]) -> float:
        return figures["error"]

    def validate(self) -> dict[str, float]:
        assert not self.model.training
        x = normal((64, 4), seed=7)
        return {"error": (self.model(x) - x @ self.truth).square().mean().item()}

    def sample(self, directory: Path, step: int) -> None:
        (directory / f"step-{step}.txt").write_text("sample")

    def about(self) -> About:
        return About("A line.", "points", "Drawn at random.", ("tinystories",), {"error": "of y"}, ("It is straight.",))

    def save(self, directory: Path, card: str) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "README.md").write_text(card)
        self.saved.append({name: value.clone() for name, value in self.model.state_dict().items()})


RECIPE = """
[run]
objective = "lines"
steps = 20
batch = 16
validate_every = 5
sample_every = 10
save_every = 4
average = 0.9
workers = 0

[model]
depth = 1

[optimizer]
learning_rate = 1e-2
warmup = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lines.toml").write_text(RECIPE)
    return tmp_path


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return read_recipe(folder / "lines.toml", list(overrides))


def run_of(folder: Path, name: str, *overrides: str, **settings: Any) -> tuple[Lines, RunDirectory, dict[str, float]]:
    """A run in `folder/name`, float32 wherever it runs."""
    recipe = recipe_of(folder, *overrides)
    task, run = Lines(recipe, **settings), RunDirectory(folder / name)
    return task, run, train(recipe, task, run, lambda progress: None, dtype="float32")


def kept(run: RunDirectory, step: int, part: str) -> dict[str, Tensor]:
    """A part of a checkpoint that one process wrote."""
    (file,) = (run.checkpoints / f"step-{step:08d}" / part).iterdir()
    return load_file(file)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(run: RunDirectory) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: figure for name, figure in line.items() if name not in TIMED} for line in lines]


def stopped_at(folder: Path, name: str, step: int, *overrides: str, **settings: Any) -> RunDirectory:
    """A run that is interrupted after `step` steps, as Ctrl-C does it."""
    recipe = recipe_of(folder, *overrides)
    task, run = Lines(recipe, **settings), RunDirectory(folder / name)
    task.events[step - 1] = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted, match=f"stopped at step {step}") as stopped:
        train(recipe, task, run, lambda progress: None, dtype="float32")
    assert stopped.value.step == step
    return run


def test_it_learns(folder: Path) -> None:
    told: list[Progress] = []
    recipe = recipe_of(folder, "run.steps=120", "optimizer.learning_rate=0.02")
    task, run = Lines(recipe, dropout=0.0), RunDirectory(folder / "run")
    figures = train(recipe, task, run, told.append, dtype="float32")
    assert figures["error"] < 0.02 * task.truth.square().sum(0).mean().item()
    assert [progress.step for progress in told] == list(range(1, 121))
    assert (told[-1].steps, told[-1].unit, told[-1].validation) == (120, "points", figures)
    assert told[-1].seconds_left == 0
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert losses[-1] < 0.05 * losses[0]
    assert json.loads((run.path / "recipe.json").read_text())["recipe"]["run"]["steps"] == 120
    assert sorted(path.name for path in run.samples.glob("step-*"))[:2] == ["step-10.txt", "step-100.txt"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder: Path, optimizer: str, is_channels_last: bool) -> None:
    """20 steps at once, and 12 with Ctrl-C, then the rest: the same weights, average, moments and metrics, with
    dropout, and whatever the weights' layout in memory."""
    overrides = (f"optimizer.name={optimizer}",)
    task, straight, figures = run_of(folder, "straight", *overrides, is_channels_last=is_channels_last)
    cut = stopped_at(folder, "cut", 12, *overrides, is_channels_last=is_channels_last)
    assert cut.steps()[-1] == 12
    resumed, _, again = run_of(folder, "cut", *overrides, is_channels_last=is_channels_last)
    assert again == figures
    for part in ("weights", "average", "optimizer"):
        first, second = (kept(run, 20, part) for run in (straight, cut))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), part
    assert all(torch.equal(task.saved[0][name], resumed.saved[0][name]) for name in task.saved[0])
    assert metrics(cut) == metrics(straight)
    assert [line["step"] for line in metrics(cut)] == [5, 10, 10, 15, 20, 20]


def test_the_finished_model_is_the_average(folder: Path) -> None:
    task, run, _ = run_of(folder, "run")
    average = kept(run, 20, "average")
    assert all(torch.equal(task.saved[0][name], average[name]) for name in average)
    assert not torch.equal(average["3.weight"], task.model.state_dict()["3.weight"])
    task, _, _ = run_of(folder, "plain", "run.average=0.0")
    assert torch.equal(task.saved[0]["3.weight"], task.model.state_dict()["3.weight"])


def test_an_average_switched_on_in_mid_run_begins_with_the_weights_as_they_are(folder: Path) -> None:
    run = stopped_at(folder, "run", 12, "run.average=0.0")
    weights = kept(run, 12, "weights")
    run_of(folder, "run", "run.average=0.5", "run.steps=13")
    now = kept(run, 13, "weights")
    average = kept(run, 13, "average")
    for name, value in average.items():
        assert torch.allclose(value, (weights[name] + now[name]) / 2, atol=1e-6), name


def test_a_run_that_is_done_only_saves_its_model_again(folder: Path) -> None:
    first, run, figures = run_of(folder, "run")
    before = metrics(run)
    second, _, again = run_of(folder, "run")
    assert again == figures
    assert metrics(run) == before
    assert all(torch.equal(first.saved[0][name], second.saved[0][name]) for name in first.saved[0])


def test_a_start_that_saved_nothing_leaves_no_metrics_behind(folder: Path) -> None:
    recipe = recipe_of(folder, "run.save_every=0")
    task = Lines(recipe)

    def die() -> None:
        raise RuntimeError("killed")

    task.events[15] = die
    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, task, RunDirectory(folder / "run"), lambda progress: None, dtype="float32")
    _, run, _ = run_of(folder, "run")
    assert [line["step"] for line in metrics(run)] == [5, 10, 10, 15, 20, 20]


def test_a_line_of_metrics_torn_by_a_kill_is_dropped(folder: Path) -> None:
    run = stopped_at(folder, "run", 12)
    with run.metrics.open("a") as file:
        file.write('{"step": 12, "lo')
    run_of(folder, "run")
    assert [line["step"] for line in metrics(run)] == [5, 10, 10, 15, 20, 20]


def test_a_checkpoint_without_its_state_does_not_count(folder: Path) -> None:
    """A kill in the middle of writing leaves the newest whole checkpoint to go on from, and the same end."""
    _, straight, figures = run_of(folder, "straight")
    run = stopped_at(folder, "run", 12)
    (run.checkpoints / "step-00000012/state.json").unlink()
    (run.checkpoints / ".step-00000016.part").mkdir()
    assert run.steps()[-1] == 8
    assert run_of(folder, "run")[2] == figures
    assert metrics(run) == metrics(straight)


def test_only_the_newest_checkpoints_are_kept(folder: Path) -> None:
    _, run, _ = run_of(folder, "run", "run.keep=3")
    assert run.steps() == [12, 16, 20]
    assert len(list(run.checkpoints.iterdir())) == 3


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.depth=2", r"\[model\]"),
        ("data.seed=3", r"\[data\]"),
        ("optimizer.name=muon", r"optimizer\.name"),
        ("run.objective=circles", r"run\.objective"),
    ],
)
def test_a_run_does_not_go_on_as_another_one(folder: Path, override: str, part: str) -> None:
    run = stopped_at(folder, "run", 12)
    before = (run.path / "recipe.json").read_text()
    with pytest.raises(ValueError, match=rf"run' holds a run with another {part}; choose another --out"):
        run_of(folder, "run", override)
    assert (run.path / "recipe.json").read_text() == before
    assert run.steps()[-1] == 12


def test_a_second_ctrl_c_stops_at_once_and_the_first_handler_comes_back(folder: Path) -> None:
    recipe = recipe_of(folder)
    task, run = Lines(recipe), RunDirectory(folder / "run")
    handler = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    task.events[9] = twice
    with pytest.raises(KeyboardInterrupt):
        train(recipe, task, run, lambda progress: None, dtype="float32")
    assert signal.getsignal(signal.SIGINT) is handler
    assert run.steps() == [4, 8]


def test_the_card_says_how_it_was_made(folder: Path) -> None:
    _, run, figures = run_of(folder, "run", "run.seed=5")
    card = (run.model / "README.md").read_text()
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == ["# lines", "## How it was made", "## Data and licences", "## Validation", "## Limits"]
    for fact in ("`lines.toml`", "20 of 16 points", "| seed | 5 |", "adamw", "0.01", torch.__version__, "CDLA-Sharing"):
        assert fact in card, fact
    assert f"| error | {figures['error']:.4g} | of y |" in card
    assert "- It is straight." in card
    assert str(folder) not in card


# ---- the learning rate -----------------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls() -> None:
    """By hand, of 10 steps: two of warm-up, a plateau of four, and four that fall in a straight line to a tenth."""
    settings = OptimizerSettings(learning_rate=2.0, warmup=2, decay=0.4, final=0.1)
    rates = [settings.rate(step, 10) for step in range(10)]
    assert rates == pytest.approx([1, 2, 2, 2, 2, 2, 1.55, 1.1, 0.65, 0.2])


def test_a_cosine_falls_from_the_end_of_the_warm_up() -> None:
    """By hand, of 6 steps: two of warm-up, then (1 + cos) / 2 at quarters of a half turn, to nothing."""
    settings = OptimizerSettings(learning_rate=1.0, warmup=2, decay=1.0, shape="cosine")
    half = math.sqrt(0.5)
    rates = [settings.rate(step, 6) for step in range(6)]
    assert rates == pytest.approx([0.5, 1, (1 + half) / 2, 0.5, (1 - half) / 2, 0])


def test_without_warm_up_and_fall_the_learning_rate_is_one_number() -> None:
    settings = OptimizerSettings(learning_rate=0.3, warmup=0, decay=0.0)
    assert {settings.rate(step, 7) for step in range(7)} == {0.3}


# ---- which weights move how ------------------------------------------------------------------------------------


def test_muon_moves_hidden_matrices_and_adamw_the_rest() -> None:
    """Only matrices and kernels decay; embeddings, gains and biases do not."""
    model = nn.ModuleDict({"words": nn.Embedding(5, 4), "hidden": nn.Linear(4, 4), "kernel": nn.Conv2d(4, 4, 3)})
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def groups(name: str) -> list[tuple[str, float, list[str]]]:
        optimizers = make_optimizers(model, OptimizerSettings(name=name, weight_decay=0.1), torch.float32)
        return [
            (type(optimizer).__name__, group["weight_decay"], [names[id(p)] for p in group["params"]])
            for optimizer in optimizers
            for group in optimizer.param_groups
        ]

    plain = ["words.weight", "hidden.bias", "kernel.bias"]
    assert groups("muon") == [
        ("AdamW", 0.1, ["kernel.weight"]),
        ("AdamW", 0.0, plain),
        ("Muon", 0.1, ["hidden.weight"]),
    ]
    assert groups("adamw") == [("AdamW", 0.1, ["hidden.weight", "kernel.weight"]), ("AdamW", 0.0, plain)]


# ---- steps that are refused ------------------------------------------------------------------------------------


def sick(task: Lines, steps: set[int], where: str, value: float) -> Lines:
    """The task with a loss, or a gradient, of `value` at these steps."""
    healthy = task.loss

    def loss(batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        mean, figures = healthy(batch)
        if task.step in steps and where == "loss":
            mean = mean * value
        elif task.step in steps:
            mean.register_hook(lambda gradient: gradient * value)
        return mean, figures

    task.loss = loss  # type: ignore[method-assign]
    return task


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_its_batch_is_kept(
    folder: Path, where: str, value: float
) -> None:
    recipe = recipe_of(folder, "run.save_every=1", "run.keep=20")
    task, run = sick(Lines(recipe), {9}, where, value), RunDirectory(folder / "run")
    train(recipe, task, run, lambda progress: None, dtype="float32")
    for part in ("weights", "average", "optimizer"):
        before, after, later = (kept(run, step, part) for step in (9, 10, 11))
        assert same(before, after), part
        assert not same(after, later), part
    batch = load_file(run.refused / "step-00000009-0.safetensors")
    assert torch.equal(batch["0/x"], task.batch(9, range(16)).x)
    (line,) = (line for line in metrics(run) if "refused" in line)
    assert line["step"] == 10
    assert line["refused"] == ("the loss" if where == "loss" else "gradient of 5.bias")


def test_three_refused_steps_in_a_row_stop_the_run_and_name_the_first_tensor(folder: Path) -> None:
    """Two apart from each other do not; the third in a row does, also when the run was stopped in between."""
    recipe = recipe_of(folder)
    task, run = Lines(recipe), RunDirectory(folder / "run")
    layer = task.model[3]  # type: ignore[index]
    layer.register_forward_hook(lambda module, inputs, output: output * math.inf if spoilt else None)
    spoilt: list[bool] = []
    task.events = {5: lambda: spoilt.append(True), 7: spoilt.clear, 12: lambda: spoilt.append(True)}
    with pytest.raises(ValueError, match=r"3 steps in a row .* step 14; first not finite: output of 3\. Its batch is"):
        train(recipe, task, run, lambda progress: None, dtype="float32")
    assert run.steps() == [8, 12]
    assert all(tensor.isfinite().all() for tensor in kept(run, 12, "weights").values())
    assert not run.model.exists()


def test_refused_steps_are_counted_across_a_stop(folder: Path) -> None:
    recipe = recipe_of(folder)
    task, run = sick(Lines(recipe), {8, 9, 10}, "loss", math.nan), RunDirectory(folder / "run")
    task.events[9] = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted):
        train(recipe, task, run, lambda progress: None, dtype="float32")
    with pytest.raises(ValueError, match="3 steps in a row"):
        train(recipe, sick(Lines(recipe), {10}, "loss", math.nan), run, lambda progress: None, dtype="float32")


# ---- what is kept ----------------------------------------------------------------------------------------------


def test_checkpoints_at_round_steps_are_kept(folder: Path) -> None:
    _, run, _ = run_of(folder, "run", "run.save_every=2", "run.keep=1", "run.keep_every=6")
    assert run.steps() == [6, 12, 18, 20]


def test_the_model_of_the_best_validation_is_kept(folder: Path) -> None:
    """Validation is told to be best at step 10 of 20: what is saved then stays."""
    recipe = recipe_of(folder, "run.keep_best=true", "run.average=0.0")
    task, run = Lines(recipe), RunDirectory(folder / "run")
    figures = iter([3.0, 1.0, 2.0, 1.5])
    task.validate = lambda: {"error": next(figures)}  # type: ignore[method-assign]
    train(recipe, task, run, lambda progress: None, dtype="float32")
    assert "| error | 1 |" in (run.best / "README.md").read_text()
    assert "| error | 1.5 |" in (run.model / "README.md").read_text()
    assert len(task.saved) == 3, "two bests and the finished model"


def test_an_average_of_any_length_can_be_chosen_when_the_run_is_over(folder: Path) -> None:
    """And a run that was stopped leaves the same snapshots."""
    _, straight, _ = run_of(folder, "straight", "run.snapshot_every=4")
    cut = stopped_at(folder, "cut", 10, "run.snapshot_every=4")
    run_of(folder, "cut", "run.snapshot_every=4")
    for length in (0.05, 0.15):
        assert same(synthesise(straight.snapshots, length), synthesise(cut.snapshots, length))
    assert len(list(cut.snapshots.iterdir())) == 5


@pytest.mark.parametrize("mean", ["compile", "recompute"])
def test_how_a_step_is_computed_changes_nothing(folder: Path, mean: str) -> None:
    """Compiled, and with activations computed again instead of kept, the run is the same run."""
    first, _, _ = run_of(folder, "plain", "run.average=0.0", dropout=0.0)
    second, _, _ = run_of(folder, mean, "run.average=0.0", f"run.{mean}=true", dropout=0.0)
    for name, value in first.saved[0].items():
        assert torch.allclose(value, second.saved[0][name], atol=1e-5), name


# ---- reading ---------------------------------------------------------------------------------------------------


def test_what_is_broken_is_counted_and_too_much_of_it_stops_the_run(folder: Path) -> None:
    recipe = recipe_of(folder)
    task, run = Lines(recipe), RunDirectory(folder / "run")

    def break_some(count: int) -> None:
        task.broken = [Trouble(f"line {n}", "torn") for n in range(count)]

    task.events = {3: lambda: break_some(2), 12: lambda: break_some(9)}
    with pytest.raises(ValueError, match=r"11 of 208 were broken, the last of them line 8: torn"):
        train(recipe, task, run, lambda progress: None, dtype="float32")
    assert [line["broken"] for line in metrics(run) if "broken" in line] == [2]
    assert run.steps() == [8, 12]


# ---- the disk --------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so_in_one_line(
    folder: Path, disk: Callable[[], AbstractContextManager[Callable[[], None]]]
) -> None:
    run = stopped_at(folder, "run", 8)
    before = kept(run, 8, "weights")
    recipe = recipe_of(folder)
    task = Lines(recipe)
    refused = pytest.raises(ValueError, match=r"step-00000012' cannot be written: File too large; earlier checkpoints")
    with disk() as fill, refused:
        task.events[11] = fill
        train(recipe, task, run, lambda progress: None, dtype="float32")
    assert run.steps() == [4, 8]
    assert same(kept(run, 8, "weights"), before)
    _, _, figures = run_of(folder, "run")
    assert figures == run_of(folder, "straight")[2]
    assert not list(run.checkpoints.glob(".*")), "the torn checkpoint is gone"
