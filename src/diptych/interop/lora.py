"""LoRA files for painters, as diffusers, PEFT, kohya's scripts and their like write them: read, and written for them.

One file holds matrices for the denoiser and for text encoders. Whose a matrix is, and which, is told by its name:

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight            diffusers, PEFT: lora_A and lora_B
    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight    kohya: lora_down, lora_up and alpha
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight          the same, by the names of the original network

A beginning says the part, `layer_names` the layers, an ending which matrix. Nothing is passed over: a name that has no
place, and what is more than LoRA, refuses the file.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diptych.core.files import atomic_directory, atomic_file, output_path
from diptych.core.lora import Adapter, LoraSettings, LowRank, adaptable
from diptych.core.weights import read_object, save_tensors
from diptych.image.clip import TextTower
from diptych.image.model import ImageModel
from diptych.image.unet import UNet
from diptych.interop.layer_names import TOWER, Spot, layer_places, row_of, spots
from diptych.interop.parts import PICKLES, without_ones
from diptych.interop.peft import CONFIG, joined, patterned, settings_from
from diptych.interop.tensors import Place

WEIGHTS = "pytorch_lora_weights.safetensors"
FILES = (WEIGHTS, "adapter_model.safetensors")
ABOUT = "lora_adapter_metadata"
# How the names of a part's layers begin; the part, or those of which a painter has one.
BEGINNINGS = {
    "unet.": ("network",),
    "transformer.": ("network",),
    "base_model.model.": ("network",),
    "diffusion_model.": ("network",),
    "model.diffusion_model.": ("network",),
    "lora_unet_": ("network",),
    "lora_transformer_": ("network",),
    "text_encoder.": ("text_encoder",),
    "text_encoder_2.": ("text_encoder_2",),
    "text_encoder_3.": ("text_encoder_3",),
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3", "text_encoder_2"),  # T5, which is Flux's second
    "text_encoders.clip_l.transformer.": ("text_encoder",),
    "text_encoders.clip_g.transformer.": ("text_encoder_2",),
    "text_encoders.t5xxl.transformer.": ("text_encoder_3", "text_encoder_2"),
}
# How they end.
MATRIX = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<letter>[AB])(?:\.default)?|\.lora_(?P<word>down|up|mid)"
    r"|(?:\.lora|_lora|\.lora_linear_layer)?\.(?P<older>down|up))\.weight"
)
ALPHA = re.compile(r"(?P<module>.+?)(?:\.lora|_lora|\.lora_linear_layer)?\.alpha")
HALVES = {"A": "A", "down": "A", "B": "B", "up": "B", "mid": "middle"}
FOREIGN = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "lora_embedding_": "LoRA of an embedding",
    "diff_b$": "whole differences of biases",
    "diff$": "whole differences of weights",
    "w_norm": "weights of norms",
    "b_norm": "weights of norms",
}


@dataclass
class Found:
    """What a file has for one matrix there."""

    part: str
    spot: Spot
    key: str
    tensors: dict[str, Tensor]


def read_lora(path: str | Path, parts: Mapping[str, nn.Module]) -> Adapter:
    """The adapter in a file, or in a folder that has one, for the parts of a painter (`ImageModel.parts`).

    Raises:
        ValueError: in one line, for a file that is missing or damaged, for what is more than LoRA, and for tensors that
            have no place in the parts or do not fit the layer that is theirs, named as they are called there.
    """
    file = lora_file(Path(path))
    tensors, about = _read(file)
    _refuse_foreign(file, tensors)
    known = {name: spots(part) for name, part in parts.items()}
    found: dict[tuple[str, str], Found] = {}
    astray: list[str] = []
    for key, tensor in tensors.items():
        matrix, alpha = MATRIX.fullmatch(key), ALPHA.fullmatch(key)
        match = matrix or alpha
        place = match and _place(match["module"], known)
        if match is None or place is None:
            astray.append(key)
            continue
        half = "alpha" if matrix is None else HALVES[matrix["letter"] or matrix["word"] or matrix["older"]]
        one = found.setdefault(place, Found(place[0], known[place[0]][place[1]], match["module"], {}))
        if half in one.tensors:
            raise ValueError(f"'{file}' has '{key}' twice, by two names")
        one.tensors[half] = tensor
    if astray:
        raise ValueError(f"'{file}' does not fit the model, which has no place for {_some(astray, len(tensors))}")
    if not found:
        raise ValueError(f"'{file}' is no LoRA file: it has no tensors")
    layers: dict[str, LowRank] = {}
    ranks: Counter[int] = Counter()
    for one in found.values():
        a, b, scale = _whole(one, about, file)
        ranks[len(a)] += 1
        for name, ranges in one.spot.rows.items():
            if f"{one.part}.{name}" in layers:
                raise ValueError(f"'{file}' has a part of '{one.key}' twice, by two names")
            own = torch.cat([b[start:end] for start, end in ranges]) if len(ranges) > 1 else b[slice(*ranges[0])]
            layers[f"{one.part}.{name}"] = _low_rank(one, parts[one.part], name, a, own, scale, file)
    rank = ranks.most_common(1)[0][0]
    targets = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    return Adapter(LoraSettings(rank, float(rank), targets=targets), layers)


def load_lora(model: ImageModel, path: str | Path, name: str | None = None) -> str:
    """Read an adapter and give it to a painter to use.

    Returns:
        Its name: `name`, or that of the file or folder.

    Raises:
        ValueError: as `read_lora`, or a name that the model has an adapter of already.
    """
    whole = Path(path).resolve()
    name = (whole.stem if whole.suffix == ".safetensors" else whole.name) if name is None else name
    try:
        model.add_adapter(name, read_lora(path, model.parts))
    except ValueError as error:
        raise ValueError(f"adapter '{name}' for {model.name}: {error}") from error
    return name


def write_lora(adapter: Adapter, parts: Mapping[str, nn.Module], path: str | Path, *, card: str | None = None) -> None:
    """Write an adapter as diffusers does, for `load_lora_weights`: whole or not at all.

    Its scale goes into B, so that it is the same to a reader that asks for no alpha.

    Args:
        parts: of the painter that it is for.
        path: a file that ends in .safetensors, or else a folder, which gets the file `WEIGHTS`.
        card: what the README.md of the folder says.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): low for key, low in adapter.layers.items() if key.startswith(f"{name}.")}
        together: dict[str, list[tuple[Place, LowRank]]] = {}
        where = layer_places(part)
        for layer in sorted(own, key=lambda layer: where[layer].part):
            together.setdefault(where[layer].names[0], []).append((where[layer], own[layer]))
        for there, found in together.items():
            a, b = joined(found)
            size = published_shape(part, there, found[0][0])
            whole = f"{_beginning(name, part)}{there}"
            tensors[f"{whole}.lora_A.weight"] = a.view(len(a), *size[1:]).clone()  # several may have one in common
            b = (b * found[0][1].scale).view(len(b), len(a), *[1] * (len(size) - 2))
            tensors[f"{whole}.lora_B.weight"] = b
    path = Path(path)
    if path.suffix == ".safetensors":
        with atomic_file(output_path(path)) as temporary:
            save_tensors(tensors, temporary, metadata={"format": "pt"})
        return
    with atomic_directory(path) as folder:
        save_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")


def lora_file(path: Path) -> Path:
    """The file of weights at `path`. Raises: ValueError where there is none, or a pickle in its place."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        named = [path / name for name in FILES if (path / name).is_file()]
        if named or len(files) == 1:
            return (named or files)[0]
        if files:
            raise ValueError(f"'{path}' has several files, none of them {WEIGHTS}: name one, such as '{files[0].name}'")
        pickles = sorted(file.name for ending in PICKLES for file in path.glob(ending))
        also = f" (a pickle is never opened: {pickles[0]})" if pickles else ""
        raise ValueError(f"'{path}' is no adapter: it has no {WEIGHTS}{also}")
    if not path.is_file():
        raise ValueError(f"there is no LoRA file at '{path}'")
    if any(path.match(ending) for ending in PICKLES):
        raise ValueError(f"'{path}' is a pickle, which may hold code that runs when it is opened; get the safetensors")
    return path


def published_shape(part: nn.Module, there: str, place: Place) -> tuple[int, ...]:
    """Of the whole weight as diffusers has it: some that are matrices here are convolutions there."""
    size, config = place.whole_shape, cast(Any, part.config)
    if isinstance(part, UNet) and config.has_convolved_frame and re.search(r"\.proj_(in|out)$", there):
        return *size, 1, 1
    if there == "pos_embed.proj":
        return size[0], config.channels, config.patch, config.patch
    return size


def _beginning(name: str, part: nn.Module) -> str:
    """Of the names of a part's layers as diffusers writes them."""
    if name == "network" and row_of(part) is not None:
        return "unet." if isinstance(part, UNet) else "transformer."
    return f"{name}.{TOWER}" if isinstance(part, TextTower) else f"{name}."


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Mapping[str, Any]]]:
    """The tensors, and what is said of each part's adapter, where it is."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{file}' is damaged or not a safetensors file: {error}") from error
    about: dict[str, dict[str, Any]] = {}
    if ABOUT in metadata:
        try:
            said = json.loads(metadata[ABOUT])
        except ValueError as error:
            raise ValueError(f"'{file}': {ABOUT} is no JSON: {error}") from error
        if not isinstance(said, dict):
            raise ValueError(f"'{file}': {ABOUT} must be a table, not {said!r}")
        for key, value in said.items():
            beginning, _, setting = key.partition(".")
            part = "network" if beginning in ("unet", "transformer") else beginning
            about.setdefault(part, {})[setting] = value
    elif file.name == FILES[1] and (file.parent / CONFIG).is_file():
        about["network"] = read_object(file.parent / CONFIG)
    return tensors, dict(about)


def _refuse_foreign(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for mark, kind in FOREIGN.items():
        keys = [key for key in tensors if re.search(rf"\.{mark}", key)]
        if keys:
            raise ValueError(f"'{file}' is more than LoRA: {kind}, {_some(keys, len(tensors))}")
    biases = [key for key in tensors if key.endswith(".bias")]
    if biases:
        raise ValueError(f"'{file}' is more than LoRA: biases, {_some(biases, len(tensors))}")


def _place(module: str, known: Mapping[str, Mapping[str, Spot]]) -> tuple[str, str] | None:
    """Which part, and which of its names, a layer's name in a file means."""
    beginnings = {f"{part}.": (part,) for part in known} | BEGINNINGS
    begun = [beginning for beginning in beginnings if module.startswith(beginning)]
    beginning = max(begun, key=len, default="")
    name = module.removeprefix(beginning).replace(".processor.", ".").replace(".", "_")
    for part in beginnings.get(beginning, ("network",)):
        if part in known:
            return (part, name) if name in known[part] else None
    return None


def _whole(one: Found, about: Mapping[str, Mapping[str, Any]], file: Path) -> tuple[Tensor, Tensor, float]:
    """A, B and the scale of a matrix there."""
    a, b, middle, alpha = (one.tensors.get(half) for half in ("A", "B", "middle", "alpha"))
    if a is None or b is None:
        raise ValueError(f"'{file}' lacks the other half of '{one.key}'")
    if not (a.is_floating_point() and b.is_floating_point() and a.ndim >= 2 and b.ndim >= 2):
        raise ValueError(f"'{file}': A and B of '{one.key}' are no matrices of numbers with a point")
    if middle is not None:  # a convolution between two of 1 x 1: the first of them goes into it
        if middle.ndim != 4 or middle.shape[1] != len(a) or b.shape[1] != len(middle):
            raise ValueError(f"'{file}': the three parts of '{one.key}' do not fit each other")
        a = torch.einsum("rskl,si->rikl", middle.float(), a.float().flatten(1))
    rank = len(a)
    if alpha is not None:
        if alpha.numel() != 1 or not math.isfinite(alpha.item()):
            raise ValueError(f"'{file}': alpha of '{one.key}' must be a finite number")
        return a, b, alpha.item() / rank
    said = about.get(one.part)
    if said is None:
        return a, b, 1.0
    settings = settings_from(said, f"{file}, {one.part}")
    return a, b, settings.scale(rank, patterned(said, "alpha_pattern", _plain(one), "lora_alpha"))


def _plain(one: Found) -> str:
    """The name of a layer within its part, as patterns mean it."""
    beginning = max((begun for begun in BEGINNINGS if one.key.startswith(begun)), key=len, default="")
    return one.key.removeprefix(beginning)


def _low_rank(one: Found, part: nn.Module, name: str, a: Tensor, b: Tensor, scale: float, file: Path) -> LowRank:
    """Beside one of our layers, with what the file has."""
    layer, row = adaptable(part)[name], row_of(part)
    size = tuple(layer.weight.shape)
    is_alike = without_ones(a.shape[1:]) == without_ones(size[1:])
    is_loose = row is not None and f"{name}.weight" in row.reshaped and a[0].numel() == math.prod(size[1:])
    height = sum(end - start for ranges in one.spot.rows.values() for start, end in ranges)
    whole = one.tensors["B"]
    if not (is_alike or is_loose) or whole.numel() != height * len(a) or len(whole) != height:
        raise ValueError(
            f"'{file}' does not fit the model: A and B of '{one.key}' are {tuple(one.tensors['A'].shape)} and "
            f"{tuple(whole.shape)}, the weight there is {(height, *size[1:])}"
        )
    with torch.device("meta"):
        low = LowRank.beside(layer, len(a), scale)
    low.a, low.b = nn.Parameter(a.reshape(len(a), *size[1:])), nn.Parameter(b.flatten(1))
    return low


def _some(keys: list[str], among: int) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"'{keys[0]}'{more} ({len(keys)} of {among} tensors)"
