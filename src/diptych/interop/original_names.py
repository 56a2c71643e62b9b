"""What the layers of published painters were called by those who trained them, beside the names of diffusers.

Adapters are written in both. The original networks keep in one matrix what diffusers, or we, keep in several: a name
there stands for one or more here, whose rows follow each other.
"""

import re
from collections.abc import Iterable, Iterator

from diptych.image.mmdit import MMDiTConfig
from diptych.image.unet import UNetConfig

# Stable Diffusion 1, 2 and XL: theirs (diffusers'), the original's.
RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}

# Flux.1 and Stable Diffusion 3: the original's, theirs; "{}" is the number of a block.
DOUBLE = {
    f"double_blocks.{{}}.{name}": tuple(f"transformer_blocks.{{}}.{one}" for one in there)
    for name, there in {
        "img_mod.lin": ["norm1.linear"],
        "txt_mod.lin": ["norm1_context.linear"],
        "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
        "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
        "img_attn.proj": ["attn.to_out.0"],
        "txt_attn.proj": ["attn.to_add_out"],
        "img_mlp.0": ["ff.net.0.proj"],
        "img_mlp.2": ["ff.net.2"],
        "txt_mlp.0": ["ff_context.net.0.proj"],
        "txt_mlp.2": ["ff_context.net.2"],
    }.items()
}
SINGLE = {
    f"single_blocks.{{}}.{name}": tuple(f"single_transformer_blocks.{{}}.{one}" for one in there)
    for name, there in {
        "modulation.lin": ["norm.linear"],
        "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
        "linear2": ["proj_out"],
    }.items()
}
# As XLabs call what they hang beside an attention.
XLABS = {
    "double_blocks.{}.qkv_lora1": DOUBLE["double_blocks.{}.img_attn.qkv"],
    "double_blocks.{}.qkv_lora2": DOUBLE["double_blocks.{}.txt_attn.qkv"],
    "double_blocks.{}.proj_lora1": DOUBLE["double_blocks.{}.img_attn.proj"],
    "double_blocks.{}.proj_lora2": DOUBLE["double_blocks.{}.txt_attn.proj"],
    "single_blocks.{}.qkv": SINGLE["single_blocks.{}.linear1"][:3],
    "single_blocks.{}.proj": SINGLE["single_blocks.{}.linear2"],
}
FLUX = {
    **DOUBLE,
    **SINGLE,
    **XLABS,
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    **{
        f"{ours}.{layer}_layer": (f"time_text_embed.{there}.linear_{number}",)
        for ours, there in (
            ("time_in", "timestep_embedder"),
            ("vector_in", "text_embedder"),
            ("guidance_in", "guidance_embedder"),
        )
        for layer, number in (("in", 1), ("out", 2))
    },
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
SD3 = {
    f"joint_blocks.{{}}.{name}": tuple(f"transformer_blocks.{{}}.{one}" for one in there)
    for name, there in {
        "x_block.adaLN_modulation.1": ["norm1.linear"],
        "context_block.adaLN_modulation.1": ["norm1_context.linear"],
        "x_block.attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
        "context_block.attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
        "x_block.attn.proj": ["attn.to_out.0"],
        "context_block.attn.proj": ["attn.to_add_out"],
        "x_block.attn2.qkv": ["attn2.to_q", "attn2.to_k", "attn2.to_v"],
        "x_block.attn2.proj": ["attn2.to_out.0"],
        "x_block.mlp.fc1": ["ff.net.0.proj"],
        "x_block.mlp.fc2": ["ff.net.2"],
        "context_block.mlp.fc1": ["ff_context.net.0.proj"],
        "context_block.mlp.fc2": ["ff_context.net.2"],
    }.items()
} | {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}


def of_unet(config: UNetConfig, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The original's name of each layer that diffusers calls `names`, and that name.

    Blocks are numbered through there: on the way down those of each size and what halves it, on the way up those of
    each size, the last of which doubles it, too.
    """
    each = config.blocks + 1
    for name in names:
        if name in AROUND:
            yield AROUND[name], name
        elif found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            level, kind, number, rest = int(found[2]), found[3], int(found[4]), found[5]
            first = 1 + each * level if found[1] == "down" else each * level
            side = "input_blocks" if found[1] == "down" else "output_blocks"
            if kind == "downsamplers":
                yield f"{side}.{first + config.blocks}.0.op", name
            elif kind == "upsamplers":
                yield f"{side}.{first + config.blocks}.{1 + config.has_attention[-1 - level]}.{rest}", name
            elif kind == "attentions":
                yield f"{side}.{first + number}.1.{rest}", name
            else:
                yield f"{side}.{first + number}.0.{RESIDUAL[rest]}", name
        elif found := re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", name):
            if found[1] == "attentions":
                yield f"middle_block.1.{found[3]}", name
            else:
                yield f"middle_block.{2 * int(found[2])}.{RESIDUAL[found[3]]}", name


def of_mmdit(config: MMDiTConfig) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """The original's names, those of diffusers, and whether the halves of their rows are exchanged."""
    rows = FLUX if config.positions == "rotary" else SD3
    swapped = ["final_layer.adaLN_modulation.1"]  # shift and scale there, scale and shift here
    if config.ends_words:
        swapped.append(f"joint_blocks.{config.joint_layers - 1}.context_block.adaLN_modulation.1")
    for pattern, there in rows.items():
        for number in range(max(config.joint_layers, config.single_layers) if "{}" in pattern else 1):
            name = pattern.format(number)
            yield name, tuple(one.format(number) for one in there), name in swapped
