"""`diptych runs` on directories written by hand, in a pipe and on a terminal."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diptych.cli.train import line, validation
from diptych.train.loop import Progress
from diptych.train.samples import save_pictures, save_texts


def write_run(path: Path, *, steps: int = 400, rate: float = 0.1, done: int = 400, changed: float = 1e6) -> Path:
    (path / "samples").mkdir(parents=True)
    recipe = {
        "run": {"objective": "next-token", "steps": steps, "batch": 4, "seed": 1, "average": 0.9, "init_from": "quill"},
        "optimizer": {"name": "muon", "learning_rate": rate, "warmup": 3, "shape": "linear", "decay": 0.3},
        "model": {"depth": 4},
        "data": {"mix": {"tales": 1}},
    }
    (path / "recipe.json").write_text(json.dumps({"recipe": recipe, "made_with": {"torch": "2.13", "diptych": "1"}}))
    lines = []
    for step in range(10, done + 1, 10):
        if step % 100 == 0:
            lines.append({"step": step, "validation/bits_per_byte/tales": 1 + 10 * rate + 100 / step})
        lines.append(
            {"step": step, "loss": 2 + 100 * rate / step, "learning_rate": rate, "seconds": step, "tokens": step}
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for place in [*path.rglob("*"), path]:
        os.utime(place, (changed, changed))
    return path


@pytest.fixture
def runs(folder):
    write_run(folder / "runs/first", changed=1e6)
    write_run(folder / "runs/second", rate=0.2, done=200, changed=2e6)
    (folder / "runs/torn").mkdir()
    (folder / "runs/torn/recipe.json").write_text("{")
    os.utime(folder / "runs/torn/recipe.json", (3e6, 3e6))
    os.utime(folder / "runs/torn", (3e6, 3e6))
    return folder / "runs"


def test_runs_are_listed_in_columns(diptych, runs):
    status, out, err = diptych("runs")
    assert (status, err) == (0, "")
    rows = out.splitlines()
    assert " ".join(rows[0].split()) == "name objective step state loss validation best time size what is wrong"
    assert [row.split()[0] for row in rows[1:]] == ["torn", "second", "first"]
    assert rows[1].split()[1:4] == ["?", "0/?", "damaged"]
    assert rows[1].endswith("recipe.json is not JSON")
    assert rows[2].split()[1:4] == ["next-token", "200/400", "stopped"]
    assert rows[3].split()[5:7] == ["2.25", "2.25"]
    starts = {row.index(word) for row, word in zip(rows, ("state", "damaged", "stopped", "stopped"), strict=True)}
    assert len(starts) == 1


def test_runs_for_a_program(diptych, runs):
    lines = [json.loads(line) for line in diptych("runs", "--json").out.splitlines()]
    assert [(run["name"], run["state"], run["step"]) for run in lines] == [
        ("torn", "damaged", 0),
        ("second", "stopped", 200),
        ("first", "stopped", 400),
    ]
    assert lines[1]["validation"] == {"bits_per_byte/tales": {"last": 3.5, "best": 3.5, "best_step": 200}}
    assert lines[0]["troubles"] == ["recipe.json is not JSON"]


def test_on_a_narrow_terminal_columns_are_left_out_and_troubles_stand_below(diptych, runs, monkeypatch):
    monkeypatch.setattr("diptych.cli.frame.is_terminal", lambda stream: True)
    monkeypatch.setenv("NO_COLOR", "1")
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = diptych("runs").out
        assert max(map(len, out.splitlines())) <= columns
        assert ("objective" in out, "size" in out) == (columns > 60, columns > 80)
        assert out.splitlines()[-1] == "torn: recipe.json is not JSON"


def test_an_empty_folder_has_no_runs(diptych, folder):
    (folder / "runs").mkdir()
    assert diptych("runs") == (0, "there are no runs in runs\n", "")
    assert diptych("runs", "--json") == (0, "", "")


def test_a_run_is_shown_with_its_facts_and_curves(diptych, runs):
    status, out, err = diptych("runs", "show", "second")
    assert (status, err) == (0, "")
    for fact in (
        "second: next-token, step 200 of 400, stopped",
        "run          batch 4, seed 1, average 0.9, from quill",
        "optimizer    muon, learning rate 0.2, warm-up 3, linear decay 0.3",
        "model        depth 4",
        "data         mix {tales 1}",
        "made with    diptych 1, torch 2.13",
        "time         3 min 20 s",
        "validation   bits_per_byte/tales 3.5, best 3.5 at step 200",
        "validation: bits per byte (lower is better)",
        "learning rate",
    ):
        assert fact in out, fact
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert diptych("runs", "show", "second", "--by", "tokens").out.count("200 tokens") == 3
    assert diptych("runs", "show", "second", "--by", "time").out.count("minutes") == 3


def test_a_run_is_found_by_name_in_a_folder_and_by_path(diptych, runs, folder, monkeypatch):
    by_name = diptych("runs", "show", "first").out
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    for words in (
        ("show", runs / "first"),
        ("show", "../runs/first"),
        ("show", "first", "--in", runs),
        ("--in", runs, "show", "first"),
    ):
        assert diptych("runs", *words).out == by_name
    monkeypatch.chdir(runs / "first")
    assert diptych("runs", "show", ".").out == by_name


def test_a_damaged_run_is_shown_as_far_as_it_goes(diptych, runs):
    status, out, _ = diptych("runs", "show", "torn")
    assert status == 0
    assert out.startswith("torn: unknown objective, step 0, damaged\n  wrong        recipe.json is not JSON\n")


def test_two_runs_are_compared(diptych, runs):
    status, out, err = diptych("runs", "compare", "first", "second")
    assert (status, err) == (0, "")
    table = out[out.index("figure ") :].splitlines()
    assert table == [
        "figure               first        second",
        "state                stopped      stopped",
        "step                 400/400      200/400",
        "time                 7 min        3 min",
        "loss, smoothed       2.025        2.1",
        "bits_per_byte/tales  2.25         3.5",
        "  best               2.25 at 400  3.5 at 200",
        "",
        "setting                  first  second",
        "optimizer.learning_rate  0.1    0.2",
    ]
    assert "their recipes are the same" in diptych("runs", "compare", "first", "first").out
    (compared,) = map(json.loads, diptych("runs", "compare", "first", "second", "--json").out.splitlines())
    assert compared["differences"] == [{"setting": "optimizer.learning_rate", "values": [0.1, 0.2]}]


def test_curves_are_written_as_png(diptych, runs, folder):
    """The colours of both runs are in the picture."""
    run = diptych("runs", "compare", "first", "second", "--png", "two.png")
    assert (run.status, run.out.splitlines()[-1]) == (0, "two.png: written")
    with Image.open(folder / "two.png") as picture:
        assert picture.width == 1680
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert colours >= {(31, 111, 139), (217, 130, 43)}


def test_without_matplotlib_one_line_says_what_to_install(diptych, runs, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = diptych("runs", "show", "first", "--png", "one.png")
    assert (status, err) == (
        1,
        "diptych: curves as PNG need the package matplotlib: pip install 'diptych[train]'\n",
    )
    assert not (folder / "one.png").exists()


def test_samples_across_the_training_are_written(diptych, runs, folder):
    for step in (10, 20):
        save_pictures(runs / "first/samples", step, [Image.new("RGB", (16, 16))] * 2, ["a cat", "a dog"])
        save_texts(runs / "second/samples", step, ["Once"], ["On"])
    assert "samples      2 of steps 10 to 20; --sheet lays them side by side" in diptych("runs", "show", "first").out
    assert diptych("runs", "show", "first", "--sheet", "sheet.png").out.endswith("sheet.png: written\n")
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.height > 2 * 192
    run = diptych("runs", "show", "second", "--page", "page.md", "--json")
    assert run.err == "page.md: written\n"
    assert (folder / "page.md").read_text().count("> **On**ce") == 2
    status, _, err = diptych("runs", "show", "second", "--sheet", "none.png")
    assert (status, err) == (1, "diptych: the run 'runs/second' has no pictures among its samples\n")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["show", "fist"], 1, "there is no run 'fist' in 'runs'; did you mean 'first'? Known: first, second, torn"),
        (["show", "zzz"], 1, "there is no run 'zzz' in 'runs'; known: first, second, torn"),
        (["--in", "nowhere"], 1, "there is no folder 'nowhere' with runs; 'diptych train RECIPE' makes the first one"),
        (["compare", "first"], 2, "name at least two runs to compare"),
        (["compare", "first", "second", "--by", "pictures"], 1, "the metrics of 'runs/first' do not count pictures"),
        (["show", "first", "--by", "tokns"], 2, "unknown --by 'tokns'; did you mean 'tokens'?"),
        (["show", "first", "--png", "a.jpg"], 2, "'a.jpg' must end in .png"),
        (["show", "first", "--page", "no/a.md"], 2, "the output folder 'no' does not exist"),
        (["compare", "first", "torn"], 1, "the run 'runs/torn' has no metrics to draw"),
        (["average", "first", "0.1", "--out", "new"], 1, "'runs/first' has no finished model"),
        (["average", "first", "0.1", "--out", "no/new"], 2, "the output folder 'no' does not exist"),
        (["average", "first", "0.1", "--out", "runs"], 2, "'runs' exists; name a folder that does not"),
        (["--json", "show", "first"], 2, "--json stands behind the command: 'diptych runs show --json'"),
    ],
)
def test_what_cannot_be_is_one_line(diptych, runs, words, status, message):
    run = diptych("runs", *words)
    assert (run.status, run.out, run.err.count("\n")) == (status, "", 1)
    assert run.err.startswith(f"diptych: {message}")


# ---- the line of a run that goes on ------------------------------------------------------------------------------


def test_the_progress_line_leaves_out_what_does_not_fit():
    figures = {"bits_per_byte/tinystories": 0.62151, "noise_loss": 0.5}
    progress = Progress(1120, 4500, 2.3343, 1.94e-3, 1187.3, "tokens", 6288, figures, 0.412, 1_312_000_000)
    whole = "loss 2.3343  rate 1.94e-03  1,187 tokens/s  41 % of peak  1.3 GB  1 h 44 min left"
    assert line(progress) == whole
    assert len(f"step 123456/123456  {line(progress, 80)}") <= 100
    assert line(progress, 79) == "loss 2.3343  rate 1.94e-03  1,187 tokens/s  41 % of peak  1 h 44 min left"
    assert line(progress, 62) == "loss 2.3343  1,187 tokens/s  41 % of peak  1 h 44 min left"
    assert line(progress, 10) == "loss 2.3343  1 h 44 min left"
    assert validation(progress) == "validation: bits_per_byte/tinystories 0.6215, noise_loss 0.5"
    routed = replace(progress, memory=0, figures={"busiest_expert": 1.3249})
    assert line(routed) == (
        "loss 2.3343  rate 1.94e-03  busiest expert 1.32  1,187 tokens/s  41 % of peak  1 h 44 min left"
    )
    unknown = Progress(1, 2, 1.0, 1e-3, 0.4567, "pictures", 5, {}, None, 0)
    assert line(unknown) == "loss 1.0000  rate 1.00e-03  0.457 pictures/s  5 s left"
