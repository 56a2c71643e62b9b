"""Whole painters with LoRA files, theirs and the house's own: the finished pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from tests.image.conftest import make_tiny_model
from tests.interop.adapting import RANK, adapt, layers_of
from tests.interop.painters import write_painter
from torch import nn

import diptych
from diptych.core.lora import Adapter, LoraSettings
from diptych.image.model import ImageModel
from diptych.interop.lora import load_lora, write_lora

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PROMPT = "a red fox wearing a hat"
ADAPTED = {
    "sd-1": ("unet", "text_encoder"),
    "sdxl": ("unet", "text_encoder", "text_encoder_2"),
    "sd-3": ("transformer", "text_encoder", "text_encoder_2"),
    "flux-dev": ("transformer", "text_encoder"),
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_a_finished_picture_with_an_adapter_is_that_of_diffusers(kind: str, tmp_path: Path) -> None:
    """The denoiser and the towers are adapted, the file is written by the pipeline, and read again by it."""
    pipeline = write_painter(kind, tmp_path)
    layers = {}
    for seed, part in enumerate(ADAPTED[kind]):
        model = getattr(pipeline, part)
        targets = [
            name for name in layers_of(model) if name.split(".")[-1] in ("q_proj", "fc1", "to_k", "to_q", "proj")
        ]
        layers[f"{part}_lora_layers"] = adapt(model, "default", seed, target_modules=targets, lora_alpha=RANK)
    pipeline.save_lora_weights(tmp_path / "lora", **layers)
    model = diptych.load(str(tmp_path / "whole"), device="cpu", dtype="float32")
    assert isinstance(model, ImageModel)
    noise = torch.randn(1, model.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(3))
    told: dict[str, Any] = {"guidance_scale": 3.0, "height": 16, "width": 16}

    def ours() -> np.ndarray:
        result = model.generate(PROMPT, noise=noise, steps=3, **told).result()
        found: np.ndarray = (model.decode(result.latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return found

    bare = ours()
    name = load_lora(model, tmp_path / "lora")
    model.use_adapter(name)
    worn = ours()
    is_flux = isinstance(pipeline, FluxPipeline)
    latents = pipeline._pack_latents(noise, *noise.shape) if is_flux else noise
    more = {"max_sequence_length": 512} if is_flux else {}
    theirs = pipeline(PROMPT, latents=latents, output_type="np", num_inference_steps=3, **told, **more).images
    assert np.abs(worn - bare).max() > 0.02
    assert np.abs(worn - theirs).max() < 1e-3
    model.use_adapter(None)
    assert np.array_equal(ours(), bare)


def house_adapter(model: ImageModel, seed: int = 1) -> Adapter:
    adapter = Adapter.fresh(
        nn.ModuleDict(model.parts), LoraSettings(targets=("query", "value", "down", "conv1", "conv2"))
    )
    torch.manual_seed(seed)
    for layer in adapter.layers.values():
        nn.init.normal_(layer.b, std=0.1)
    return adapter


def test_a_painter_of_the_house_wears_takes_off_keeps_and_merges(tmp_path: Path) -> None:
    model = make_tiny_model()

    def latents() -> torch.Tensor:
        return model.generate("a cat", steps=3, seed=5).result().latents

    bare = latents()
    model.add_adapter("ink", house_adapter(model))
    model.use_adapter({"ink": 0.7})
    worn = model.generate("a cat", steps=3, seed=5).result()
    assert worn.settings["adapters"] == {"ink": 0.7}
    assert not torch.allclose(worn.latents, bare, atol=1e-2)
    assert any(name.startswith("encoder.") for name in model.adapters["ink"].layers)
    write_lora(model.adapters["ink"], model.parts, tmp_path / "ink.safetensors")
    model.use_adapter(None)
    assert torch.equal(latents(), bare)
    load_lora(model, tmp_path / "ink.safetensors", "again")
    model.use_adapter("again", 0.7)
    torch.testing.assert_close(latents(), worn.latents, rtol=1e-4, atol=1e-4)
    model.merge_adapter("ink", 0.7)
    model.use_adapter(None)
    torch.testing.assert_close(latents(), worn.latents, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="unknown adapter 'agian'; did you mean 'again'"):
        model.use_adapter({"again": 1.0, "agian": 1.0})
    with pytest.raises(ValueError, match="adapter 'again' for tiny: the model has an adapter 'again' already"):
        load_lora(model, tmp_path / "ink.safetensors", "again")
