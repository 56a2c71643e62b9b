"""A tiny decoder with random weights and a tokenizer of bytes: small enough for every test, real in every part."""

import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    stories = ["Once upon a time there was a cat. The cat saw a dog and said hello.", "A fox ran over the hill. 🦊 é ö"]
    return Tokenizer.train(stories * 3, 290, ["<|begin|>", "<|end|>"])


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=tokenizer.size,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        hidden=48,
        context=64,
    )


@pytest.fixture(scope="session")
def decoder(config: DecoderConfig) -> Decoder:
    torch.manual_seed(3)
    decoder = Decoder(config)
    with torch.no_grad():  # larger weights than at the start of training: distributions that are not flat
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    return decoder.eval()


@pytest.fixture(scope="session")
def model(decoder: Decoder, tokenizer: Tokenizer) -> TextModel:
    return TextModel("tiny", decoder, tokenizer)
