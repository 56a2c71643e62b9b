"""Run directories written by hand: what is told of each, and that nothing a directory may hold is a traceback."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diptych.train.curves import panels
from diptych.train.history import (
    checkpoints,
    differences,
    is_larger_better,
    list_runs,
    read_metrics,
    read_run,
    smoothed,
)
from diptych.train.run import RunDirectory
from diptych.train.samples import page

NOW = 1_000_000.0


def write_run(
    path: Path,
    lines: list[dict[str, Any]],
    *,
    steps: int = 100,
    age: float = 1e5,
    is_finished: bool = False,
    **run: Any,
) -> Path:
    """A run directory whose files are `age` seconds old at NOW."""
    (path / "samples").mkdir(parents=True)
    recipe = {"run": {"objective": "lines", "steps": steps, "batch": 4, **run}, "optimizer": {"learning_rate": 0.1}}
    (path / "recipe.json").write_text(json.dumps({"recipe": recipe, "made_with": {"torch": "2"}}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if is_finished:
        (path / "model").mkdir()
        (path / "model/README.md").write_text("# a model")
    for place in [*path.rglob("*"), path]:
        os.utime(place, (NOW - age, NOW - age))
    return path


def trained(steps: int, every: int = 10, scale: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": scale * 100 / step, "learning_rate": 0.1, "seconds": step / 2, "pictures": 4 * step}
        for step in range(every, steps + 1, every)
    ]


def test_a_run_is_finished_running_or_stopped(tmp_path: Path) -> None:
    write_run(tmp_path / "done", trained(100), age=10, is_finished=True)
    write_run(tmp_path / "now", trained(30), age=5)
    write_run(tmp_path / "then", trained(40))
    write_run(tmp_path / "early", trained(50), is_finished=True)  # its recipe asks for more steps since
    found = {run.name: (run.state, run.step, run.steps) for run in list_runs(tmp_path, NOW)}
    assert found == {
        "done": ("finished", 100, 100),
        "now": ("running?", 30, 100),
        "then": ("stopped", 40, 100),
        "early": ("stopped", 50, 100),
    }


def test_a_slow_run_is_not_taken_for_stopped(tmp_path: Path) -> None:
    """Its lines are an hour apart, so a silence of two hours says nothing; one of two minutes does for a quick run."""
    slow = [{"step": step, "loss": 1.0, "seconds": 3600.0 * step} for step in (1, 2, 3)]
    assert read_run(write_run(tmp_path / "slow", slow, age=7200), NOW).state == "running?"
    assert read_run(write_run(tmp_path / "quick", trained(30), age=7200), NOW).state == "stopped"


def test_the_newest_run_comes_first(tmp_path: Path) -> None:
    for name, age in (("old", 300.0), ("new", 10.0), ("middle", 200.0)):
        write_run(tmp_path / name, trained(10), age=age)
    assert [run.name for run in list_runs(tmp_path, NOW)] == ["new", "middle", "old"]


@pytest.mark.parametrize(
    ("file", "content", "trouble"),
    [
        ("recipe.json", b'{"recipe": {"run":', "recipe.json is not JSON"),
        ("recipe.json", b"\xff\xfe\x00", "recipe.json is not JSON"),
        ("recipe.json", b"[" * 100_000, "recipe.json is not JSON"),
        ("recipe.json", b"[]", "recipe.json holds no recipe"),
        ("recipe.json", b'{"recipe": {"run": 3}}', "recipe.json holds no recipe"),
        ("recipe.json", b'{"recipe": {"run": {"steps": true}}}', "recipe.json: run.objective is not a string"),
        ("recipe.json", None, "it has no recipe.json"),
        ("metrics.jsonl", b'{"step": 1}\nhalf\n\n[]\n{"step": 2}\n', "metrics.jsonl: line 2 and 1 more cannot be read"),
        ("metrics.jsonl", b'{"loss": 1}\n{"step": 2}\n', "metrics.jsonl: line 1 cannot be read"),
    ],
)
def test_a_damaged_run_is_listed_with_what_is_wrong(
    tmp_path: Path, file: str, content: bytes | None, trouble: str
) -> None:
    path = write_run(tmp_path / "run", trained(10))
    (path / file).unlink() if content is None else (path / file).write_bytes(content)
    (run,) = list_runs(tmp_path)
    assert run.troubles[0] == trouble
    assert (run.state == "damaged") == (file == "recipe.json")


def test_an_empty_folder_is_a_run_that_did_not_begin_and_other_folders_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"")
    (tmp_path / ".run.part").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert [(run.name, run.state, run.step, run.loss) for run in list_runs(tmp_path)] == [("empty", "damaged", 0, None)]
    with pytest.raises(ValueError, match=r"there is no folder '.*nowhere' with runs; 'diptych train RECIPE' makes"):
        list_runs(tmp_path / "nowhere")


def test_a_torn_last_line_is_left_out_without_a_word(tmp_path: Path) -> None:
    """It is what a run that writes right now looks like, at every byte of the line."""
    whole, last = b'{"step": 1, "loss": 2.0}\n', '{"step": 2, "loss": 1.0, "note": "é"}'.encode()
    for end in range(len(last)):
        (tmp_path / "metrics.jsonl").write_bytes(whole + last[:end])
        troubles: list[str] = []
        assert read_metrics(tmp_path / "metrics.jsonl", troubles) == [{"step": 1, "loss": 2.0}]
        assert troubles == []


def test_where_steps_go_back_the_later_lines_count(tmp_path: Path) -> None:
    """A run that went on from step 2; a validation's line has the step of the training line after it."""
    lines = [{"step": 1, "loss": 1}, {"step": 2, "validation/a": 5}, {"step": 2, "loss": 2}, {"step": 3, "loss": 3}]
    again = [{"step": 3, "loss": 30}, {"step": 4, "loss": 40}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 5, "loss": 5}, *again]))
    kept = read_metrics(path)
    assert [line["step"] for line in kept] == [1, 2, 2, 3, 3, 4]
    assert kept[-1] == again[-1]


def test_what_is_not_a_finite_number_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "a": Infinity, "b": "x", "c": true, "d": 0.5}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "d": 0.5}]


def test_best_knows_which_way_is_better(tmp_path: Path) -> None:
    figures = [(10, 3.0, 20.0), (20, 1.0, 30.0), (30, 2.0, 25.0), (40, 1.0, 30.0)]
    lines = [{"step": step, "validation/noise_loss": low, "validation/psnr_db": high} for step, low, high in figures]
    run = read_run(write_run(tmp_path / "run", lines))
    assert run.validation_names == ["noise_loss", "psnr_db"]
    assert run.best("validation/noise_loss") == (20, 1.0)
    assert run.best("validation/psnr_db") == (20, 30.0)
    assert run.last("validation/psnr_db") == 30.0
    assert run.best("validation/nothing") is None


def test_every_figure_that_the_tasks_validate_has_its_direction() -> None:
    higher = ["psnr_db", "animal", "worn", "worn_soft", "mean", "style"]
    lower = ["noise_loss", "absolute_error", "bits_per_byte/tinystories", "bits_per_byte/mean", "perplexity"]
    assert all(map(is_larger_better, higher))
    assert not any(map(is_larger_better, lower))


def test_smoothing_keeps_a_constant_does_not_lag_behind_a_line_and_ends_in_the_moving_average() -> None:
    assert smoothed([3.0] * 500) == pytest.approx([3.0] * 500)
    line = [float(place) for place in range(1000)]
    assert smoothed(line)[300:700] == pytest.approx(line[300:700])
    values = [float(place % 7) for place in range(400)]
    keep = 1 - 1 / 4  # a hundredth of 400 values
    weights = [keep**age for age in range(400)]
    expected = sum(weight * value for weight, value in zip(weights, values[::-1], strict=True)) / sum(weights)
    assert smoothed(values)[-1] == pytest.approx(expected)
    assert smoothed([5.0, 1.0]) == [5.0, 1.0]
    assert smoothed([]) == []


def test_points_run_along_whatever_the_training_lines_count(tmp_path: Path) -> None:
    """A validation, whose line names only its step, is placed where the training line before it was."""
    lines = [*trained(20), {"step": 30, "validation/a": 7.0}, {"step": 30, "loss": 1.0, "seconds": 15, "pictures": 120}]
    run = read_run(write_run(tmp_path / "run", lines))
    assert run.points("loss", "pictures") == [(40, 10.0), (80, 5.0), (120, 1.0)]
    assert run.points("validation/a", "seconds") == [(10.0, 7.0)]
    assert run.points("validation/a") == [(30, 7.0)]


def test_checkpoints_are_whole_and_the_size_is_that_of_all_files(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trained(10))
    before = read_run(path).size
    for step, is_whole in ((8, True), (16, False)):
        folder = path / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(bytes(1000))
        if is_whole:
            (folder / "state.json").write_bytes(bytes(10))
    (path / "link").symlink_to(path / "checkpoints")
    run = read_run(path)
    assert checkpoints(path) == [8]
    assert run.size - before == 2010 + (path / "link").lstat().st_size


def test_only_settings_that_differ_are_differences(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "a", [], seed=1, mix={"x": 1, "y": 2}))
    second = read_run(write_run(tmp_path / "b", [], seed=2, mix={"x": 1, "z": 2}))
    assert differences([first, second]) == [
        ("run.seed", [1, 2]),
        ("run.mix.y", [2, None]),
        ("run.mix.z", [None, 2]),
    ]
    assert differences([first, first]) == []


def test_a_run_of_the_loop_is_read_as_it_was(finished: Callable[[str], RunDirectory]) -> None:
    """Not written by hand but by `train`: three steps of a decoder, finished, with what its own files say."""
    path = finished("next-token").path
    run = read_run(path)
    assert (run.objective, run.state, run.step, run.steps, run.troubles) == ("next-token", "finished", 3, 3, ())
    assert run.loss is not None
    assert run.seconds is not None
    assert run.validation_names[0] == "bits_per_byte/tales"
    assert run.size == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert checkpoints(path) == [3]
    assert page(path / "samples").count("\n## ") == 3
    assert [panel.title for panel in panels([run])] == ["training loss", "validation: bits per byte", "learning rate"]


# ---- which curves belong together --------------------------------------------------------------------------------


def test_figures_of_one_kind_share_their_axes_in_one_run_and_runs_share_them_in_a_comparison(tmp_path: Path) -> None:
    lines = [*trained(1000), {"step": 1000, "validation/bits/a": 2.0, "validation/bits/b": 1.0}]
    first, second = (read_run(write_run(tmp_path / name, lines)) for name in ("one", "two"))
    alone = {panel.title: [curve.name for curve in panel.curves] for panel in panels([first])}
    assert alone == {"training loss": [""], "validation: bits": ["a", "b"], "learning rate": [""]}
    both = {panel.title: [curve.name for curve in panel.curves] for panel in panels([first, second])}
    assert list(both) == ["training loss", "validation: bits, a", "validation: bits, b", "learning rate"]
    assert all(names == ["one", "two"] for names in both.values())
    loss = panels([first])[0]
    assert loss.is_log, "from 10 down to 0.1"
    assert len(loss.curves[0].faint) == len(loss.curves[0].points) == 100


def test_time_is_shown_in_a_unit_to_read(tmp_path: Path) -> None:
    for seconds, unit, end in ((90, "seconds", 90), (1200, "minutes", 20), (9000, "hours", 2.5)):
        lines = [{"step": 1, "loss": 1.0, "seconds": seconds}]
        (panel, *_) = panels([read_run(write_run(tmp_path / unit, lines))], "time")
        assert (panel.x, panel.end) == (unit, end)


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", trained(10)))
    with pytest.raises(ValueError, match=r"the metrics of '.*run' do not count tokens"):
        panels([run], "tokens")
    with pytest.raises(ValueError, match=r"the run '.*none' has no metrics to draw"):
        panels([run, read_run(write_run(tmp_path / "none", []))])
