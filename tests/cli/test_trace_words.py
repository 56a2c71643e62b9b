"""`diptych trace words`: the maps of a recorded picture, drawn and in numbers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.trace import Trace
from diptych.image.word_maps import WordMaps
from diptych.image.word_sheet import HEAT, heated


@pytest.fixture
def trace(paint):
    """Two pictures of five steps; the words are "a" and "cat"."""
    assert paint("--seed", 7, "--steps", 5, "-n", 2, "--trace", "cat.trace").status == 0
    return Trace.load("cat.trace")


def test_a_trace_becomes_a_sheet_of_rows_and_columns(trace, diptych, folder):
    run = diptych("trace", "words", "cat.trace")
    assert (run.status, run.out) == (0, "cat-words.png: 2 words, 5 of 5 steps and their mean\n"), run.err
    few = diptych("trace", "words", "cat.trace", "--word", "CAT", "--columns", 2, "--steps", "2..4", "--out", "few.png")
    assert few.out == "few.png: 1 word, 2 of 5 steps and their mean\n"
    with Image.open("cat-words.png") as whole, Image.open("few.png") as part:
        assert whole.height - part.height >= 144  # one row more
        assert whole.width - part.width >= 3 * 144  # three columns more
    assert [path.name for path in folder.glob("*.png") if "words" in path.name] == ["cat-words.png"]


def test_the_numbers_are_those_of_the_maps(trace, diptych, folder):
    run = diptych("trace", "words", "cat.trace", "--json", "--sample", 2, "--steps", "2..3", "--word", "cat")
    about, *rows = map(json.loads, run.out.splitlines())
    assert about == {"type": "words", "prompt": "a cat", "words": ["a", "cat"], "grid": [4, 4], "sample": 2}
    assert [(row["type"], row.get("index")) for row in rows] == [("step", 1), ("step", 2), ("mean", None)]
    maps = WordMaps.of(trace).maps[1:3, 1, 1].float()
    assert [row["share"] for row in rows[:2]] == pytest.approx(maps.mean((1, 2)).tolist(), abs=1e-4)
    assert rows[2]["share"] == pytest.approx(float(maps.mean()), abs=1e-4)
    assert not (folder / "cat-words.png").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--word", "dog"], 2, "unknown word 'dog'; known: a, cat"),
        (["--steps", "0..3"], 2, "steps must be FIRST..LAST within 1..5, not '0..3'"),
        (["--steps", "4..6"], 2, "steps must be FIRST..LAST within 1..5, not '4..6'"),
        (["--steps", "3-4"], 2, "steps must be FIRST..LAST within 1..5, not '3-4'"),
        (["--columns", 0], 2, "columns must be from 1 to 50, not 0"),
        (["--sample", 3], 2, "sample must be from 1 to 2"),
        (["--out", "a.jpg"], 2, "'a.jpg' must end in .png"),
        (["--out", "nowhere/a.png"], 2, "the output folder 'nowhere' does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(trace, diptych, folder, words, status, message):
    before = sorted(folder.iterdir())
    run = diptych("trace", "words", "cat.trace", *words)
    assert (run.status, run.out, run.err.count("\n")) == (status, "", 1)
    assert message.lower() in run.err.lower()
    assert sorted(folder.iterdir()) == before


def test_a_trace_without_maps_says_so(trace, write, diptych):
    del trace.arrays["words"]
    trace.save("old.trace")
    run = diptych("trace", "words", "old.trace")
    assert (run.status, run.err.count("\n")) == (1, 1)
    assert run.err.startswith("diptych: 'old.trace' holds no maps of words")
    write("--seed", 1, "--max-tokens", 3, "--trace", "text.trace")
    assert "'text.trace' is a text trace" in diptych("trace", "words", "text.trace").err
    assert "there is no trace at" in diptych("trace", "words", "nothing.trace").err


@pytest.mark.parametrize("name", ["preview", "sigma"])
def test_a_trace_that_lacks_what_is_drawn_is_refused_in_one_line(trace, diptych, name):
    if name == "preview":
        del trace.arrays["preview"]
    else:
        trace.facts = [{} for _ in trace.facts]
    trace.save("part.trace")
    run = diptych("trace", "words", "part.trace")
    assert (run.status, run.err.count("\n")) == (1, 1)
    assert "'part.trace'" in run.err
    assert diptych("trace", "words", "part.trace", "--json").status == 0


def test_heat_can_be_told_in_grey():
    """More heat is brighter, over black and over white, though printed without colours."""
    ramp = torch.linspace(0, 1, 64)[None]
    for colour in ("black", "white"):
        grey = np.asarray(heated(Image.new("RGB", (64, 1), colour), ramp).convert("L"), dtype=int)[0]
        assert (np.diff(grey) >= 0).all()
        assert grey[-1] - grey[0] > 120
    # And what has most heat over black is brighter than what has little over white.
    light = [np.asarray(Image.new("RGB", (1, 1), shade).convert("L"))[0, 0] for _, shade in HEAT]
    assert light == sorted(light)


def test_heat_lies_where_the_map_says():
    heat = torch.zeros(4, 4)
    heat[0, 3] = 1.0
    shown = np.asarray(heated(Image.new("RGB", (64, 64)), heat).convert("L"), dtype=int)
    assert divmod(int(shown.argmax()), 64)[0] < 16
    assert divmod(int(shown.argmax()), 64)[1] >= 48
