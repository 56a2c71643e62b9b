"""A training that is over in seconds does without what would have to be compiled first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core import together
from diptych.train import outline
from diptych.train.loop import train
from diptych.train.outline import SHORT, is_short, most_operations, outline_of
from diptych.train.recipe import Recipe, read_recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"


def test_a_training_is_short_by_its_recipe_alone(recipe: Callable[..., Recipe]) -> None:
    read = recipe("next-token")
    state = torch.get_rng_state()
    most = int(SHORT / (most_operations(outline_of(read)) * read.run.batch))
    assert is_short(recipe("next-token", f"run.steps={most}"))
    assert not is_short(recipe("next-token", f"run.steps={most + 1}"))
    assert not is_short(recipe("next-token", f"run.steps={most}", f"run.batch={2 * read.run.batch}"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "wanted"), [("shakespeare-quick", True), ("gpt-12m", False)])
def test_benchmarks_are_what_they_measure(name: str, wanted: bool) -> None:
    assert is_short(read_recipe(RECIPES / f"{name}.toml", [])) == wanted


@pytest.mark.parametrize("is_it", [True, False])
def test_a_short_training_does_without_compiled_code(
    is_it: bool, recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "IS_HERE", True)
    monkeypatch.setattr(outline, "SHORT", SHORT if is_it else 0.0)
    read = recipe("next-token", "run.steps=2")
    task, seen = build(read), []
    loss = task.loss

    def watched(batch: Any) -> Any:
        seen.append(together.is_used())
        return loss(batch)

    monkeypatch.setattr(task, "loss", watched)
    train(read, task, RunDirectory(tmp_path / "run"), lambda progress: None, dtype="float32")
    assert set(seen) == {not is_it}
    assert together.is_used()


def test_left_out_is_left_out_inside_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "IS_HERE", True)
    cpu = torch.device("cpu")
    assert [one.name for one in together.libraries(cpu, torch.bfloat16, learns=True)] == ["many", "gradients"]
    with together.left_out():
        with together.left_out(False):
            assert not together.is_used()
        assert together.libraries(cpu, torch.bfloat16) == []
    assert [one.name for one in together.libraries(cpu, torch.bfloat16)] == ["many"]
