"""An adapter trains through the one loop: it learns, the model that it is for does not move, and a run goes on."""

import json
import re

import pytest
import torch

import diptych
from diptych.core import weights
from diptych.interop.peft import load_adapter
from diptych.train.loop import train
from diptych.train.plan import plan
from diptych.train.recipe import read_recipe
from diptych.train.run import RunDirectory
from diptych.train.shown import shown
from diptych.train.tasks import build

RECIPE = """
[run]
objective = "next-token"
init_from = "BASE"
steps = 30
batch = 4
average = 0
workers = 0
validate_every = 0
sample_every = 0
log_every = 1

[adapter]
rank = 4
alpha = 64
targets = ["query", "value", "up"]

[model]
context = 40

[optimizer]
learning_rate = 0.02
warmup = 0

[data]
validation_documents = 2
validation_share = 0.2

[data.mix]
"TALES" = 1.0
"""


@pytest.fixture
def adapter_recipe(world, finished, tmp_path):
    base = finished("next-token").model

    def read(*overrides: str, text: str = RECIPE):
        path = tmp_path / "poet.toml"
        path.write_text(text.replace("BASE", str(base)).replace("TALES", str(world / "tales.txt")))
        return read_recipe(path, list(overrides))

    return read


def trained(recipe, folder) -> RunDirectory:
    run = RunDirectory(folder)
    train(recipe, build(recipe), run, lambda progress: None)
    return run


def losses(run: RunDirectory) -> list[float]:
    return [line["loss"] for line in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in line]


def test_it_learns_and_the_bytes_of_the_base_stay(adapter_recipe, finished, tmp_path):
    base = finished("next-token").model
    before = (base / "model.safetensors").read_bytes()
    recipe = adapter_recipe()
    task = build(recipe)
    held = weights.digest(task.decoder.state_dict())
    run = RunDirectory(tmp_path / "run")
    train(recipe, task, run, lambda progress: None)
    assert losses(run)[-1] < losses(run)[0] - 0.15
    assert weights.digest(task.decoder.state_dict()) == held
    assert (base / "model.safetensors").read_bytes() == before
    kept = sum(file.stat().st_size for file in run.checkpoints.rglob("weights/*.safetensors"))
    assert kept < 40 * sum(parameter.numel() for parameter in task.adapter.parameters())

    model = diptych.load(str(base), "cpu", "float32")
    model.use_adapter(load_adapter(model, run.model))
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.decoder(tokens), task.decoder.eval()(tokens), rtol=0, atol=1e-5)
    assert "An adapter (LoRA of rank 4" in (run.model / "README.md").read_text()


def test_a_run_in_two_parts_comes_to_the_same(adapter_recipe, tmp_path):
    whole = trained(adapter_recipe("run.steps=6", "optimizer.decay=0.0"), tmp_path / "whole")
    trained(adapter_recipe("run.steps=3", "optimizer.decay=0.0"), tmp_path / "parts")
    parts = trained(adapter_recipe("run.steps=6", "optimizer.decay=0.0"), tmp_path / "parts")
    name = "adapter_model.safetensors"
    assert (parts.model / name).read_bytes() == (whole.model / name).read_bytes()


def test_what_a_run_will_use_is_shown_and_planned(adapter_recipe):
    recipe = adapter_recipe()
    assert re.search(r"\[adapter\]\nrank = 4 +# recipe, line 14\n", shown(recipe))
    assert "use_rslora = false" in shown(recipe)
    adapter = build(recipe).model
    assert plan(recipe).parameters == sum(parameter.numel() for parameter in adapter.parameters())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rank=0", "line 14: adapter.rank must be at least 1, not 0"),
        ("adapter.alhpa=1", "[adapter]: unknown key 'alhpa' in [adapter]; did you mean 'alpha'?"),
        ('adapter.targets=["querry"]', "[adapter]: unknown layer 'querry'; did you mean 'query'?"),
        ("model.depth=2", "[adapter]: the sizes are those of run.init_from"),
        ('run.init_from=""', "[adapter]: an adapter is for a model that there is: name it in run.init_from"),
        ('run.objective="classifier"', "[adapter]: only the objective next-token trains adapters so far"),
    ],
)
def test_what_cannot_be_is_said_with_its_place(adapter_recipe, override, message):
    with pytest.raises(ValueError) as error:
        build(adapter_recipe(override))
    assert f"poet.toml, {message}" in str(error.value)
