"""Composed scenes as pictures like any other: the same pixels, words and latents as ever."""

import pickle
from pathlib import Path

import numpy as np
import torch

from diptych.core.randomness import generator
from diptych.data import scenes
from diptych.data.latents import latents_of
from diptych.data.rendered import render
from diptych.data.scene_pictures import AT_ONCE, averaged, blank_pictures, scene_pictures, some_averaged
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig


def test_scenes_are_pictures_with_a_fresh_caption_at_every_sight(world: Path) -> None:
    drawn = render(5, 7, 16)
    pictures = pickle.loads(pickle.dumps(scene_pictures(5, 7, 16)))
    assert len(pickle.dumps(pictures)) < 1000, "the pictures stay on disk"
    assert (len(pictures), pictures.size(3), pictures.key) == (7, (16, 16), drawn.key)
    for index in range(7):
        assert np.array_equal(pictures.read(index), drawn.pictures[index].transpose(1, 2, 0))
        seen = [pictures.caption(index, sight) for sight in range(9)]
        assert seen[0] == scenes.sample_scene(5, index)[2]
        assert len(set(seen)) > 3
        for sight, caption in enumerate(seen):
            draw = generator(seed=5, sample=index, step=sight, stream=4)
            assert caption == scenes.random_caption(drawn.truth[index], draw)


def test_latents_of_scenes_are_what_they_were(world: Path) -> None:
    """Bit for bit against encoding the drawn array 64 at a time, on which the shipped painter was trained."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(latent_channels=4, widths=(8, 16))).requires_grad_(False).eval()
    autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    drawn = render(11, 70, 32).pictures
    expected = []
    for start in (0, 64):
        part = torch.from_numpy(drawn[start : start + 64].copy()).float() / 127.5 - 1
        expected.append(autoencoder.encode(part.contiguous(memory_format=torch.channels_last)).half().numpy())
    found = latents_of(autoencoder, scene_pictures(11, 70, 32), (32, 32), torch.float32)
    assert np.array_equal(found.values.array, np.concatenate(expected))
    assert found.is_whole.array.all()


def test_pictures_averaged_few_at_a_time_are_those_averaged_together(tmp_path: Path) -> None:
    pixels = blank_pictures(0, 32, tmp_path).pixels
    drawn = np.random.default_rng(1).integers(0, 256, (2 * AT_ONCE + 3, 3, 32, 32), np.uint8)
    np.save(pixels.path, drawn, allow_pickle=False)
    rows = list(range(len(drawn)))[::-1]
    assert torch.equal(some_averaged(pixels, rows, 8), averaged(torch.from_numpy(drawn[rows]), 8))
