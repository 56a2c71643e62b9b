"""What CLIP's towers and T5's encoder do by themselves; that they are the published ones is in tests/interop."""

import math

import pytest
import torch
import torch.nn.functional as F

from diptych.image.clip import PictureTower, PictureTowerConfig, TextTower, TextTowerConfig
from diptych.image.t5 import T5Config, distance_buckets

SIZES = {"width": 16, "hidden": 24, "num_layers": 2, "num_heads": 2}


def text_tower(end):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return TextTower(TextTowerConfig(**SIZES, vocab_size=40, length=12, end=end)).eval()


@torch.no_grad()
def test_what_stands_after_the_end_changes_neither_the_whole_nor_what_was_before():
    tower = text_tower(38)
    tokens = torch.tensor([[1, 5, 9, 38, 38, 38], [1, 5, 9, 38, 0, 7]])
    read = tower(tokens)
    torch.testing.assert_close(read.pooled[0], read.pooled[1])
    torch.testing.assert_close(read.context[0, :4], read.context[1, :4])
    torch.testing.assert_close(read.pooled[0], read.context[0, 3])  # the first end, not the last


@torch.no_grad()
def test_without_an_end_the_token_of_the_highest_number_is_it():
    tokens = torch.tensor([[1, 39, 5, 38]])
    read = text_tower(None)(tokens)
    torch.testing.assert_close(read.pooled[0], read.context[0, 1])


@torch.no_grad()
def test_a_picture_of_any_size_is_brought_to_the_towers():
    """The middle square: what lies beyond it changes nothing, and mean and std leave a standard picture."""
    tower = PictureTower(PictureTowerConfig(**SIZES, size=16, patch=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    square = torch.rand(1, 3, 16, 16) * 2 - 1
    wide = F.pad(square, (16, 16), value=1.0)
    torch.testing.assert_close(tower.prepared(wide), tower.prepared(square), rtol=0, atol=1e-5)
    mean, std = (torch.tensor(values)[:, None, None] for values in (tower.config.mean, tower.config.std))
    torch.testing.assert_close(tower.prepared((mean * 2 - 1).expand(1, 3, 64, 32)), torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(tower.prepared(square) * std + mean, (square + 1) / 2)
    assert tower(wide).context.shape == (1, 5, 16)


def test_distances_fall_into_buckets_as_the_paper_has_them():
    """32 buckets to 128: 8 exact and 8 logarithmic ones each way, and one for all that is farther."""
    kinds = distance_buckets(300, 32, 128)
    assert kinds[150, 150:158].tolist() == [0, *range(17, 24)]
    assert kinds[150, 142:151].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    for distance in (8, 11, 16, 40, 90, 127):
        bucket = 8 + math.floor(math.log(distance / 8) / math.log(128 / 8) * 8 + 1e-6)
        assert (kinds[150, 150 - distance], kinds[150, 150 + distance]) == (bucket, bucket + 16)
    assert kinds[150, :22].unique().tolist() == [15]
    assert kinds[0, 0] == kinds[299, 299] == 0


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TextTowerConfig, {"num_heads": 3}, "a multiple of num_heads (3)"),
        (TextTowerConfig, {"activation": "gelo"}, "unknown activation 'gelo'; did you mean 'gelu'"),
        (TextTowerConfig, {"length": 2}, "a length of at least 3, not 49408 and 2"),
        (PictureTowerConfig, {"patch": 15}, "size (224) must be a multiple of its patch (15)"),
        (PictureTowerConfig, {"std": [1, 1, 0]}, "std above 0"),
        (T5Config, {"buckets": 30}, "buckets (30) must be a multiple of 4"),
        (T5Config, {"hidden": 1.5}, "T5 hidden must be a whole number, not 1.5"),
    ],
)
def test_a_setting_that_is_wrong_is_named(config, values, message):
    with pytest.raises(ValueError) as caught:
        config.from_dict(values)
    assert message in str(caught.value)
