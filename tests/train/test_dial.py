"""The dial: what follows from depth, what stays as it was set, and that the family goes through its anchors."""

from pathlib import Path
from typing import Any

import pytest

from diptych.text.decoder import DecoderConfig
from diptych.train.dial import IMAGE, TEXT, best_batch, decoder_parameters, decoder_width, derive, learning_rate
from diptych.train.recipe import read_recipe
from diptych.train.tasks.diffusion import _network_sizes

TALE = """
[run]
objective = "next-token"
steps = 20

[model]
depth = 8
context = 384

[data]
mix = { "tale.txt" = 1 }

[optimizer]
name = "muon"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "tale.toml"
    path.write_text(text)
    return path


def text(depth: Any, **run: int) -> dict[str, Any]:
    return {
        "run": {"objective": "next-token", **run},
        "model": {"depth": depth, "context": 384},
        "optimizer": {"name": "muon"},
    }


def test_the_family_goes_through_the_recipe_that_was_measured(tmp_path: Path) -> None:
    """Depth 8 is quill: 12 rows of 384 tokens, Muon at 3e-3; depth 8 is brush: its widths, 32 pictures, 8e-4."""
    recipe = read_recipe(written(tmp_path, TALE))
    assert (recipe.run.batch, recipe.optimizer.learning_rate) == (12, 3e-3)
    assert derive({"run": {"objective": "diffusion"}, "model": {"depth": 8}}) == {
        "model.unet.widths": [128, 256],
        "model.unet.blocks": 1,
        "model.unet.has_attention": [False, True],
        "model.encoder.width": 256,
        "model.encoder.num_layers": 2,
        "model.encoder.num_heads": 4,
        "run.batch": 32,
        "optimizer.learning_rate": 8e-4,
    }


def test_the_dial_and_the_decoder_agree_on_the_width() -> None:
    """Two files, one rule; the parameters of the blocks are those of a decoder of that depth."""
    for depth in (1, 4, 8, 12, 20, 48):
        sizes = DecoderConfig.from_depth(depth, 4096, 512)
        assert decoder_width(depth) == sizes.width
        assert decoder_parameters(sizes.width, depth) == depth * sizes.width * (4 * sizes.width + 3 * sizes.hidden)


def test_batch_and_rate_follow_their_laws() -> None:
    """Eight times the parameters (twice the depth): a batch of 8^0.383; the rate by the roots of batch and width."""
    assert best_batch(TEXT, 8 * TEXT.parameters) == pytest.approx(8**0.383 * TEXT.batch)
    assert learning_rate(TEXT, "muon", TEXT.width, 4 * TEXT.batch) == pytest.approx(2 * 3e-3)
    assert learning_rate(TEXT, "muon", 4 * TEXT.width, TEXT.batch) == pytest.approx(3e-3 / 2)
    assert learning_rate(IMAGE, "adamw", 4 * IMAGE.width, IMAGE.batch) == pytest.approx(8e-4 / 4)


def test_what_is_set_by_hand_stays_and_the_rest_follows_it(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, TALE), ["run.batch=48", "model.overrides.width=1280"])
    assert recipe.run.batch == 48
    assert recipe.optimizer.learning_rate == pytest.approx(3e-3 * (320 / 1280) ** 0.5 * (48 / 12) ** 0.5)
    assert read_recipe(written(tmp_path, TALE), ["optimizer.learning_rate=0.5"]).optimizer.learning_rate == 0.5
    by_hand = {"run": {"objective": "diffusion", "batch": 8}, "model": {"depth": 16, "unet": {"widths": [64, 64, 64]}}}
    derived = derive(by_hand)
    assert "run.batch" not in derived
    assert "model.unet.widths" not in derived
    assert "model.unet.has_attention" not in derived, "it has an entry for each of the widths"


def test_larger_models_have_larger_batches_and_smaller_rates() -> None:
    found = [derive(text(depth)) for depth in (8, 12, 16, 24, 32)]
    batches = [one["run.batch"] for one in found]
    assert batches == sorted(set(batches))
    rates = [derive(text(depth, batch=12))["optimizer.learning_rate"] for depth in (8, 16, 32)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("depth", [0, -3, True, "deep", 2.5, None])
def test_a_dial_that_its_task_refuses_derives_nothing(depth: Any) -> None:
    assert derive(text(depth)) == {}


def test_every_size_of_the_image_family_is_one_that_can_be(tmp_path: Path) -> None:
    picture = '[run]\nobjective = "diffusion"\nsteps = 2\n[model]\ndepth = 8\n[data]\nautoencoder = "none"\n'
    for depth in (1, 2, 6, 8, 11, 16, 40):
        recipe = read_recipe(written(tmp_path, picture), [f"model.depth={depth}"])
        encoder, unet = _network_sizes(recipe, {})
        assert encoder.width == unet.context_width == 2 * unet.widths[0]
        assert recipe.resolved()["model"]["unet"]["widths"] == list(unet.widths)
