"""CLIP as transformers wrote it, whole, places pictures and captions here where it places them there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diptych.image.pairing import PairingModel
from diptych.interop.pairings import open_pairing

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CAPTIONS = ["a cat on a beach", "A dog, at night!", "a fox"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP whose vocabulary is the bytes."""
    directory = tmp_path_factory.mktemp("clip")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({name: place for place, name in enumerate(names)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    text = SIZES | {"vocab_size": len(names), "max_position_embeddings": 24, "eos_token_id": len(names) - 1}
    text |= {"bos_token_id": len(names) - 2}
    vision = SIZES | {"image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    model.save_pretrained(directory)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
    return directory


@torch.no_grad()
def test_pictures_and_captions_lie_where_they_lie_there(clip: Path, tmp_path: Path) -> None:
    """Pictures of another size are prepared as Pillow prepares them, to the rounding of its bytes."""
    other, ours = CLIPModel.from_pretrained(clip).eval(), open_pairing(clip, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    prepare = CLIPImageProcessorPil.from_pretrained(clip)
    words = CLIPTokenizer.from_pretrained(clip)(CAPTIONS, padding="max_length", max_length=24, return_tensors="pt")
    images = [Image.fromarray(one.transpose(1, 2, 0)) for one in pixels]
    there = other(**words, **prepare(images, return_tensors="pt"))
    torch.testing.assert_close(ours.see(pixels), F.normalize(there.image_embeds, dim=-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.read(CAPTIONS), F.normalize(there.text_embeds, dim=-1), rtol=0, atol=1e-4)
    scale = ours.network.log_scale.exp()
    torch.testing.assert_close(scale * ours.similarities(pixels, CAPTIONS), there.logits_per_image, rtol=0, atol=1e-3)
    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60))
    seen = other.get_image_features(**prepare([smooth], return_tensors="pt")).pooler_output
    found = ours.see(np.asarray(smooth).transpose(2, 0, 1)[None])
    assert (found * F.normalize(seen, dim=-1)).sum() > 0.9995
    ours.save(tmp_path / "ours")
    again = PairingModel.load(tmp_path / "ours", device="cpu")
    assert torch.equal(again.see(pixels), ours.see(pixels))
    assert torch.equal(again.read(CAPTIONS), ours.read(CAPTIONS))


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, "'image_mean' must be"),
        ("preprocessor_config.json", {"size": 48}, "'size' must be 32, not 48"),
        ("config.json", {"text_config": 3}, "'text_config' must be a table"),
        ("config.json", {"projection_dim": 21}, "the model needs (21, 32)"),
    ],
)
def test_what_does_not_fit_is_named(clip: Path, tmp_path: Path, file: str, entries: dict, message: str) -> None:
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | entries))
    with pytest.raises(ValueError) as caught:
        open_pairing(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
