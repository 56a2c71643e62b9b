"""The denoisers of published painters, as diffusers writes them: the U-Nets of Stable Diffusion 1, 2 and XL, the
transformers of Stable Diffusion 3 and 3.5 and of Flux.1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diptych.core.checks import is_whole
from diptych.image.mmdit import MMDiT, MMDiTConfig
from diptych.image.unet import UNet, UNetConfig
from diptych.interop.parts import PublishedPart, open_part, within

RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
NORMS = {"query_norm": "norm_q", "key_norm": "norm_k"}
TRANSFORMER = {
    "norm": "norm",
    "enter": "proj_in",
    **within(
        "blocks.{}",
        "transformer_blocks.{}",
        {
            "self_norm": "norm1",
            **within("self_attention", "attn1", ATTENTION),
            "cross_norm": "norm2",
            **within("cross_attention", "attn2", ATTENTION),
            "feedforward_norm": "norm3",
            "feedforward.down": "ff.net.2",
        },
    ),
    "leave": "proj_out",
}
# Where residual blocks and transformers stand: ours, theirs.
STAGES = {"down.{}.{}": "down_blocks.{}", "middle.{}": "mid_block", "up.{}.{}": "up_blocks.{}"}
UNET = {
    "time.0": "time_embedding.linear_1",
    "time.2": "time_embedding.linear_2",
    "addition.0": "add_embedding.linear_1",
    "addition.2": "add_embedding.linear_2",
    "enter": "conv_in",
    "shrink.{}": "down_blocks.{}.downsamplers.0.conv",
    "grow.{}": "up_blocks.{}.upsamplers.0.conv",
    "leave.0": "conv_norm_out",
    "leave.2": "conv_out",
    **{
        name: there
        for ours, theirs in STAGES.items()
        for name, there in (
            within(f"{ours}.residual", f"{theirs}.resnets.{{}}", RESIDUAL)
            | within(f"{ours}.transformer", f"{theirs}.attentions.{{}}", TRANSFORMER)
        ).items()
    },
}
BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}

THINKING = {"up": "net.0.proj", "down": "net.2"}
TOLD = {"time": "timestep_embedder", "guidance": "guidance_embedder", "pooled": "text_embedder"}
JOINT = {
    "modulation.linear": "norm1.linear",
    "words_modulation.linear": "norm1_context.linear",
    **within("attention.patches", "attn", ATTENTION | NORMS),
    **within("attention.words", "attn", {name: f"add_{name[0]}_proj" for name in ("query", "key", "value")}),
    "attention.words.output": "attn.to_add_out",
    "attention.words.query_norm": "attn.norm_added_q",
    "attention.words.key_norm": "attn.norm_added_k",
    **within("second_attention", "attn2", ATTENTION | NORMS),
    **within("feedforward", "ff", THINKING),
    **within("words_feedforward", "ff_context", THINKING),
}
MMDIT = {
    "words": "context_embedder",
    **{f"{ours}.{n}": f"time_text_embed.{there}.linear_{n // 2 + 1}" for ours, there in TOLD.items() for n in (0, 2)},
    **within("joint.{}", "transformer_blocks.{}", JOINT),
    "leave.modulation.linear": "norm_out.linear",
    "leave.output": "proj_out",
}
SD3 = {**MMDIT, "enter": "pos_embed.proj", "table": "pos_embed.pos_embed"}
SINGLE = {
    "modulation.linear": "norm.linear",
    **within("attention", "attn", ATTENTION | NORMS),
    "up": "proj_mlp",
    "output": "proj_out",
}
FLUX = {**MMDIT, "enter": "x_embedder", **within("single.{}", "single_transformer_blocks.{}", SINGLE)}


def unet_config(entries: Mapping[str, Any]) -> UNetConfig:
    """Its config, from all keys of its row."""
    widths, channels = entries["block_out_channels"], entries["in_channels"]
    if not isinstance(widths, list | tuple) or not widths:
        raise ValueError(f"'block_out_channels' must be a list of widths, not {widths!r}")
    if entries["out_channels"] != channels:
        raise ValueError(
            f"'in_channels' ({channels!r}) is supported only if it is out_channels ({entries['out_channels']!r}): "
            "networks that also see a mask or another picture are not"
        )
    down, up = entries["down_block_types"], entries["up_block_types"]
    for key, kinds in (("down_block_types", down), ("up_block_types", up)):
        known = [kind.replace("Down", key[: -len("_block_types")].capitalize()) for kind in BLOCKS]
        if not isinstance(kinds, list | tuple) or len(kinds) != len(widths) or any(one not in known for one in kinds):
            raise ValueError(f"'{key}' must name {len(widths)} of {', '.join(known)}, not {kinds!r}")
    has_attention = [BLOCKS[kind] for kind in down]
    if [BLOCKS[kind.replace("Up", "Down")] for kind in reversed(up)] != has_attention:
        raise ValueError(f"'up_block_types' must be down_block_types in reverse, not {up!r}")
    addition = 0
    if entries["addition_embed_type"] is not None:
        addition = entries["projection_class_embeddings_input_dim"]
        if not is_whole(addition) or not is_whole(entries["addition_time_embed_dim"]):
            raise ValueError(
                "'addition_embed_type' needs projection_class_embeddings_input_dim and addition_time_embed_dim"
            )
    return UNetConfig.from_dict(
        {
            "channels": channels,
            "widths": widths,
            "blocks": _one(entries, "layers_per_block"),
            "has_attention": has_attention,
            "depths": _of_each(entries, "transformer_layers_per_block", len(widths)),
            "heads": _of_each(entries, "attention_head_dim", len(widths)),  # which it has always meant
            "groups": entries["norm_num_groups"],
            "has_scale": entries["resnet_time_scale_shift"] == "scale_shift",
            "context_width": _one(entries, "cross_attention_dim"),
            "norm": "layer",
            "norm_eps": 1e-5,
            "has_qk_norm": False,
            "has_bias": True,
            "activation": "gelu",
            "widening": 4,
            "is_framed": True,
            "clock": "timestep",
            "has_cosines_first": entries["flip_sin_to_cos"],
            "frequency_shift": entries["freq_shift"],
            "addition_width": addition,
            "number_width": entries["addition_time_embed_dim"] or 256,
            "has_convolved_frame": not entries["use_linear_projection"],
        }
    )


def _of_each(entries: Mapping[str, Any], key: str, count: int) -> list[int]:
    """A number for each size, from that of all or a list."""
    value = entries[key]
    values = [value] * count if is_whole(value) else value
    if not isinstance(values, list | tuple) or len(values) != count or not all(map(is_whole, values)):
        raise ValueError(f"'{key}' must be a whole number or {count} of them, not {value!r}")
    return list(values)


def _one(entries: Mapping[str, Any], key: str) -> int:
    """A number, or a list of the same number."""
    value = entries[key]
    values = value if isinstance(value, list | tuple) and value else [value]
    if not is_whole(values[0]) or any(one != values[0] for one in values):
        raise ValueError(f"'{key}' is supported only as one whole number for all sizes, not {value!r}")
    return int(values[0])


def sd3_config(entries: Mapping[str, Any]) -> MMDiTConfig:
    """Its config, from all keys of its row."""
    config = MMDiTConfig.from_dict(
        {
            **_mmdit_settings(entries),
            "channels": _channels(entries),
            "patch": entries["patch_size"],
            "dual_layers": entries["dual_attention_layers"],
            "has_qk_norm": entries["qk_norm"] is not None,
            "side": entries["pos_embed_max_size"],
            "has_channels_last": True,
        }
    )
    if entries["caption_projection_dim"] != config.width:
        raise ValueError(
            f"'caption_projection_dim' must be num_attention_heads x attention_head_dim ({config.width}), "
            f"not {entries['caption_projection_dim']!r}"
        )
    return config


def flux_config(entries: Mapping[str, Any]) -> MMDiTConfig:
    """Its config, from all keys of its row. Its channels are those of patches of 2 x 2."""
    numbers = _channels(entries)
    if not is_whole(numbers) or numbers % 4:
        raise ValueError(f"'in_channels' must be a multiple of 4, the places of a patch, not {numbers!r}")
    return MMDiTConfig.from_dict(
        {
            **_mmdit_settings(entries),
            "channels": numbers // 4,
            "patch": 2,
            "single_layers": entries["num_single_layers"],
            "ends_words": False,
            "has_guidance": entries["guidance_embeds"],
            "has_qk_norm": True,
            "positions": "rotary",
            "axes": entries["axes_dims_rope"],
        }
    )


def _mmdit_settings(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_heads": entries["num_attention_heads"],
        "head_dim": entries["attention_head_dim"],
        "joint_layers": entries["num_layers"],
        "context_width": entries["joint_attention_dim"],
        "pooled_width": entries["pooled_projection_dim"],
    }


def _channels(entries: Mapping[str, Any]) -> Any:
    channels, out = entries["in_channels"], entries["out_channels"]
    if out not in (None, channels):
        raise ValueError(f"'in_channels' ({channels!r}) is supported only if it is out_channels ({out!r})")
    return channels


ROWS = (
    PublishedPart(
        "UNet2DConditionModel",
        keys={
            "in_channels": 4,
            "out_channels": 4,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "cross_attention_dim": 1280,
            "transformer_layers_per_block": 1,
            "attention_head_dim": 8,
            "addition_embed_type": None,
            "addition_time_embed_dim": None,
            "projection_class_embeddings_input_dim": None,
            "resnet_time_scale_shift": "default",
            "use_linear_projection": False,
        },
        only={
            "center_input_sample": (False,),
            "mid_block_type": ("UNetMidBlock2DCrossAttn",),
            "only_cross_attention": (False,),
            "mid_block_only_cross_attention": (None, False),
            "downsample_padding": (1,),
            "mid_block_scale_factor": (1,),
            "act_fn": ("silu", "swish"),
            "norm_eps": (1e-5,),
            "reverse_transformer_layers_per_block": (None,),
            "encoder_hid_dim": (None,),
            "encoder_hid_dim_type": (None,),
            "num_attention_heads": (None,),
            "dual_cross_attention": (False,),
            "class_embed_type": (None,),
            "addition_embed_type": (None, "text_time"),
            "num_class_embeds": (None,),
            "resnet_time_scale_shift": ("default", "scale_shift"),
            "resnet_skip_time_act": (False,),
            "resnet_out_scale_factor": (1,),
            "time_embedding_type": ("positional",),
            "time_embedding_dim": (None,),
            "time_embedding_act_fn": (None,),
            "timestep_post_act": (None,),
            "time_cond_proj_dim": (None,),
            "conv_in_kernel": (3,),
            "conv_out_kernel": (3,),
            "attention_type": ("default",),
            "class_embeddings_concat": (False,),
            "cross_attention_norm": (None,),
        },
        idle=("sample_size", "dropout", "upcast_attention", "addition_embed_type_num_heads"),
        config=unet_config,
        network=UNet,
        names=lambda config: UNET,
        fused={
            f"{theirs}.attentions.{{}}.transformer_blocks.{{}}.ff.net.0.proj": tuple(
                f"{ours}.transformer.blocks.{{}}.feedforward.{half}" for half in ("up", "gate")
            )
            for ours, theirs in STAGES.items()
        },
    ),
    PublishedPart(
        "SD3Transformer2DModel",
        keys={
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 18,
            "attention_head_dim": 64,
            "num_attention_heads": 18,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1152,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 96,
            "dual_attention_layers": (),
            "qk_norm": None,
        },
        only={"qk_norm": (None, "rms_norm")},
        idle=("sample_size",),
        config=sd3_config,
        network=MMDiT,
        names=lambda config: SD3,
        reshaped=("enter.weight", "table"),
    ),
    PublishedPart(
        "FluxTransformer2DModel",
        keys={
            "in_channels": 64,
            "out_channels": None,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": False,
            "axes_dims_rope": (16, 56, 56),
        },
        only={"patch_size": (1,)},
        config=flux_config,
        network=MMDiT,
        names=lambda config: FLUX,
    ),
)


def open_denoiser(directory: str | Path, **how: Any) -> nn.Module:
    """The denoiser in a folder. Args: as `parts.open_part`. Raises: ValueError as it."""
    return open_part(directory, ROWS, **how)
