"""The image model as a whole: its checkpoint, its parts, its loss by noise level."""

import json
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.condition import Condition
from diptych.image.denoiser import Denoiser
from diptych.image.encoders import encode_prompts
from diptych.image.model import ImageModel
from diptych.image.objective import autoencoder_loss
from diptych.image.path import path_named
from diptych.image.unet import UNet, UNetConfig


def test_a_saved_model_paints_the_same(tiny: ImageModel, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model", "card", dtype=torch.float32)
    again = ImageModel.load(tmp_path / "model", dtype="float32")
    one, two = (model.generate("a cat", steps=3, seed=1).result() for model in (tiny, again))
    assert torch.allclose(one.latents, two.latents, atol=1e-4 * float(one.latents.abs().max()))
    assert (tmp_path / "model" / "README.md").read_text() == "card"


def test_a_named_path_is_made_once(tiny: ImageModel) -> None:
    assert tiny.path_of((8, 8)) is tiny.path_of((4, 6)) is tiny.path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": {"channels": 4, "widths": [33]}}, "U-Net widths must be multiples of 32"),
        ({"unet": {"chanels": 4}}, "unknown U-Net setting 'chanels'; did you mean 'channels'"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon'; known: noise, image, v, velocity, edm"),
        ({"path": "rectified-flow"}, "begins with pure noise, where predicting the noise says nothing"),
        ({"path": "straight"}, "unknown path 'straight'"),
        ({"colour": 1}, "unknown setting in config.json 'colour'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tiny: ImageModel, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    tiny.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        ImageModel.load(tmp_path / "model")


def test_a_truncated_checkpoint_is_refused_in_one_line(tiny: ImageModel, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged or not a safetensors file") as caught:
        ImageModel.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_padding_of_a_prompt_changes_nothing(tiny: ImageModel) -> None:
    """The mask hides it, in the encoder and in the cross-attention."""
    short = tiny.encode(["a cat"])
    words = int(short.mask.sum())
    x = torch.randn(1, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))
    level = torch.zeros(1)
    whole = tiny.network(x, level, short.context, short.mask)
    cut = tiny.network(x, level, short.context[:, :words], short.mask[:, :words])
    assert torch.allclose(whole, cut, atol=1e-5)
    tokens, mask = encode_prompts(tiny.prompter.tokenizer, ["a cat"], tiny.prompter.encoder.config.length)
    other = tokens.clone()
    other[~mask] = 7
    assert torch.allclose(
        tiny.prompter.encoder(tokens, mask)[mask], tiny.prompter.encoder(other, mask)[mask], atol=1e-5
    )


def test_words_and_noise_level_reach_the_picture(tiny: ImageModel) -> None:
    """Each of the U-Net's three inputs matters."""
    x = torch.randn(1, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))
    cat, dog = tiny.encode(["a cat"]), tiny.encode(["a dog at night"])
    base = tiny.network(x, torch.zeros(1), cat.context, cat.mask)
    assert not torch.allclose(base, tiny.network(x, torch.zeros(1), dog.context, dog.mask), atol=1e-4)
    assert not torch.allclose(base, tiny.network(x, torch.ones(1) * 3, cat.context, cat.mask), atol=1e-4)
    assert not torch.allclose(base, tiny.network(x + 1, torch.zeros(1), cat.context, cat.mask), atol=1e-4)


@pytest.mark.parametrize("widths", [(32,), (32, 64), (32, 32, 64)])
def test_the_unet_keeps_the_shape(widths: tuple[int, ...]) -> None:
    config = UNetConfig(
        channels=3, widths=widths, blocks=2, has_attention=(True,) * len(widths), head_dim=32, context_width=16
    )
    x = torch.randn(2, 3, 16, 24)
    unet = UNet(config)
    out = unet(x, torch.zeros(2), torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
    assert out.shape == x.shape
    assert not out.any()  # the last convolution starts at zero: an untrained network predicts no noise


class Oracle(nn.Module):
    """Knows the clean picture, and so the noise."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = nn.Parameter(clean)

    def forward(self, x: Tensor, log_snr: Tensor, context: Tensor, mask: Tensor, *_: None) -> Tensor:
        alpha = torch.sigmoid(log_snr).sqrt()[:, None, None, None]
        sigma = torch.sigmoid(-log_snr).sqrt()[:, None, None, None]
        return (x - alpha * self.clean) / sigma


@pytest.mark.parametrize("name", ["ddpm-cosine", "ddpm-linear", "variance-exploding"])
def test_a_network_that_knows_the_noise_makes_a_denoiser_that_knows_the_picture(name: str) -> None:
    """On every path: the denoiser undoes scaling and noise exactly."""
    path = path_named(name)
    clean = torch.linspace(-1, 1, 2 * 4 * 4).reshape(2, 1, 4, 4)
    nodes = [path.node(0.3), path.node(0.7)]
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x = torch.stack([node.alpha * clean[k] + node.sigma * noise[k] for k, node in enumerate(nodes)])
    condition = Condition(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool))
    # The network sees x / sqrt(alpha^2 + sigma^2), which is the same picture on the variance-preserving path.
    tolerance = 2e-2 if path.kind == "exploding" else 1e-4
    assert torch.allclose(Denoiser(Oracle(clean), "noise", path)(x, nodes, condition), clean, atol=tolerance)


def test_latents_are_normalised_and_come_back() -> None:
    """`measure` brings the latents to mean 0 and deviation 1, and decoding undoes it."""
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(latent_channels=4, widths=(16, 32)))
    pictures = torch.rand(8, 3, 32, 32) * 2 - 1
    before = model.decoder(model.moments(pictures)[0])
    model.measure(pictures.split(3))
    latents = model.encode(pictures)
    assert latents.shape == (8, 4, 4, 4)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-5
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert torch.allclose(model.decode(latents), before, atol=1e-4)


def test_the_autoencoder_learns_one_picture() -> None:
    """A few steps on one batch: the loss falls, and so do all of its gradients reach all of its weights."""
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(latent_channels=4, widths=(16, 32), decoder_blocks=1))
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    noise = torch.randn(2, 4, 2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, figures = autoencoder_loss(model, pictures, noise, edge_weight=0.5, kl_weight=1e-4)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert set(figures) == {"pixels", "kl", "psnr"}


def test_noise_loss_takes_pictures_as_they_are_opened(tiny: ImageModel) -> None:
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
    assert tiny.noise_loss(images, ["a cat"] * 3) == tiny.noise_loss(pixels, ["a cat"] * 3)


@pytest.mark.parametrize("asked", [{}, {"negative_prompt": "night"}, {"guidance_scale": 1.0}])
def test_a_recorded_network_paints_the_same(
    tiny: ImageModel, recordings: type, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """As on a GPU; words are watched directly, by hooks, before and after."""
    about = {"steps": 6, "seed": 3, **asked}
    expected = tiny.generate("a cat at night", **about).result().image.tobytes()
    again = copy(tiny)
    again.denoiser = Denoiser(tiny.network, tiny.denoiser.prediction.word, tiny.path)
    monkeypatch.setattr("diptych.image.denoiser.Graphs", recordings)
    for words in (False, True, False):
        painted = again.generate("a cat at night", words=words, **about).result()
        assert painted.image.tobytes() == expected
    calls = again.denoiser._recorded[0].calls
    assert list(calls.values()) == [12]
