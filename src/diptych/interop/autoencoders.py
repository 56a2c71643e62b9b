"""The autoencoders of published painters, as diffusers writes them: Stable Diffusion's, SD3's, Flux's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.checks import is_number, is_whole
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.interop.parts import REQUIRED, PublishedPart, open_part

BLOCK = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"shortcut": "conv_shortcut"}
ATTENTION = {
    "norm": "group_norm",
    "attention.query": "to_q",
    "attention.key": "to_k",
    "attention.value": "to_v",
    "attention.output": "to_out.0",
}
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.12


def autoencoder_config(entries: Mapping[str, Any]) -> AutoencoderConfig:
    """Its config, from all keys of its row."""
    channels = entries["in_channels"]
    if entries["out_channels"] != channels:
        raise ValueError(f"'out_channels' must be in_channels ({channels}), not {entries['out_channels']!r}")
    if entries["use_quant_conv"] is not entries["use_post_quant_conv"]:
        raise ValueError("'use_quant_conv' and 'use_post_quant_conv' are supported only alike")
    blocks = entries["layers_per_block"]
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        named, widths = entries[key], entries["block_out_channels"]
        if not isinstance(named, list | tuple) or not isinstance(widths, list | tuple) or len(named) != len(widths):
            raise ValueError(f"'{key}' and 'block_out_channels' must be lists of one length")
        if any(name != kind for name in named):
            raise ValueError(f"'{key}' is supported only as {kind}, not {named!r}")
    if not is_whole(blocks):
        raise ValueError(f"'layers_per_block' must be a whole number, not {blocks!r}")
    return AutoencoderConfig.from_dict(
        {
            "channels": channels,
            "latent_channels": entries["latent_channels"],
            "fold": 1,
            "widths": entries["block_out_channels"],
            "encoder_blocks": blocks,
            "decoder_blocks": blocks + 1,
            "groups": entries["norm_num_groups"],
            "norm_eps": 1e-6,
            "blocks_widen": True,
            "pads_after": True,
            "middle": "attention" if entries["mid_block_add_attention"] else "blocks",
            "has_latent_convs": entries["use_quant_conv"],
        }
    )


def shift_and_scale(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """What brings the latents to mean 0 and standard deviation 1: (z - shift_factor) scaling_factor there."""
    channels, factor = entries["latent_channels"], entries["scaling_factor"]
    if not is_number(factor) or factor <= 0:
        raise ValueError(f"'scaling_factor' must be a number above 0, not {factor!r}")
    mean = entries["latents_mean"] or [entries["shift_factor"] or 0.0] * channels
    std = entries["latents_std"] or [1.0] * channels
    for key, values in (("latents_mean", mean), ("latents_std", std)):
        numbers = [value for value in values if is_number(value)] if isinstance(values, list) else []
        if len(numbers) != channels:
            raise ValueError(f"'{key}' must be {channels} numbers, not {values!r}")
    return {"shift": torch.tensor(mean).float(), "scale": torch.tensor(std).float() / factor}


def autoencoder_names(config: AutoencoderConfig) -> dict[str, str]:
    """Our layers stand in one row each; theirs by resolution. Walked as `Encoder` and `Decoder` are built."""

    def block(there: str) -> dict[str, str]:
        return {name: f"{there}.{theirs}" for name, theirs in BLOCK.items()}

    def middle(side: str) -> list[dict[str, str]]:
        attention = {name: f"{side}.mid_block.attentions.0.{theirs}" for name, theirs in ATTENTION.items()}
        between = [attention] if config.middle == "attention" else []
        return [block(f"{side}.mid_block.resnets.0"), *between, block(f"{side}.mid_block.resnets.1")]

    encoder: list[dict[str, str]] = [{}, {"": "encoder.conv_in"}]
    for level in range(len(config.widths)):
        if level > 0:
            encoder.append({"": f"encoder.down_blocks.{level - 1}.downsamplers.0.conv"})
        encoder += [block(f"encoder.down_blocks.{level}.resnets.{index}") for index in range(config.encoder_blocks)]
    encoder += [*middle("encoder"), {"": "encoder.conv_norm_out"}, {}, {"": "encoder.conv_out"}]
    decoder: list[dict[str, str]] = [{"": "decoder.conv_in"}, *middle("decoder")]
    for level in range(len(config.widths)):
        if level > 0:
            decoder += [{}, {"": f"decoder.up_blocks.{level - 1}.upsamplers.0.conv"}]
        decoder += [block(f"decoder.up_blocks.{level}.resnets.{index}") for index in range(config.decoder_blocks)]
    decoder += [{"": "decoder.conv_norm_out"}, {}, {"": "decoder.conv_out"}]
    if config.has_latent_convs:
        encoder.append({"": "quant_conv"})
        decoder.insert(0, {"": "post_quant_conv"})
    return {
        f"{side}.layers.{place}.{name}".rstrip("."): there
        for side, layers in (("encoder", encoder), ("decoder", decoder))
        for place, names in enumerate(layers)
        for name, there in names.items()
    }


ROWS = (
    PublishedPart(
        "AutoencoderKL",
        keys={
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownEncoderBlock2D",),
            "up_block_types": ("UpDecoderBlock2D",),
            "block_out_channels": REQUIRED,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "mid_block_add_attention": True,
        },
        only={"act_fn": ("silu", "swish")},
        idle=("sample_size", "force_upcast"),
        config=autoencoder_config,
        network=Autoencoder,
        names=autoencoder_names,
        given=shift_and_scale,
        older={rf"(mid_block\.attentions\.0)\.{old}\.": rf"\1.{new}." for old, new in OLDER.items()},
    ),
)


def open_autoencoder(directory: str | Path, **how: Any) -> Autoencoder:
    """The autoencoder in a folder. Args: as `parts.open_part`. Raises: ValueError as it."""
    autoencoder = open_part(directory, ROWS, **how)
    assert isinstance(autoencoder, Autoencoder)
    return autoencoder
