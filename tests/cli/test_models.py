import json

import torch
from safetensors.torch import save_file

from diptych.cli.models import count_parameters
from diptych.models import bundled


def test_the_header_alone_tells_the_number_of_parameters(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    assert count_parameters(tmp_path / "a.safetensors") == 22


def test_models_are_listed_with_what_they_do(diptych, monkeypatch, tiny_quill, tiny_brush):
    models = {"quill": tiny_quill, "brush": tiny_brush}
    monkeypatch.setattr("diptych.models.bundled", lambda: models)
    run = diptych("models")
    assert run.status == 0
    assert "writes, 4096 tokens in view" in run.out
    assert "paints 32 x 32 pictures" in run.out
    rows = [json.loads(line) for line in diptych("models", "--json").out.splitlines()]
    assert [(row["name"], row["panel"]) for row in rows] == [("quill", "text"), ("brush", "image")]
    assert all(row["parameters"] > 1000 for row in rows)


def test_bundled_models_can_be_listed(diptych):
    run = diptych("models")
    assert run.status == 0
    assert all(name in run.out for name in bundled())
