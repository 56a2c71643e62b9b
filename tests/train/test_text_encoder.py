"""A painter whose text encoder was trained before: it rests, and what it makes of captions comes from the cache."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.weights import read_tensors
from diptych.image.encoders import encode_prompts, trained_encoder
from diptych.image.model import ImageModel
from diptych.train.loop import train
from diptych.train.outline import outline_of
from diptych.train.recipe import Recipe, read_recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build
from diptych.train.tasks.diffusion import DiffusionTask

Finished = Callable[[str], RunDirectory]


@pytest.fixture
def own(world: Path, finished: Finished, tmp_path: Path, recipe_texts: dict[str, str]) -> Callable[..., Recipe]:
    """A recipe for pictures of one's own with the text encoder of a pairing."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture number {number} of the sea")
    text = re.sub(r"\[model\.encoder\].*?\n\n", "", recipe_texts["diffusion"], flags=re.DOTALL)
    text = text.replace("AUTOENCODER", str(finished("autoencoder").model)).replace("vocab_size = 300\n", "")
    text = text.replace("held_out = 8", "held_out = 4")
    text += f'pictures = "{folder}"\ntext_encoder = "{finished("contrastive").model}"\n'
    path = tmp_path / "own.toml"

    def read(*overrides: str, add: str = "") -> Recipe:
        path.write_text(text + add)
        return read_recipe(path, list(overrides))

    return read


def test_words_are_what_the_encoder_makes_of_the_captions(own: Callable[..., Recipe], finished: Finished) -> None:
    task = build(own("model.caption_dropout=0.5"))
    assert isinstance(task, DiffusionTask)
    encoder, tokenizer = trained_encoder(finished("contrastive").model)
    batch = task.source.batch(2, range(4))
    captions = task.source.source.captions(2, range(4))
    assert "" in captions
    tokens, mask = encode_prompts(tokenizer, captions, encoder.config.length)
    with torch.no_grad():
        expected = encoder(tokens, mask)
    assert torch.equal(batch.mask, mask)
    assert torch.allclose(batch.words[mask], expected[mask], atol=2e-3)


def test_it_trains_saves_and_paints_and_the_encoder_rests(
    own: Callable[..., Recipe], finished: Finished, tmp_path: Path
) -> None:
    recipe = own()
    task = build(recipe)
    assert isinstance(task, DiffusionTask)
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    moved = [value.clone() for value in task.painter.network.parameters()]
    run = RunDirectory(tmp_path / "run")
    train(recipe, task, run, lambda progress: None)
    assert all(torch.equal(value, before[name]) for name, value in task.encoder.state_dict().items())
    assert not all(torch.equal(*pair) for pair in zip(moved, task.painter.network.parameters(), strict=True))

    saved, pairing = read_tensors(run.model), read_tensors(finished("contrastive").model)
    words = [name for name in saved if name.startswith("encoder.")]
    assert words
    assert all(torch.equal(saved[name], pairing[name].to(saved[name].dtype)) for name in words)
    painted = ImageModel.load(run.model, device="cpu").generate("the sea", steps=2, seed=1).result()
    assert painted.image.size == (32, 32)
    assert "trained before it" in (run.model / "README.md").read_text()


def test_a_plan_knows_what_rests(own: Callable[..., Recipe]) -> None:
    recipe = own()
    outline, task = outline_of(recipe), build(recipe)
    model = outline.make()
    assert len(outline.networks(model)) == len(task.networks) == 1
    trained = [sum(p.numel() for p in one.parameters() if p.requires_grad) for one in (model, task.model)]
    assert trained[0] == trained[1]
    batch, real = outline.batch(4), task.source.batch(0, range(4))
    assert [(x.shape, x.dtype) for x in batch] == [(x.shape, x.dtype) for x in real]
    assert torch.isfinite(outline.loss(model, batch))


@pytest.mark.parametrize(
    ("change", "add", "message"),
    [
        ('data.pictures=""', "", "data.text_encoder needs data.pictures"),
        ("run.seed=1", "\n[model.encoder]\nwidth = 32\n", "[model.encoder] must be left out"),
        ('data.text_encoder="no/where"', "", "there is no text encoder at 'no/where'"),
        ('data.text_encoder="AUTOENCODER"', "", "is not a checkpoint with a text encoder"),
    ],
)
def test_what_does_not_go_together_is_said(
    own: Callable[..., Recipe], finished: Finished, change: str, add: str, message: str
) -> None:
    recipe = own(change.replace("AUTOENCODER", str(finished("autoencoder").model)), add=add)
    for refused in (build, outline_of):
        with pytest.raises(ValueError, match=re.escape(message)):
            refused(recipe)
