"""A tiny image model with random weights: what does not depend on training is tested on it."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from diptych.core.tokenizer import Tokenizer
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.encoders import EncoderConfig, TextEncoder
from diptych.image.model import ImageModel
from diptych.image.moves import Visit
from diptych.image.path import Node, Path
from diptych.image.prompts import OwnPrompter
from diptych.image.samplers import VISITS, Sampler, sampler_named
from diptych.image.unet import UNet, UNetConfig


def make_tiny_model(seed: int = 0) -> ImageModel:
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(["a cat on a beach", "a dog in a forest at night"], 300)
    encoder = TextEncoder(EncoderConfig(vocab_size=tokenizer.size, width=32, num_layers=1, num_heads=2, length=24))
    unet = UNet(
        UNetConfig(channels=4, widths=(32, 64), blocks=1, has_attention=(False, True), head_dim=32, context_width=32)
    )
    autoencoder = Autoencoder(AutoencoderConfig(latent_channels=4, fold=4, widths=(16, 32), decoder_blocks=1))
    for module in (unet, autoencoder):
        # What starts at zero would leave parts of the network unseen by the tests.
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        module.eval().requires_grad_(False)
    encoder.eval().requires_grad_(False)
    return ImageModel(
        "tiny",
        prompter=OwnPrompter(encoder, tokenizer),
        network=unet,
        autoencoder=autoencoder,
        path="ddpm-cosine",
        size=64,
    )


@pytest.fixture(scope="session")
def tiny() -> ImageModel:
    return make_tiny_model()


Denoised = Callable[[Tensor, Node], Tensor]


@pytest.fixture(scope="session")
def solve() -> Callable[..., Tensor]:
    """The runner's loop, without a runner: nodes from the noisiest to the last that is wanted."""

    def solve(
        sampler: str | Sampler,
        path: Path,
        nodes: list[Node],
        x: Tensor,
        denoised: Denoised,
        noises: Iterable[Tensor] = (),
    ) -> Tensor:
        """`noises` are those of each call, where the sampler is random."""
        row = sampler_named(sampler) if isinstance(sampler, str) else sampler
        route, draws = row.route(path, nodes), iter(noises)
        visits: list[Visit] = []
        for index, here in enumerate(route[:-1]):
            visits = [*visits[1 - VISITS :], Visit(here, x, denoised(x, here))]
            x = row.step(visits, route[index + 1 :], next(draws) if row.is_random else torch.zeros(()))
        return x

    return solve
