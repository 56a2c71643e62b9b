"""Recipes: what is wrong in one is said at once, in one line, with its place and the nearest right word."""

from pathlib import Path
from typing import Any

import pytest

from diptych.core.randomness import LARGEST_SEED
from diptych.image.unet import UNetConfig
from diptych.train.recipe import Recipe, read_recipe
from diptych.train.tasks import TASKS
from diptych.train.tasks.autoencoder import Model as AutoencoderModel
from diptych.train.tasks.next_token import Data

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*(ROOT / "recipes").glob("*.toml"), *(ROOT / "benchmarks" / "recipes").glob("*.toml")])

GOOD = """# few words
[run]
objective = "next-token"
steps = 20   # few
batch = 2

[model]
depth = 1
widths = [32, 64]

[model.unet]
blocks = 2

[data]
vocab_size = 300
seed = 3

[data.mix]
"tale.txt" = 1

[optimizer]
learning_rate = 1e-2
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "tale.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, *changes: tuple[str, str], overrides: list[str] | None = None) -> Recipe:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return read_recipe(written(folder, text), overrides)


def message(folder: Path, *changes: tuple[str, str], overrides: list[str] | None = None) -> str:
    """The one line that refuses a recipe, without the folder."""
    with pytest.raises(ValueError) as refused:
        read(folder, *changes, overrides=overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value).replace(f"{folder}/", "")


def test_what_is_left_out_has_its_default_and_the_rest_is_as_written(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert (recipe.name, recipe.run.steps, recipe.run.seed, recipe.run.init_from) == ("tale", 20, 1, "")
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("adamw", 0.01)
    data = recipe.section("data", Data)
    assert (data.mix, data.vocab_size, data.validation_share) == ({"tale.txt": 1.0}, 300, 0.02)
    assert isinstance(data.mix["tale.txt"], float)
    assert recipe.resolved()["run"]["average"] == 0.999
    assert recipe.resolved()["data"] == {"vocab_size": 300, "seed": 3, "mix": {"tale.txt": 1}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_house_are_whole(path: Path) -> None:
    """Every section reads into what its task wants, and the objective is one that exists."""
    recipe = read_recipe(path)
    assert recipe.run.objective in TASKS
    module = __import__(TASKS[recipe.run.objective], fromlist=["Data", "Model"])
    recipe.section("data", module.Data)
    recipe.section("model", module.Model)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_there_are_recipes() -> None:
    assert {"quill", "brush", "autoencoder", "judge", "shakespeare-quick"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("learning_rate", "learning_rat"),
            "tale.toml, line 22: unknown key 'learning_rat' in [optimizer]; did you mean 'learning_rate'?",
        ),
        (("steps", "stepps"), "tale.toml, line 4: unknown key 'stepps' in [run]; did you mean 'steps'?"),
        (("[optimizer]", "[optimiser]"), "tale.toml, line 21: unknown section [optimiser]; did you mean 'optimizer'?"),
        (("[model.unet]", "[models.unet]"), "tale.toml: unknown section [models]; did you mean 'model'?"),
        (("# few words", "mode = 3"), "tale.toml, line 1: unknown section [mode]; did you mean 'model'?"),
        (("# few words\n[run]\n", "run = 3\n#"), "tale.toml, line 1: 'run' must be a section, [run]"),
        (("batch = 2\n\n[model]\ndepth = 1", "[model]"), "tale.toml: [run] lacks 'batch'"),
        (('objective = "next-token"\n', ""), "tale.toml: [run] lacks 'objective'"),
        (("steps = 20 ", "steps = 2.5"), "tale.toml, line 4: run.steps must be a whole number, not 2.5"),
        (("steps = 20 ", "steps = true"), "tale.toml, line 4: run.steps must be a whole number, not True"),
        (('"next-token"', "7"), "tale.toml, line 3: run.objective must be a string, not 7"),
        (("1e-2", '"fast"'), "tale.toml, line 22: optimizer.learning_rate must be a number, not 'fast'"),
        (("steps = 20 ", "steps = 0"), "tale.toml, line 4: run.steps must be at least 1, not 0"),
        (("1e-2", "-1"), "tale.toml, line 22: optimizer.learning_rate must be a finite number > 0, not -1.0"),
        (("1e-2", "nan"), "tale.toml, line 22: optimizer.learning_rate must be a finite number > 0, not nan"),
        (("1e-2", "inf"), "tale.toml, line 22: optimizer.learning_rate must be a finite number > 0, not inf"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    assert message(tmp_path, change) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.batch=0", "run.batch must be at least 1, not 0"),
        ("run.keep=0", "run.keep must be at least 1, not 0"),
        ("run.save_every=-1", "run.save_every must be 0 (never) or more, not -1"),
        ("run.seed=-1", f"run.seed must be a whole number from 0 to {LARGEST_SEED}, not -1"),
        ("run.average=1.0", "run.average must be at least 0 and below 1, not 1.0"),
        ("optimizer.name=adam", "optimizer.name must be one of adamw, muon, not 'adam'"),
        ("optimizer.shape=square", "optimizer.shape must be one of linear, cosine, not 'square'"),
        ("optimizer.clip=-0.5", "optimizer.clip must be 0 or more, not -0.5"),
        ("optimizer.weight_decay=nan", "optimizer.weight_decay must be 0 or more, not nan"),
        ("optimizer.warmup=-3", "optimizer.warmup must be 0 or more, not -3"),
        ("optimizer.beta2=1.0", "optimizer.beta2 must be at least 0 and below 1, not 1.0"),
        ("optimizer.decay=1.5", "optimizer.decay must be from 0 to 1, not 1.5"),
    ],
)
def test_impossible_values_are_named_in_full(tmp_path: Path, override: str, expected: str) -> None:
    assert message(tmp_path, overrides=[override]).endswith(f": {expected}")


def test_the_sections_of_the_task_are_checked_alike(tmp_path: Path) -> None:
    recipe = read(tmp_path, ("widths = [32, 64]", "widths = [32, 6.4]"))
    with pytest.raises(ValueError, match=r"line 8: unknown key 'depth' in \[model\]; known: latent_channels, "):
        recipe.section("model", AutoencoderModel)
    del recipe.tables["model"]["depth"]
    del recipe.tables["model"]["unet"]
    with pytest.raises(ValueError, match=r"line 9: model\.widths must be a whole number, not 6\.4"):
        recipe.section("model", AutoencoderModel)
    with pytest.raises(ValueError, match=r"line 15: vocab_size is too small"), recipe.checking("data", "vocab_size"):
        raise ValueError("vocab_size is too small")


def test_a_table_in_a_section_is_checked_too(tmp_path: Path) -> None:
    assert read(tmp_path).sizes("model.unet", UNetConfig) == {"blocks": 2}
    with pytest.raises(ValueError, match=r"line 12: unknown key 'block' in \[model\.unet\]; did you mean 'blocks'\?"):
        read(tmp_path, ("blocks", "block")).sizes("model.unet", UNetConfig)
    with pytest.raises(ValueError, match=r"line 12: model\.unet\.blocks must be a whole number, not 'two'"):
        read(tmp_path, ("blocks = 2", 'blocks = "two"')).sizes("model.unet", UNetConfig)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("run.steps=5", "run", "steps", 5),
        ("optimizer.learning_rate=1", "optimizer", "learning_rate", 1),
        ("optimizer.name=muon", "optimizer", "name", "muon"),
        ('run.init_from="a=b"', "run", "init_from", "a=b"),
        ("run.init_from=runs/quill/model", "run", "init_from", "runs/quill/model"),
        ("data.mix={ a = 2, b = 3 }", "data", "mix", {"a": 2, "b": 3}),
        ("model.unet.blocks=3", "model", "unet", {"blocks": 3}),
        ("model.new.key=[1, 2]", "model", "new", {"key": [1, 2]}),
    ],
)
def test_the_command_line_has_the_last_word(tmp_path: Path, override: str, section: str, key: str, value: Any) -> None:
    resolved = read(tmp_path, overrides=["run.steps=99", override]).resolved()
    assert resolved[section][key] == value
    assert resolved["run"]["steps"] == (5 if key == "steps" else 99)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=5", "'steps=5' must be section.key=value, for example run.steps=100"),
        ("run.steps", "'run.steps' must be section.key=value, for example run.steps=100"),
        ("run.=5", "'run.=5' must be section.key=value, for example run.steps=100"),
        ("runs.steps=5", "'runs.steps=5': unknown section 'runs'; did you mean 'run'?"),
        ("run.steps.x=5", "'run.steps.x=5': 'steps' is a setting, not a section"),
        ("run.stepps=5", "tale.toml, [run]: unknown key 'stepps' in [run]; did you mean 'steps'?"),
        ("run.steps=many", "tale.toml, line 4: run.steps must be a whole number, not 'many'"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    assert message(tmp_path, overrides=[override]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[run\nsteps = 3", "tale.toml: not valid TOML: "),
        (b"[run]\nsteps = 3\nsteps = 4", "tale.toml: not valid TOML: "),
        (b"[run]\nobjective = '\xff\xfe'", "tale.toml: not valid TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"", "tale.toml: [run] lacks 'objective'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: bytes, expected: str) -> None:
    with pytest.raises(ValueError) as refused:
        read_recipe(written(tmp_path, text))
    assert str(refused.value).replace(f"{tmp_path}/", "").startswith(expected)
    assert "\n" not in str(refused.value)


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.toml", tmp_path):
        with pytest.raises(ValueError, match="there is no recipe at"):
            read_recipe(path)
