"""CLIP as transformers publishes it whole - both towers, their projections, the scale - as a pairing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diptych.core.precision import choose
from diptych.core.weights import read_object
from diptych.image.pairing import Pairing, PairingConfig, PairingModel
from diptych.interop.encoders import PICTURE, PICTURE_KEYS, TEXT, TEXT_KEYS, picture_tower, text_tower
from diptych.interop.parts import REQUIRED, PublishedPart, open_part, within
from diptych.interop.prompts import open_tokenizer

PREPARES = "preprocessor_config.json"


def pairing_config(entries: Mapping[str, Any]) -> PairingConfig:
    """Its config, from all keys of its row. What a tower's own settings leave out is as it is in CLIP's first."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    larger = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    towers = {}
    for key, known, usual in (("text_config", TEXT_KEYS, sizes), ("vision_config", PICTURE_KEYS, larger)):
        told = entries[key]
        if not isinstance(told, dict):
            raise ValueError(f"'{key}' must be a table, not {told!r}")
        absent = {name: value for name, value in known.items() if value is not REQUIRED}
        towers[key] = absent | usual | told | {"projection_dim": entries["projection_dim"]}
    if towers["vision_config"].get("num_channels", 3) != 3:
        raise ValueError(f"'num_channels' is supported only as 3, not {towers['vision_config']['num_channels']!r}")
    picture = picture_tower(towers["vision_config"], has_projection=True)
    return PairingConfig(
        dimensions=picture.projection,
        size=picture.size,
        picture_tower=picture,
        caption_tower=text_tower(towers["text_config"], has_projection=True),
    )


NAMES = {
    **within("caption_tower", "text_model", TEXT),
    **within("picture_tower", "vision_model", PICTURE),
    "caption_tower.projection": "text_projection",
    "picture_tower.projection": "visual_projection",
    "log_scale": "logit_scale",
}
ROW = PublishedPart(
    "CLIPModel",
    keys={"text_config": {}, "vision_config": {}, "projection_dim": 512},
    config=pairing_config,
    network=Pairing,
    names=lambda config: NAMES,
    knows_all=False,
    unweighted=r"\.position_ids$",
    stem="model",
)


def open_pairing(directory: str | Path, *, device: str | None = None, variant: str | None = None) -> PairingModel:
    """The pairing in a folder, with its tokenizer; it computes in float32.

    Raises:
        ValueError: as `parts.open_part` and `prompts.open_tokenizer`, and for pictures that are prepared otherwise than
            by the middle of the tower's size.
    """
    directory = Path(directory)
    network = open_part(directory, (ROW,), variant=variant, device=choose(device)[0], dtype=torch.float32)
    assert isinstance(network, Pairing)
    if (directory / PREPARES).is_file():
        _check_preparation(directory / PREPARES, network.config)
    return PairingModel(directory.resolve().name, network, open_tokenizer(directory))


def _check_preparation(path: Path, config: PairingConfig) -> None:
    """Raises: ValueError where preprocessor_config.json asks for other pictures than `PictureTower.prepared` makes."""
    about, tower = read_object(path), config.picture_tower
    assert tower is not None
    for key, wanted in (("image_mean", list(tower.mean)), ("image_std", list(tower.std))):
        if about.get(key, wanted) != wanted:
            raise ValueError(f"'{path}' is not supported: '{key}' must be {wanted}, not {about[key]!r}")
    for key in ("size", "crop_size"):
        told = about.get(key, config.size)
        sides = set(told.values()) if isinstance(told, dict) else {told}
        if sides != {config.size}:
            raise ValueError(f"'{path}' is not supported: '{key}' must be {config.size}, not {told!r}")
