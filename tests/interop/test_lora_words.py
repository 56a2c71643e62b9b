"""LoRA files for text encoders, by all names that they have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interop.adapting import HALVES, RANK, adapt, agree, kohyas, layers_of, saved
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from diptych.core.adapters import Adapters
from diptych.interop.encoders import open_encoder
from diptych.interop.lora import read_lora

CLIP = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "projection_dim": 24,
    "eos_token_id": 59,
    "bos_token_id": 58,
}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
ENCODERS: dict[str, Callable[[], Any]] = {
    "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**CLIP)),
    "text_encoder_2": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP)),
    "text_encoder_3": lambda: T5EncoderModel(T5Config(**T5, feed_forward_proj="gated-gelu")),
}
TOKENS = torch.tensor([[58, 5, 9, 33, 59, 59, 59, 59]])


def encoders(folder: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], nn.ModuleDict]:
    """Three text encoders with adapters of PEFT's, the tensors of those, and the same encoders here without."""
    models, tensors, ours = {}, {}, {}
    for name, make in ENCODERS.items():
        torch.manual_seed(2)
        model = make().eval().requires_grad_(False)
        model.save_pretrained(folder / name)
        models[name], ours[name] = model, open_encoder(folder / name)
        targets = [layer for layer in layers_of(model) if not layer.endswith("text_projection")]
        tensors[name] = adapt(model, target_modules=targets, **settings)
    return models, tensors, nn.ModuleDict(ours)


def agree_on_words(models: dict[str, Any], ours: nn.ModuleDict, file: Path) -> None:
    adapters = Adapters(ours, casts=True)
    with torch.no_grad():
        bare = {name: ours[name](TOKENS) for name in models}
        adapters.add("words", read_lora(file, dict(ours.items())))
        adapters.use("words")
        for name, model in models.items():
            expected, found = model(TOKENS), ours[name](TOKENS)
            if name == "text_encoder_3":
                agree(found, expected.last_hidden_state, bare[name])
            else:
                agree(found.context, expected.last_hidden_state, bare[name].context)
                pooled = expected.pooler_output if name == "text_encoder" else expected.text_embeds
                agree(found.pooled, pooled, bare[name].pooled)


@pytest.mark.parametrize("tower", ["", "text_model."])
def test_text_encoders_by_diffusers_names(tower: str, tmp_path: Path) -> None:
    """With what stood before a tower's names until lately, and without."""
    models, tensors, ours = encoders(tmp_path, lora_alpha=RANK)
    whole = {
        f"{name}.{tower if name != 'text_encoder_3' else ''}{key.removeprefix('text_model.')}": tensor
        for name, found in tensors.items()
        for key, tensor in found.items()
    }
    agree_on_words(models, ours, saved(whole, tmp_path / "words.safetensors"))


@pytest.mark.parametrize("fifth", ["text_encoder_2", "text_encoder_3"])
def test_text_encoders_by_kohyas_names(fifth: str, tmp_path: Path) -> None:
    """lora_te3_ is T5, which is Flux's second encoder and Stable Diffusion 3's third."""
    models, tensors, ours = encoders(tmp_path, lora_alpha=2)
    begin = {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
    if fifth == "text_encoder_2":
        kept = {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_3"}
        del models["text_encoder_2"], tensors["text_encoder_2"], begin["text_encoder_2"]
        ours = nn.ModuleDict({name: ours[one] for name, one in kept.items()})
        models = {"text_encoder": models["text_encoder"]}
    whole: dict[str, Tensor] = {}
    for name, found in tensors.items():
        plain = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
        whole |= kohyas(plain, begin.get(name, "lora_te3_"), alpha=2)
    file = saved(whole, tmp_path / "kohya.safetensors")
    adapter = read_lora(file, dict(ours.items()))
    assert {name.partition(".")[0] for name in adapter.layers} == set(dict(ours.items()))
    agree_on_words(models, ours, file)


def test_text_encoders_by_older_names(tmp_path: Path) -> None:
    """...self_attn.to_q_lora.down.weight and ...mlp.fc1.lora_linear_layer.down.weight."""
    models, tensors, ours = encoders(tmp_path, lora_alpha=RANK)
    words = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
    whole = {}
    for key, tensor in tensors["text_encoder"].items():
        name, half = key.removesuffix(".weight").rsplit(".", 1)
        begin, _, last = name.rpartition(".")
        layer = f"{begin}.{words[last]}" if last in words else f"{name}.lora_linear_layer"
        whole[f"text_encoder.text_model.{layer}.{HALVES[half]}.weight"] = tensor
    only = nn.ModuleDict({"text_encoder": ours["text_encoder"]})
    agree_on_words({"text_encoder": models["text_encoder"]}, only, saved(whole, tmp_path / "older.safetensors"))
