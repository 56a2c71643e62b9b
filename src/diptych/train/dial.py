"""One dial: `model.depth` derives the sizes of a family of models, their batch and their learning rate.

Whatever the recipe sets by hand stays as it is, and the rest follows what was set. The family is anchored at two
models that were trained and measured: the decoder and the U-Net of depth 8. How the others follow from them:

- A model is trained on data in proportion to its parameters N (Hoffmann et al. 2022, sec. 3), and the best batch grows
  with the data as its power 0.383 (Bergsma et al. 2025, "Power Lines", sec. 4): batch ~ N^0.383.
- The learning rate grows as the square root of the batch (Malladi et al. 2022, the square root scaling rule).
- With AdamW it falls as 1 / width (Yang et al. 2022, table 3, hidden weights). With Muon, whose update here has the
  size of an AdamW update and so a spectral norm that grows as the square root of the width, it falls as
  1 / sqrt(width): the norm of a change should not depend on the width (Yang, Simon & Bernstein 2023, condition 1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BATCH_POWER = 0.383
HEAD = 64
DECODER_SIZES = ("width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden")


@dataclass(frozen=True)
class Anchor:
    """A recipe of depth 8 that was measured: `batch` in tokens or pictures."""

    width: int
    parameters: float
    batch: float
    muon: float
    adamw: float


def decoder_width(depth: int) -> int:
    """40 a layer, rounded up to whole heads."""
    return math.ceil(40 * depth / HEAD) * HEAD


def decoder_parameters(width: int, depth: int) -> float:
    """Of the blocks: four square matrices of attention, and three of a feed-forward three times as wide."""
    return 13.0 * width * width * depth


def unet_width(depth: int) -> int:
    """Channels at full size: 16 a step of the dial, rounded up to whole heads."""
    return math.ceil(16 * depth / HEAD) * HEAD


def unet_parameters(width: int, blocks: int) -> float:
    """In proportion: kernels of 3 x 3 over channels of this width and of twice this width."""
    return float(width * width * (blocks + 1))


# recipes/quill-draft.toml: rows of 384 tokens, 12 a step, Muon at 3e-3. AdamW's rate is the house's default.
TEXT = Anchor(decoder_width(8), decoder_parameters(decoder_width(8), 8), 12 * 384, 3e-3, 1e-3)
# recipes/brush-draft.toml: 32 pictures a step, AdamW at 8e-4. Muon's stands to it as on the text side.
IMAGE = Anchor(unet_width(8), unet_parameters(unet_width(8), 1), 32, 2.4e-3, 8e-4)


def best_batch(anchor: Anchor, parameters: float) -> float:
    """Tokens or pictures a step."""
    growth: float = (parameters / anchor.parameters) ** BATCH_POWER
    return anchor.batch * growth


def learning_rate(anchor: Anchor, optimizer: str, width: int, batch: float) -> float:
    """Of a model of this width with so many tokens or pictures a step; three significant digits."""
    is_muon = optimizer == "muon"
    narrowing = (anchor.width / width) ** (0.5 if is_muon else 1.0)
    rate = (anchor.muon if is_muon else anchor.adamw) * narrowing * math.sqrt(batch / anchor.batch)
    return float(f"{rate:.3g}")


def follows(tables: Mapping[str, Any]) -> frozenset[str]:
    """The sizes that `DecoderConfig.from_depth` works out where the recipe does not set them, as "section.key"."""
    has_dial = _table(tables, "run").get("objective") == "next-token" and "depth" in _table(tables, "model")
    names = (f"model.overrides.{key}" for key in DECODER_SIZES) if has_dial else ()
    return frozenset(name for name in names if not _is_set(tables, name))


def derive(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What the dial of a recipe sets of what its tables leave out, as "section.key" -> value.

    Nothing, where there is no dial, or one that its task will refuse.
    """
    run, model, optimizer = (_table(tables, name) for name in ("run", "model", "optimizer"))
    depth = model.get("depth")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        return {}
    sizes: dict[str, Any] = {}
    if run.get("objective") == "next-token":
        anchor, a_row = TEXT, _whole(model.get("context"), 512)
        width = _whole(_table(model, "overrides").get("width"), decoder_width(depth))
        parameters = decoder_parameters(width, depth)
    elif run.get("objective") == "diffusion" and model.get("network", "unet") == "unet":
        anchor, a_row = IMAGE, 1
        unet, encoder = _table(model, "unet"), _table(model, "encoder")
        given = unet.get("widths")
        width = _whole(given[0] if isinstance(given, list) and given else None, unet_width(depth))
        blocks = _whole(unet.get("blocks"), max(1, round(depth / 8)))
        sizes = {
            "model.unet.widths": [width, 2 * width],
            "model.unet.blocks": blocks,
            "model.unet.has_attention": [False, True],
            "model.encoder.width": 2 * width,
            "model.encoder.num_layers": max(1, round(depth / 4)),
            "model.encoder.num_heads": max(1, _whole(encoder.get("width"), 2 * width) // HEAD),
        }
        if given is not None and "has_attention" not in unet:
            del sizes["model.unet.has_attention"]  # one for each of the widths that were set by hand
        parameters = unet_parameters(width, blocks)
    else:
        return {}
    rows = _whole(run.get("batch"), max(1, round(best_batch(anchor, parameters) / a_row)))
    rate = learning_rate(anchor, str(optimizer.get("name", "adamw")), width, rows * a_row)
    wanted = {**sizes, "run.batch": rows, "optimizer.learning_rate": rate}
    return {name: value for name, value in wanted.items() if not _is_set(tables, name)}


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, Mapping) else {}


def _whole(given: Any, otherwise: int) -> int:
    """A whole number >= 1 that was given, or the other: what is wrong is refused where it is read."""
    is_whole = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    return given if is_whole else otherwise


def _is_set(tables: Mapping[str, Any], name: str) -> bool:
    *path, key = name.split(".")
    table: Any = tables
    for part in path:
        table = _table(table, part)
    return key in table
