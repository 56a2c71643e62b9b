"""A recipe shown: TOML that says the same again, with the origin of each value."""

import tomllib
from pathlib import Path

import pytest

from diptych.train.recipe import read_recipe
from diptych.train.shown import shown

RECIPE = """# a tale
[run]
objective = "next-token"
steps = 20   # few

[model]
depth = 2
overrides = { hidden = 96 }

[data.mix]
"tale.txt" = 1
plain = 2.5
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tale.toml"
    path.write_text(RECIPE)
    return path


def line(text: str, key: str) -> str:
    (found,) = (line for line in text.splitlines() if line.startswith(f"{key} = "))
    return " ".join(found.split())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("steps", "steps = 20 # recipe, line 4"),
        ("clip", "clip = 0.5 # command line"),
        ("log_every", "log_every = 10 # default"),
        ("batch", "batch = 1 # derived from depth"),
        ("depth", "depth = 2 # recipe, line 7"),
        ("hidden", "hidden = 96 # recipe, line 8"),
        ("width", "width = 128 # derived from depth"),
        ("norm", 'norm = "rms" # default'),
        ('"tale.txt"', '"tale.txt" = 1.0 # recipe, line 11'),
        ("plain", "plain = 3.5 # command line"),
        ("vocab_size", "vocab_size = 4096 # default"),
        ("shard", "shard = 0 # default"),
    ],
)
def test_each_value_says_where_it_came_from(path: Path, key: str, expected: str) -> None:
    text = shown(read_recipe(path, ["optimizer.clip=0.5", "data.mix.plain=3.5", "model.context=1024"]))
    assert line(text, key) == expected


def test_a_whole_table_of_the_command_line_is_of_the_command_line(path: Path) -> None:
    text = shown(read_recipe(path, ["data.mix={ other = 1 }"]))
    assert line(text, "other") == "other = 1.0 # command line"


def test_what_is_shown_is_a_recipe_that_says_the_same(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path, ["run.seed=9", 'run.init_from="a \\"b\\" # c"'])
    again = tmp_path / "again.toml"
    again.write_text(shown(recipe))
    second = read_recipe(again)
    assert (second.run, second.optimizer, second.parallel) == (recipe.run, recipe.optimizer, recipe.parallel)
    first, other = tomllib.loads(shown(recipe)), tomllib.loads(shown(second))
    assert first == other
    assert set(first) == {"run", "optimizer", "parallel", "model", "data"}
