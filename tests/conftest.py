"""Checkpoints of both panels with tiny random networks: real in every part, made once a session, no data needed."""

from pathlib import Path

import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.encoders import EncoderConfig, TextEncoder
from diptych.image.model import ImageModel
from diptych.image.unet import UNet, UNetConfig
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel

WORDS = ["Once upon a time there was a cat on a beach at sunset. It wore sunglasses.", "🦊 é ö"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny networks are slower on several threads, much slower where other work keeps the cores busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs in this process would change the rest of the session."""
    monkeypatch.setattr("diptych.train.allocator.keep_freed_memory", lambda: False)


@pytest.fixture(scope="session")
def tiny_quill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text checkpoint directory: 4,096 tokens of context, a vocabulary of 290."""
    directory = tmp_path_factory.mktemp("models") / "tiny-quill"
    tokenizer = Tokenizer.train(WORDS * 3, 290)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = DecoderConfig(
            vocab_size=tokenizer.size,
            width=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            hidden=48,
            context=4096,
        )
        decoder = Decoder(config).eval()
    with torch.no_grad():  # larger weights than at the start of training: distributions that are not flat
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    TextModel("tiny-quill", decoder, tokenizer).save(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_brush(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image checkpoint directory: pictures of 32 x 32 pixels, latents of 4 x 8 x 8."""
    directory = tmp_path_factory.mktemp("models") / "tiny-brush"
    tokenizer = Tokenizer.train(WORDS * 3, 290)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        parts = (
            TextEncoder(EncoderConfig(vocab_size=tokenizer.size, width=32, num_layers=1, num_heads=2, length=48)),
            UNet(UNetConfig(channels=4, widths=(32,), has_attention=(True,), head_dim=16, context_width=32)),
            Autoencoder(AutoencoderConfig(latent_channels=4, widths=(8, 16), decoder_blocks=1)),
        )
        with torch.no_grad():  # what training starts at zero is given something to say
            for parameter in (parameter for part in parts for parameter in part.eval().parameters()):
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=0.05)
    encoder, unet, autoencoder = parts
    model = ImageModel(
        "tiny-brush",
        encoder=encoder,
        unet=unet,
        autoencoder=autoencoder,
        tokenizer=tokenizer,
        path="ddpm-linear",
        size=32,
    )
    model.save(directory)
    return directory
