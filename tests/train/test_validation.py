"""What training prints and what `diptych evaluate` prints are one figure: the same digits for the same weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.data import captioned, rendered
from diptych.data.rendered import SceneData
from diptych.evaluate import pictures
from diptych.evaluate.pictures import SCENES, PictureReport
from diptych.evaluate.text import evaluate_text
from diptych.image.model import ImageModel
from diptych.image.pairing import PairingModel
from diptych.text.model import TextModel
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build
from diptych.train.tasks.next_token import NextTokenTask

Finished = Callable[[str], RunDirectory]
Read = Callable[..., Recipe]


@pytest.fixture
def _same_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--on scenes` are the pictures that validate the shipped recipes; here they are those of the tiny ones."""

    def few(data: SceneData) -> object:
        return captioned.validation_scenes(replace(data, scenes=24, held_out=8, size=32))

    monkeypatch.setattr(pictures, "validation_scenes", few)


def validated(recipe: Recipe) -> dict[str, float]:
    task = build(recipe)
    task.model.eval()
    with torch.no_grad():
        return task.validate()


def evaluated(objective: str, directory: Path) -> PictureReport:
    if objective == "autoencoder":
        return pictures.evaluate_autoencoder(directory, SCENES, device="cpu")
    if objective == "contrastive":
        return pictures.evaluate_pairing(PairingModel.load(directory, device="cpu"), SCENES)
    return pictures.evaluate_painter(ImageModel.load(directory, device="cpu", dtype="float32"), SCENES)


@pytest.mark.usefixtures("_same_scenes")
@pytest.mark.parametrize("objective", ["autoencoder", "diffusion", "contrastive"])
def test_pictures_are_measured_alike_in_training_and_after(recipe: Read, finished: Finished, objective: str) -> None:
    directory = finished(objective).model
    parts = [f"data.autoencoder={directory}"] if objective == "diffusion" else []
    figures = validated(recipe(objective, f"run.init_from={directory}", *parts))
    report = evaluated(objective, directory)
    found = {"autoencoder": report.fidelity, "contrastive": report.matching}
    if objective == "diffusion":
        assert report.loss is not None
        assert report.loss.figures("noise_loss") == figures
        assert report.fidelity is not None
    else:
        assert found[objective].figures() == figures  # type: ignore[union-attr]
    assert evaluated(objective, directory) == report
    assert report.num_pictures == 8


def test_text_is_measured_alike_in_training_and_after(recipe: Read, finished: Finished, tmp_path: Path) -> None:
    directory = finished("next-token").model
    task = build(recipe("next-token", f"run.init_from={directory}"))
    assert isinstance(task, NextTokenTask)
    (held_out,) = task.held_out.values()
    (tmp_path / "held-out.txt").write_text("<|endoftext|>".join(held_out))
    task.model.eval()
    with torch.no_grad():
        figures = task.validate()
    model = TextModel.load(directory, device="cpu", dtype="float32")
    report = evaluate_text(model, str(tmp_path / "held-out.txt"), max_documents=task.data.validation_documents)
    assert report.score.figures("bits_per_byte/tales") == figures
    assert figures["bits_per_byte/tales/count"] == 3


def test_the_scenes_to_measure_on_are_those_that_validate(world: Path) -> None:
    """Drawn alone or read from the cache of a whole run: the same pictures, with their scenes."""
    data = SceneData(scenes=24, held_out=8, size=32)
    found, truth = captioned.validation_scenes(data)
    cached = rendered.render(data.seed, data.scenes, data.size)
    assert np.array_equal(found.pictures, cached.pictures[-8:])
    assert truth == cached.truth[-8:]
    assert found.captions == [scene.caption() for scene in truth]
