"""The text encoders (and CLIP's picture tower) of published painters, as transformers writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diptych.core.spelling import unknown
from diptych.image.clip import PictureTower, PictureTowerConfig, TextTower, TextTowerConfig
from diptych.image.t5 import T5Config, T5Encoder
from diptych.interop.configs import ACTIVATIONS as DECODERS
from diptych.interop.parts import REQUIRED, PublishedPart, open_part, within

ACTIVATIONS = DECODERS | {"quick_gelu": "quick-gelu"}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's pictures

BLOCK = {
    "attention_norm": "layer_norm1",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "feedforward_norm": "layer_norm2",
    "feedforward.up": "mlp.fc1",
    "feedforward.down": "mlp.fc2",
}
TEXT = {
    "embedding": "embeddings.token_embedding",
    "positions": "embeddings.position_embedding",
    **within("blocks.{}", "encoder.layers.{}", BLOCK),
    "norm": "final_layer_norm",
}
PICTURE = {
    "patches": "embeddings.patch_embedding",
    "start": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding",
    "first_norm": "pre_layrnorm",
    **within("blocks.{}", "encoder.layers.{}", BLOCK),
    "norm": "post_layernorm",
}
TOWER_KEYS = {
    "hidden_size": REQUIRED,
    "intermediate_size": REQUIRED,
    "num_hidden_layers": REQUIRED,
    "num_attention_heads": REQUIRED,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}
TEXT_KEYS = TOWER_KEYS | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
PICTURE_KEYS = TOWER_KEYS | {"image_size": 224, "patch_size": 32}


def activation(name: Any) -> str:
    """Ours, of their name. Raises: ValueError for one that is not known."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown("activation ('hidden_act')", str(name), ACTIVATIONS)
    return ACTIVATIONS[name]


def _tower(entries: Mapping[str, Any], has_projection: bool) -> dict[str, Any]:
    return {
        "width": entries["hidden_size"],
        "hidden": entries["intermediate_size"],
        "num_layers": entries["num_hidden_layers"],
        "num_heads": entries["num_attention_heads"],
        "activation": activation(entries["hidden_act"]),
        "norm_eps": entries["layer_norm_eps"],
        "projection": entries["projection_dim"] if has_projection else 0,
    }


def text_tower(entries: Mapping[str, Any], has_projection: bool) -> TextTowerConfig:
    """Its config, from all of TEXT_KEYS."""
    end = entries["eos_token_id"]  # 2 in configs written before it was looked at: then the highest number is the end
    own = {
        "vocab_size": entries["vocab_size"],
        "length": entries["max_position_embeddings"],
        "end": None if end == 2 else end,
    }
    return TextTowerConfig.from_dict(_tower(entries, has_projection) | own)


def picture_tower(entries: Mapping[str, Any], has_projection: bool) -> PictureTowerConfig:
    """Its config, from all of PICTURE_KEYS."""
    own = {"size": entries["image_size"], "patch": entries["patch_size"], "mean": MEAN, "std": STD}
    return PictureTowerConfig.from_dict(_tower(entries, has_projection) | own)


def t5(entries: Mapping[str, Any]) -> T5Config:
    """Its config, from all keys of its row."""
    projection = entries["feed_forward_proj"]
    gate, _, named = str(projection).rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(f"'feed_forward_proj' must be an activation or gated-ACTIVATION, not {projection!r}")
    return T5Config.from_dict(
        {
            "vocab_size": entries["vocab_size"],
            "width": entries["d_model"],
            "head_dim": entries["d_kv"],
            "hidden": entries["d_ff"],
            "num_layers": entries["num_layers"],
            "num_heads": entries["num_heads"],
            "buckets": entries["relative_attention_num_buckets"],
            "farthest": entries["relative_attention_max_distance"],
            "activation": activation("gelu_new" if projection == "gated-gelu" else named),  # written so, meant so
            "is_gated": gate == "gated",
            "norm_eps": entries["layer_norm_epsilon"],
        }
    )


def _t5_names(config: T5Config) -> dict[str, str]:
    attention, feedforward = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    block = {
        "attention_norm": "layer.0.layer_norm",
        "attention.query": f"{attention}.q",
        "attention.key": f"{attention}.k",
        "attention.value": f"{attention}.v",
        "attention.output": f"{attention}.o",
        "feedforward_norm": "layer.1.layer_norm",
        "feedforward.gate": f"{feedforward}.wi_0",
        "feedforward.up": f"{feedforward}.wi_1" if config.is_gated else f"{feedforward}.wi",
        "feedforward.down": f"{feedforward}.wo",
    }
    return {
        "embedding": "shared",
        "distances": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        **within("blocks.{}", "encoder.block.{}", block),
        "norm": "encoder.final_layer_norm",
    }


PROJECTED = {"projection": "text_projection"}
ROWS = (
    PublishedPart(
        "CLIPTextModel",
        keys=TEXT_KEYS,
        config=lambda entries: text_tower(entries, has_projection=False),
        network=TextTower,
        names=lambda config: TEXT,
        knows_all=False,
        older={r"^text_model\.": ""},
        unweighted=r"\.position_ids$",
        stem="model",
    ),
    PublishedPart(
        "CLIPTextModelWithProjection",
        keys=TEXT_KEYS,
        config=lambda entries: text_tower(entries, has_projection=True),
        network=TextTower,
        names=lambda config: TEXT | PROJECTED,
        knows_all=False,
        older={r"^text_model\.": ""},
        unweighted=r"\.position_ids$",
        stem="model",
    ),
    PublishedPart(
        "CLIPVisionModelWithProjection",
        keys=PICTURE_KEYS,
        only={"num_channels": (3,)},
        config=lambda entries: picture_tower(entries, has_projection=True),
        network=PictureTower,
        names=lambda config: PICTURE | {"projection": "visual_projection"},
        knows_all=False,
        older={r"^vision_model\.": ""},
        unweighted=r"\.position_ids$",
        stem="model",
    ),
    PublishedPart(
        "T5EncoderModel",
        keys={
            "vocab_size": REQUIRED,
            "d_model": REQUIRED,
            "d_kv": REQUIRED,
            "d_ff": REQUIRED,
            "num_layers": REQUIRED,
            "num_heads": REQUIRED,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "feed_forward_proj": "relu",
            "layer_norm_epsilon": 1e-6,
        },
        config=t5,
        network=T5Encoder,
        names=_t5_names,
        knows_all=False,
        older={r"^encoder\.embed_tokens\.": "shared."},
        stem="model",
    ),
)


def open_encoder(directory: str | Path, **how: Any) -> nn.Module:
    """The text encoder or picture tower in a folder: a `TextTower`, `T5Encoder` or `PictureTower`.

    Args: as `parts.open_part`. Raises: ValueError as it.
    """
    return open_part(directory, ROWS, **how)
