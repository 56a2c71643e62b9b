"""Adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors, written and read.

Names are those of the published architecture that computes what the base does, so that PEFT puts an adapter of ours
beside the same model in transformers. Where that architecture keeps several of our matrices in one (GPT-2's query, key
and value), their adapters become one with the sum of their ranks, and B in blocks.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diptych.core.files import atomic_directory
from diptych.core.lora import Adapter, LoraSettings, LowRank
from diptych.core.weights import read_object, save_tensors
from diptych.interop.configs import architecture_for
from diptych.interop.tensors import Place, places
from diptych.text.decoder import DecoderConfig
from diptych.text.model import TextModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# What PEFT can switch on that is not LoRA as it is here; key -> the values that leave it off.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
}
MOVES_BASE = ("pissa", "olora", "loftq", "corda")  # ways to begin that change the base's own weights


def write_adapter(
    adapter: Adapter, config: DecoderConfig, directory: str | Path, *, base: str = "", card: str | None = None
) -> None:
    """Write an adapter directory that PEFT opens, whole or not at all.

    Args:
        config: of the decoder that the adapter is for.
        base: how the model that it is for is called.
        card: what its README.md says.

    Raises:
        ValueError: no published architecture computes what the decoder does.
    """
    row, _ = architecture_for(config)
    where = places(config, row)
    found: dict[str, list[tuple[Place, LowRank]]] = {}
    for name, layer in adapter.layers.items():
        place = where[f"{name}.weight"]
        found.setdefault(_module(place), []).append((place, layer))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    settings = adapter.settings
    for there, parts in found.items():
        a, b = joined(parts)
        tensors |= {f"{PREFIX}{there}.lora_A.weight": a, f"{PREFIX}{there}.lora_B.weight": b}
        ranks[there] = len(a)
        alphas[there] = parts[0][1].scale / settings.scale(len(a), 1.0)
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": _plain(settings.alpha),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.use_rslora,
        "target_modules": _targets(set(found), {_module(place) for place in where.values()}),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != settings.rank},
        "alpha_pattern": {
            name: _plain(alpha) for name, alpha in alphas.items() if not math.isclose(alpha, settings.alpha)
        },
        "fan_in_fan_out": bool(row.transposed),
        "bias": "none",
        "inference_mode": True,
    }
    with atomic_directory(directory) as temporary:
        (temporary / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")


def read_adapter(directory: str | Path, config: DecoderConfig) -> Adapter:
    """The adapter in a directory that PEFT or `write_adapter` wrote, for a decoder of `config`.

    Raises:
        ValueError: in one line, for files that are missing or damaged, for what is more than LoRA, and for a tensor
            that is missing, left over or of another shape than the decoder's, named as it is called there.
    """
    directory = Path(directory)
    if not (directory / CONFIG).is_file():
        raise ValueError(f"'{directory}' is not an adapter: it has no {CONFIG}")
    about = read_object(directory / CONFIG)
    row, _ = architecture_for(config)
    settings = settings_from(about, f"{directory}/{CONFIG}")
    pairs = _pairs(directory)
    where: dict[str, list[tuple[str, Place]]] = {}
    for name, place in places(config, row).items():
        if name.endswith(".weight") and len(place.shape) == 2 and name != "embedding.weight":
            where.setdefault(_module(place), []).append((name.removesuffix(".weight"), place))
    layers: dict[str, LowRank] = {}
    for there, (a, b) in pairs.items():
        if there not in where:
            raise ValueError(f"'{directory}' adapts '{there}', which the model has not as a {row.name}")
        rank, alpha = (
            patterned(about, "rank_pattern", there, "r"),
            patterned(about, "alpha_pattern", there, "lora_alpha"),
        )
        height, width = where[there][0][1].shape
        wanted = ((rank, width), (height * where[there][0][1].parts, rank))
        if (tuple(a.shape), tuple(b.shape)) != wanted:
            raise ValueError(
                f"'{directory}' does not fit the model: A and B of '{there}' are {tuple(a.shape)} and "
                f"{tuple(b.shape)}, the model needs {wanted[0]} and {wanted[1]}"
            )
        for name, place in where[there]:
            layer = LowRank((height, width), int(rank), settings.scale(int(rank), alpha), settings.dropout)
            with torch.no_grad():
                layer.a.copy_(a)
                layer.b.copy_(b.chunk(place.parts)[place.part])
            layers[name] = layer
    targets = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    return Adapter(replace(settings, targets=targets), layers)


def load_adapter(model: TextModel, directory: str | Path, name: str | None = None) -> str:
    """Read an adapter and give it to a model to use.

    Returns:
        Its name: `name`, or that of the directory.

    Raises:
        ValueError: as `read_adapter`, or a name that the model has an adapter of already.
    """
    name = Path(directory).resolve().name if name is None else name
    try:
        model.add_adapter(name, read_adapter(directory, model.config))
    except ValueError as error:
        raise ValueError(f"adapter '{name}' for {model.name}: {error}") from error
    return name


def _module(place: Place) -> str:
    return place.names[0].rpartition(".")[0]


def joined(parts: list[tuple[Place, LowRank]]) -> tuple[Tensor, Tensor]:
    """A and B of a matrix there, from the adapters of those of ours that it holds: B in blocks, or in one where they
    have an A in common, as those have that were read from such a matrix."""
    place, first = parts[0]
    height, matrices = len(first.b), [layer.a.detach().float().cpu() for _, layer in parts]
    is_common = all(torch.equal(a, matrices[0]) for a in matrices)
    a = matrices[0] if is_common else torch.cat(matrices)
    b = torch.zeros(place.parts * height, len(a))
    column = 0
    for place, layer in parts:
        rank = len(layer.a)
        b[place.part * height : (place.part + 1) * height, column : column + rank] = layer.b.detach().float().cpu()
        column += 0 if is_common else rank
    return a.contiguous(), b


def _targets(adapted: set[str], modules: set[str]) -> list[str]:
    """The shortest endings of names that mean these modules and no others."""
    for parts in (1, 2):
        endings = {".".join(name.split(".")[-parts:]) for name in adapted}
        if all(name in adapted for name in modules if name.endswith(tuple(f".{ending}" for ending in endings))):
            return sorted(endings)
    return sorted(adapted)


def settings_from(about: Mapping[str, Any], where: str) -> LoraSettings:
    """What an adapter_config.json says, or its like at `where`. Raises: ValueError for what is more than LoRA."""
    for key, allowed in PLAIN.items():
        if about.get(key, allowed[0]) not in allowed:
            raise ValueError(f"'{where}': {key} {about[key]!r} is not supported, only {allowed[0]!r}")
    start = about.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(MOVES_BASE):
        raise ValueError(f"'{where}': init_lora_weights {start!r} changes the model that it is for")
    rank, alpha = patterned(about, "rank_pattern", "", "r"), patterned(about, "alpha_pattern", "", "lora_alpha")
    try:
        return LoraSettings(
            int(rank), alpha, float(about.get("lora_dropout") or 0.0), use_rslora=bool(about.get("use_rslora", False))
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{where}': {error}") from error


def patterned(about: Mapping[str, Any], patterns: str, module: str, otherwise: str) -> float:
    """The rank or alpha of a module: of the first pattern that its name ends with (or is, after "^"), else of all."""
    value = about.get(otherwise)
    for key, own in (about.get(patterns) or {}).items():
        ending = key.removeprefix("^")
        if not re.fullmatch(r"[\w.]+", ending):
            raise ValueError(f"{CONFIG}: {patterns} names modules by '{key}', which is no ending of a name")
        if module == ending or (ending == key and module.endswith(f".{ending}")):
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{CONFIG}: {otherwise} must be a number, not {value!r}")
    return value


def _pairs(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each module, by its name there."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"'{directory}' is not a whole adapter: {WEIGHTS} is missing (a pickle is never opened)")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged or not a safetensors file: {error}") from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise ValueError(f"'{path}' holds '{key}', which is no part of LoRA beside a linear layer")
        found.setdefault(match[1], {})[match[2]] = tensor
    for there, pair in found.items():
        if len(pair) < 2:
            raise ValueError(f"'{path}' lacks the other half of '{there}'")
    return {there: (pair["A"], pair["B"]) for there, pair in found.items()}


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
