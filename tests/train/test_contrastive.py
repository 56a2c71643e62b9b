"""The task that pairs pictures and captions: its rows, and that it learns."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.data import scenes
from diptych.data.pairs import ScenePairs, scene_questions
from diptych.image.pairing import Pairing, PairingModel
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build
from diptych.train.tasks.contrastive import ContrastiveTask, outline


def made(recipe: Callable[..., Recipe], *overrides: str) -> ContrastiveTask:
    task = build(recipe("contrastive", *overrides))
    assert isinstance(task, ContrastiveTask)
    return task


def test_rows_are_the_same_however_a_step_is_cut(recipe: Callable[..., Recipe]) -> None:
    source = made(recipe, "run.batch=7").source
    whole = source.batch(3, range(7))
    parts = [source.batch(3, rows) for rows in (range(2), range(2, 3), range(3, 7))]
    for name in whole._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_another_process_maps_the_pictures_itself(recipe: Callable[..., Recipe]) -> None:
    source = made(recipe).source
    before = source.batch(0, range(4))
    packed = pickle.dumps(source)
    assert len(packed) < 40_000, "24 pictures alone are 74 kB, 24,000 a gigabyte"
    again: ScenePairs = pickle.loads(packed)
    assert all(map(torch.equal, before, again.batch(0, range(4))))


def test_each_epoch_shows_every_training_scene_once_and_none_that_validates(recipe: Callable[..., Recipe]) -> None:
    """Mean colours, which mirroring leaves as they are, tell which pictures were seen."""
    source = made(recipe).source
    colours = torch.from_numpy(source.scenes.pixels.array.mean((2, 3)) / 127.5 - 1).float()
    for epoch in range(2):
        seen = torch.cat([source.batch(step, range(4)).pictures for step in range(4 * epoch, 4 * epoch + 4)])
        found = [int((colours - one.mean((1, 2))).abs().sum(1).argmin()) for one in seen]
        assert sorted(found) == list(range(16)), "24 scenes, 8 of them held out"


def test_a_batch_may_not_be_split(recipe: Callable[..., Recipe]) -> None:
    assert ContrastiveTask.is_splittable is False


TOWER = "{width = 32, hidden = 64, num_layers = 1, num_heads = 2"
TOWERS = (f"model.picture_tower={TOWER}, patch = 4}}", f"model.caption_tower={TOWER}, length = 40}}")


@pytest.mark.parametrize("towers", [(), TOWERS], ids=["own", "clip"])
def test_it_learns_which_captions_belong_to_a_few_pictures(
    recipe: Callable[..., Recipe], towers: tuple[str, ...]
) -> None:
    """One batch by heart, from no idea (log 8) to nearly none wrong."""
    task = made(recipe, "run.batch=8", *towers)
    assert (task.model.picture_tower is not None) == (task.model.caption_tower is not None) == bool(towers)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=5e-3)
    batch = task.source.batch(0, range(8))
    losses = []
    for _ in range(25):
        loss, figures = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.7
    assert 1 < figures["scale"] <= 100.001


def test_a_tower_is_refused_by_its_key_and_line(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'pach' in \[model.picture_tower\]; did you mean 'patch'"):
        made(recipe, "model.picture_tower={pach = 4}")
    with pytest.raises(ValueError, match=r"a picture tower's size \(16\) must be a multiple of its patch \(5\)"):
        made(recipe, "model.picture_tower={patch = 5}")


def test_a_plan_knows_clips_towers(recipe: Callable[..., Recipe]) -> None:
    planned = outline(recipe("contrastive", *TOWERS))
    with torch.random.fork_rng():
        model = planned.make()
        assert isinstance(model, Pairing)
        assert planned.loss(model, planned.batch(4)).ndim == 0
    assert model.config.picture_tower == made(recipe, *TOWERS).model.config.picture_tower


def test_the_finished_pairing_matches(finished: Callable[[str], RunDirectory]) -> None:
    model = PairingModel.load(finished("contrastive").model)
    pictures = np.zeros((2, 3, 32, 32), dtype=np.uint8)
    assert (model.see(pictures) @ model.read(["a cat", "a dog"]).T).shape == (2, 2)


def test_scenes_are_asked_about_in_words_that_mean_the_value() -> None:
    """Each caption of a value, read back by the prompts' own grammar, names that value."""
    truth = [scenes.Scene("cat", "nothing", "sea", "night", "flat"), scenes.Scene("pig", "crown", "snow", "day", "3d")]
    values, prompts = scene_questions(truth)
    assert values["worn"] == ["nothing", "crown"]
    assert prompts["animal"]["cat"] == ["a cat"]
    for attribute, words in prompts.items():
        assert set(words) == set(scenes.ATTRIBUTES[attribute]) - {"nothing"}
        for value, captions in words.items():
            assert all(scenes.parse(caption)[attribute] == value for caption in captions)


def test_samples_show_what_was_taken_for_the_caption(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    task = made(recipe)
    task.model.eval()
    with torch.no_grad():
        task.sample(tmp_path, 7)
    assert (tmp_path / "step-00000007.png").stat().st_size > 1000
