"""Text encoders, towers and autoencoders that transformers and diffusers wrote compute here what they compute there."""

import json
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from diptych.core import weights
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.clip import PictureTower, PictureTowerConfig, TextTower, TextTowerConfig
from diptych.image.t5 import T5Config as OurT5Config
from diptych.image.t5 import T5Encoder
from diptych.interop.autoencoders import open_autoencoder
from diptych.interop.encoders import open_encoder

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
WORDS = {"vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 58}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_heads": 2}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 2,
    "norm_num_groups": 8,
}
# The text encoders of painters, as their authors publish them, but small.
TEXTS = {
    "sd-1": (CLIPTextModel, CLIPTextConfig, TOWER | WORDS | {"hidden_act": "quick_gelu", "eos_token_id": 2}),
    "sd-2": (CLIPTextModel, CLIPTextConfig, TOWER | WORDS | {"hidden_act": "gelu", "eos_token_id": 59}),
    "sdxl": (
        CLIPTextModelWithProjection,
        CLIPTextConfig,
        TOWER | WORDS | {"hidden_act": "gelu", "projection_dim": 20, "eos_token_id": 2},
    ),
    "sd-3": (
        CLIPTextModelWithProjection,
        CLIPTextConfig,
        TOWER | WORDS | {"hidden_act": "quick_gelu", "projection_dim": 32, "eos_token_id": 59},
    ),
}
T5S = {
    "t5-1.1": T5 | {"feed_forward_proj": "gated-gelu"},
    "t5-1.0": T5 | {"feed_forward_proj": "relu", "relative_attention_num_buckets": 16},
    "t5-silu": T5 | {"feed_forward_proj": "gated-silu", "relative_attention_max_distance": 20},
}
VAES = {
    "sd": VAE | {"latent_channels": 4},
    "sdxl": VAE | {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True, "sample_size": 1024},
    "flux": VAE
    | {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1159,
        "scaling_factor": 0.3611,
    },
    "playground": VAE | {"latents_mean": [-1.6, 1.1, 2.7, -0.2], "latents_std": [8.4, 5.9, 6.0, 4.9]},
    "bare": VAE | {"mid_block_add_attention": False, "layers_per_block": 1},
}


def written(model, directory):
    """The model with weights that are not as at the start of training, in a folder of its own library."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(float(is_scale), 0.3 if parameter.ndim == 2 else 0.1)
    model.save_pretrained(directory)
    return model.eval()


def captions():
    tokens = torch.randint(3, 58, (3, 16), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate((6, 11, 15)):
        tokens[row, 0], tokens[row, end] = 58, 59
        tokens[row, end + 1 :] = (59, 0, 0)[row]  # as each of them pads
    return tokens


def assert_near(found, wanted):
    assert wanted.std() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", TEXTS)
@torch.no_grad()
def test_every_hidden_state_that_a_painter_takes_from_clip_is_equal(kind, tmp_path):
    """The last one normed (SD1, SD2), the last but one as it is (SDXL, SD3) and normed (SD1 with clip skip), and the
    pooled one, where the end is the first of its kind or the highest number."""
    network, config, settings = TEXTS[kind]
    other = written(network(config(**settings)), tmp_path / kind)
    tower, tokens = open_encoder(tmp_path / kind), captions()
    there = other(tokens, output_hidden_states=True)
    assert_near(tower(tokens).context, there.last_hidden_state)
    assert_near(tower(tokens, skip=1, is_normed=False).context, there.hidden_states[-2])
    assert_near(
        tower(tokens, skip=2).context, getattr(other, "text_model", other).final_layer_norm(there.hidden_states[-3])
    )
    assert_near(tower(tokens, skip=2).pooled, there.text_embeds if "text_embeds" in there else there.pooler_output)


@pytest.mark.parametrize("kind", T5S)
@torch.no_grad()
def test_t5_is_equal_with_a_mask_and_without(kind, tmp_path):
    other = written(T5EncoderModel(T5Config(**T5S[kind])), tmp_path / kind)
    encoder = open_encoder(tmp_path / kind)
    tokens = torch.randint(60, (2, 70), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(70) < torch.tensor([[30], [70]])
    assert_near(encoder(tokens), other(tokens).last_hidden_state)
    masked = other(tokens, attention_mask=mask.long()).last_hidden_state
    assert_near(encoder(tokens, mask)[mask], masked[mask])


@torch.no_grad()
def test_the_picture_tower_is_equal(tmp_path):
    settings = TOWER | {"image_size": 24, "patch_size": 8, "projection_dim": 20}
    other = written(CLIPVisionModelWithProjection(CLIPVisionConfig(**settings)), tmp_path / "vision")
    tower = open_encoder(tmp_path / "vision")
    pictures = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    mean, std = torch.tensor(tower.config.mean)[:, None, None], torch.tensor(tower.config.std)[:, None, None]
    there = other(((pictures + 1) / 2 - mean) / std)
    assert_near(tower(pictures).pooled, there.image_embeds)
    assert_near(tower(pictures).context, there.last_hidden_state)


@pytest.mark.parametrize("kind", VAES)
@torch.no_grad()
def test_autoencoders_are_equal_both_ways(kind, tmp_path):
    """Latents as a denoiser sees them: what diffusers' pipelines do with scaling_factor and its kin is in them."""
    other = written(AutoencoderKL(**VAES[kind]), tmp_path / kind)
    autoencoder, config = open_autoencoder(tmp_path / kind), other.config
    assert autoencoder.config.downsampling == 4
    pictures = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    there = other.encode(pictures).latent_dist
    mean, std = config.latents_mean or [config.shift_factor or 0.0], config.latents_std or [1.0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    latents = (there.mean - mean) * config.scaling_factor / std
    assert_near(autoencoder.encode(pictures), latents)
    torch.testing.assert_close(autoencoder.moments(pictures)[1], there.logvar, rtol=0, atol=1e-4)
    assert_near(autoencoder.decode(latents), other.decode(there.mean).sample)


@pytest.fixture
def tower(tmp_path):
    """The folder of a small text encoder."""
    network, config, settings = TEXTS["sd-3"]
    written(network(config(**settings)), tmp_path / "tower")
    return tmp_path / "tower"


@pytest.fixture
def vae(tmp_path):
    written(AutoencoderKL(**VAES["sd"]), tmp_path / "vae")
    return tmp_path / "vae"


def test_weights_are_not_copied(tower, monkeypatch):
    """They are the very memory that was mapped from the file, unless another dtype is asked for."""
    mapped, iterate = set(), weights.iterate_tensors

    def watched(*where):
        for name, tensor in iterate(*where):
            mapped.add(tensor.data_ptr())
            yield name, tensor

    monkeypatch.setattr(weights, "iterate_tensors", watched)
    assert {parameter.data_ptr() for parameter in open_encoder(tower).parameters()} <= mapped
    assert open_encoder(tower, dtype=torch.bfloat16).embedding.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_shards_and_older_names_are_read(vae, tower):
    """An index with two files; attention of the middle as diffusers wrote it before 0.12, 1 x 1 convolutions; CLIP's
    names as transformers 4 wrote them, with a buffer that is no weight."""
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    expected = open_autoencoder(vae).decode(open_autoencoder(vae).encode(pictures))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(vae / "diffusion_pytorch_model.safetensors").items():
        old = re.sub(r"\.(to_[qkv]|to_out\.0)\.", lambda found: f".{names[found[1]]}.", name)
        tensors[old] = tensor[..., None, None] if old != name and tensor.ndim == 2 else tensor
    assert any("query" in name for name in tensors)
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    files = [f"diffusion_pytorch_model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    where = {name: files[place % 2] for place, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if where[name] == file}, vae / file)
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    found = open_autoencoder(vae)
    torch.testing.assert_close(found.decode(found.encode(pictures)), expected, rtol=0, atol=1e-6)
    context = open_encoder(tower)(captions()).context
    tensors = load_file(tower / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(tensors, tower / "model.safetensors")
    assert torch.equal(open_encoder(tower)(captions()).context, context)


def test_variants_of_the_weights(tower):
    """The plain file is taken; without one, the only variant there is; of several, the one that is named."""
    tensors = load_file(tower / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tower / "model.fp16.safetensors")
    assert open_encoder(tower).norm.weight.dtype == torch.float32
    assert open_encoder(tower, variant="fp16").norm.weight.dtype == torch.float16
    with pytest.raises(ValueError, match="has no variant 'bf16' of its weights; it has: fp16"):
        open_encoder(tower, variant="bf16")
    (tower / "model.safetensors").unlink()
    assert open_encoder(tower).norm.weight.dtype == torch.float16
    save_file(tensors, tower / "model.non_ema.safetensors")
    with pytest.raises(ValueError, match="in several variants, fp16, non_ema: name one"):
        open_encoder(tower)


def assert_refused(open_folder, directory, *parts):
    with pytest.raises(ValueError) as caught:
        open_folder(directory)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(directory), *parts):
        assert part in message


def test_pickles_are_refused_with_the_way_out(tower):
    (tower / "model.safetensors").rename(tower / "pytorch_model.bin")
    assert_refused(
        open_encoder, tower, "pickle (pytorch_model.bin)", "CLIPTextModelWithProjection.from_pretrained(DIR)"
    )
    (tower / "pytorch_model.bin").unlink()
    assert_refused(open_encoder, tower, "there is no model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("text_projection.weight"), "it lacks 'text_projection.weight'"),
        (lambda t: t.update(more=torch.ones(2)), "it has 'more', which the model has not"),
        (
            lambda t: t.update({"text_projection.weight": torch.ones(7, 32)}),
            "'text_projection.weight' is (7, 32), the model needs (32, 32)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tower, change, message):
    tensors = load_file(tower / "model.safetensors")
    change(tensors)
    save_file(tensors, tower / "model.safetensors")
    assert_refused(open_encoder, tower, message)


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("tower", {"architectures": ["BertModel"]}, "unknown class 'BertModel'"),
        ("tower", {"architectures": None}, "names no class"),
        ("tower", {"hidden_act": "swishy"}, "unknown activation ('hidden_act') 'swishy'"),
        ("tower", {"hidden_size": None}, "it has no 'hidden_size'"),
        ("tower", {"num_attention_heads": 5}, "width (32) a multiple of num_heads (5)"),
        ("tower", {"num_hidden_layers": 10**9}, "num_layers at most 1000"),
        ("tower", {"vocab_size": "many"}, "tower vocab_size must be a whole number, not 'many'"),
        ("tower", {"eos_token_id": [1, 2]}, "tower end must be a whole number, not [1, 2]"),
        ("vae", {"act_fn": "mish"}, "'act_fn' is supported only as 'silu' or 'swish', not 'mish'"),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "'down_block_types' is supported only as"),
        ("vae", {"use_quant_conv": False}, "'use_quant_conv' and 'use_post_quant_conv'"),
        ("vae", {"out_channels": 1}, "'out_channels' must be in_channels (3), not 1"),
        ("vae", {"scaling_factor": 0}, "'scaling_factor' must be a number above 0, not 0"),
        ("vae", {"latents_mean": [1.0]}, "'latents_mean' must be 4 numbers"),
        ("vae", {"norm_num_groups": 5}, "widths must be multiples of 5"),
        ("vae", {"block_size": 3}, "unknown setting of AutoencoderKL 'block_size'"),
        ("vae", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised (quantization_config)"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(part, entries, message, request):
    directory = request.getfixturevalue(part)
    config = json.loads((directory / "config.json").read_text()) | entries
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    assert_refused(open_autoencoder if part == "vae" else open_encoder, directory, message)


@torch.no_grad()
def test_each_is_saved_and_loaded_as_a_checkpoint_of_ours(tower, vae, tmp_path):
    """By its config's own dict, bit for bit."""
    t5 = T5Encoder(OurT5Config(vocab_size=60, width=16, head_dim=4, hidden=24, num_layers=2, num_heads=2))
    eye = PictureTower(PictureTowerConfig(size=16, patch=8, width=16, hidden=24, num_layers=1, num_heads=2))
    configs = {TextTower: TextTowerConfig, Autoencoder: AutoencoderConfig, T5Encoder: OurT5Config}
    configs |= {PictureTower: PictureTowerConfig}
    for part in (open_encoder(tower), open_autoencoder(vae), t5, eye):
        weights.save(tmp_path / "ours", {"part": part.config.to_dict()}, part.state_dict())
        config = configs[type(part)].from_dict(weights.read_config(tmp_path / "ours")["part"])
        assert config == part.config
        again = type(part)(config)
        weights.load_into(again, tmp_path / "ours")
        assert all(map(torch.equal, again.state_dict().values(), part.state_dict().values()))
        shutil.rmtree(tmp_path / "ours")
