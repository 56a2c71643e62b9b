"""Tiny painters with random weights, written by diffusers itself: one of each published kind, whole."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tests.interop.vocabularies import t5_pieces, write_clip_words
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

TEXTS = ["a red fox on a beach at sunset", "a blurry picture of a dog", "the cat is wearing a hat, sitting"] * 4
KINDS = ("sd-1", "sd-2", "sdxl", "sd-3", "flux-dev", "flux-schnell")
ATTENDING = ("CrossAttnDownBlock2D", "DownBlock2D")
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ATTENDING[::-1],
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
}
# SD 1 and 2 were trained on a scaled linear schedule and are sampled from its leading steps.
TRAINED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def clip_words(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(write_clip_words(folder, TEXTS, 560, pad))


def t5_words() -> T5TokenizerFast:
    return T5TokenizerFast(vocab=t5_pieces(TEXTS), extra_ids=0, model_max_length=512)


def tower(words: CLIPTokenizer, kind: type = CLIPTextModel, **settings: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPTextConfig(
        **(sizes | {"projection_dim": 32} | settings),
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    model: nn.Module = kind(config)
    return model


def t5_encoder(words: T5TokenizerFast, width: int = 32) -> nn.Module:
    config = T5Config(
        vocab_size=len(words) + 4, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def autoencoder(channels: int, **settings: Any) -> nn.Module:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[16, 32],
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=channels,
        **settings,
    )


def livelier(module: nn.Module) -> nn.Module:
    """Weights that are not as at the start of training, so that nothing is hidden by zeros."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(float(name.endswith("weight")), 0.1)
        else:
            parameter.normal_(0.0, 0.9 / parameter[0].numel() ** 0.5)
    return module.eval()


def write_painter(kind: str, folder: Path, scheduler: Any = None) -> Any:
    """A pipeline of that kind, saved in `folder`; the pipeline itself."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        pipeline = _MAKERS[kind.partition("-")[0] if kind.startswith("flux") else kind](kind, folder)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                livelier(part)
    if scheduler is not None:
        pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "whole", safe_serialization=True)
    return pipeline


def _sd(kind: str, folder: Path) -> Any:
    words = clip_words(folder / "words", "<|endoftext|>" if kind == "sd-1" else "!")
    settings = {} if kind == "sd-1" else {"use_linear_projection": True, "attention_head_dim": (4, 8)}
    prediction = "epsilon" if kind == "sd-1" else "v_prediction"
    return StableDiffusionPipeline(
        vae=autoencoder(4),
        text_encoder=tower(words, hidden_act="quick_gelu" if kind == "sd-1" else "gelu"),
        tokenizer=words,
        unet=UNet2DConditionModel(**(UNET | settings)),
        scheduler=PNDMScheduler(**TRAINED, skip_prk_steps=True, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(kind: str, folder: Path) -> Any:
    words, more = clip_words(folder / "words"), clip_words(folder / "more", "!")
    settings = {
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    }
    return StableDiffusionXLPipeline(
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=tower(words),
        text_encoder_2=tower(more, CLIPTextModelWithProjection, hidden_act="gelu"),
        tokenizer=words,
        tokenizer_2=more,
        unet=UNet2DConditionModel(**(UNET | settings)),
        scheduler=EulerDiscreteScheduler(**TRAINED, timestep_spacing="leading"),
    )


def _sd3(kind: str, folder: Path) -> Any:
    words, more, pieces = clip_words(folder / "words"), clip_words(folder / "more", "!"), t5_words()
    return StableDiffusion3Pipeline(
        vae=autoencoder(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=tower(words, CLIPTextModelWithProjection),
        text_encoder_2=tower(more, CLIPTextModelWithProjection, hidden_act="gelu"),
        text_encoder_3=t5_encoder(pieces, 72),
        tokenizer=words,
        tokenizer_2=more,
        tokenizer_3=pieces,
        transformer=SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=72, caption_projection_dim=32, pooled_projection_dim=64, out_channels=16,
            pos_embed_max_size=16, qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def _flux(kind: str, folder: Path) -> Any:
    words, pieces = clip_words(folder / "words"), t5_words()
    is_dev = kind == "flux-dev"
    return FluxPipeline(
        vae=autoencoder(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.36),
        text_encoder=tower(words),
        text_encoder_2=t5_encoder(pieces),
        tokenizer=words,
        tokenizer_2=pieces,
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=is_dev,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=is_dev, shift=3.0 if is_dev else 1.0, base_shift=0.5, max_shift=1.15
        ),
    )  # fmt: skip


_MAKERS = {"sd-1": _sd, "sd-2": _sd, "sdxl": _sdxl, "sd-3": _sd3, "flux": _flux}
