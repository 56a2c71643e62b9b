"""A part of a published pipeline - a text encoder, an autoencoder, a denoiser - as a network of ours.

diffusers and transformers publish each in a folder of its own: config.json and safetensors. What one kind of part is
called there, and what its settings and its tensors are called, is a row of data, a `PublishedPart`; this file is what
all rows have in common:

    part = part_of(entries, rows)                  the row of the class that config.json names
    config = part.read(entries)                    its settings as ours: refused by their key where we cannot do them
    network = open_part(directory, rows, ...)      the whole: settings, network, weights

Tensors stay mapped from their files until they are used: what is only renamed, split or given other axes of length 1
is never copied here.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core import weights
from diptych.core.mapped import recast
from diptych.core.spelling import unknown
from diptych.interop.tensors import Place, check_fit

REQUIRED = object()  # in place of what a key stands for that is left out
ABOUT = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version")  # no setting of a network
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True)
class PublishedPart:
    """One kind of part.

    Args:
        name: of its class: "_class_name" (diffusers) or one of "architectures" (transformers) in config.json.
        keys: key of config.json that says something -> what it stands for when left out, or REQUIRED.
        only: key of which some values alone are supported -> those; left out, it stands for the first.
        idle: keys that change nothing which we compute.
        knows_all: refuse a key that is in none of these. (transformers writes many that belong to no network.)
        config: from all of `keys`, filled in, to the frozen config of our network.
        network: from that config to our network.
        names: from that config to what each of our modules is called there; "{}" stands for a number, wherever and
            however often: {"blocks.{}.attention.query": "encoder.layers.{}.q_proj"}. A name of one module alone has
            its numbers written out; that of a single parameter is written whole, ending included.
        fused: module there whose tensors hold several of ours, in order -> those of ours, as patterns alike.
        given: from all of `keys` to tensors of ours that config.json tells, and no weights.
        reshaped: tensors of ours that have the same numbers in the same order there, but other axes.
        older: pattern (regular expression) in a tensor's name as older versions wrote it -> what replaces it.
        unweighted: pattern of tensors there that are no weights.
        stem: of the weights' files.
    """

    name: str
    keys: Mapping[str, Any]
    config: Callable[[dict[str, Any]], Any]
    network: Callable[[Any], nn.Module]
    names: Callable[[Any], Mapping[str, str]]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    knows_all: bool = True
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: Callable[[dict[str, Any]], Mapping[str, Tensor]] = lambda entries: {}
    reshaped: tuple[str, ...] = ()
    older: Mapping[str, str] = field(default_factory=dict)
    unweighted: str = r"$^"
    stem: str = "diffusion_pytorch_model"

    def entries(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """All of `keys`, those left out filled in.

        Raises:
            ValueError: naming the key that is missing, not known, or asks for what is not supported.
        """
        if entries.get("quantization_config"):
            raise ValueError(
                "its weights are quantised (quantization_config), which is not supported: open the folder that they "
                "were made from"
            )
        for key, allowed in self.only.items():
            value = entries.get(key, allowed[0])
            if value not in allowed:
                shown = " or ".join(map(repr, allowed))
                raise ValueError(f"'{key}' is supported only as {shown}, not {value!r}")
        known = (*self.keys, *self.only, *self.idle, *ABOUT)
        for key, value in entries.items():
            if self.knows_all and key not in known and not key.startswith("_") and value is not None:
                raise unknown(f"setting of {self.name}", key, sorted(self.keys))
        filled = {key: entries.get(key, absent) for key, absent in self.keys.items()}
        missing = [key for key, value in filled.items() if value is REQUIRED]
        if missing:
            raise ValueError(f"it has no '{missing[0]}'")
        return filled

    def read(self, entries: Mapping[str, Any]) -> Any:
        """The config of our network. Raises: ValueError as `entries`, and what our config itself refuses."""
        return self.config(self.entries(entries))


def within(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """Names of a network's part that stands at `ours` there, at `theirs` here: "down.{}" and "down_blocks.{}"."""
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in names.items()}


def class_of(entries: Mapping[str, Any]) -> str:
    """The class that a config.json is of. Raises: ValueError where it names none."""
    listed = entries.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else None
    name = entries.get("_class_name", first)
    if not isinstance(name, str):
        raise ValueError("its config.json names no class: it has neither '_class_name' nor 'architectures'")
    return name


def part_of(entries: Mapping[str, Any], rows: Iterable[PublishedPart]) -> PublishedPart:
    """The row of the class that config.json names. Raises: ValueError for one that is not among them."""
    by_name = {row.name: row for row in rows}
    name = class_of(entries)
    if name not in by_name:
        raise unknown("class", name, by_name)
    return by_name[name]


def open_part(
    directory: str | Path,
    rows: Iterable[PublishedPart],
    *,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network in a folder, ready to be used: no gradients, in evaluation.

    Args:
        rows: the kinds of part that may lie there.
        variant: of the weights, "fp16" for model.fp16.safetensors; None takes the plain file, else the one there is.
        dtype: of the weights; None keeps them as they are stored. What is `given` keeps its own.

    Raises:
        ValueError: in one line that begins with the folder, for a class or a setting that is not supported, and for
            files that are missing, damaged, pickled, or do not fit each other.
    """
    directory = Path(directory)
    entries = weights.read_config(directory)
    try:
        row = part_of(entries, rows)
        config = row.read(entries)
        with weights.outline():
            network = row.network(config)
        given = row.given(row.entries(entries))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"'{directory}' cannot be opened: {' '.join(str(error).split())}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    tensors = {**dict(part_tensors(directory, row, config, shapes, variant)), **given}
    weights.adopt(network, tensors.items(), directory)
    recast(network, dtype=dtype)
    return network.requires_grad_(False).eval().to(device)


def part_tensors(
    directory: str | Path,
    row: PublishedPart,
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    variant: str | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of our network by its own names (but for those that are `given`), from a folder of that kind.

    Args:
        shapes: of our network's tensors by name.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, as it is called there.
    """
    directory = Path(directory)
    files = weight_files(directory, row, variant)
    found: dict[str, Tensor] = {}
    for name, tensor in weights.iterate_tensors(directory, *files):
        for pattern, newer in row.older.items():
            name = re.sub(pattern, newer, name)
        if not re.search(row.unweighted, name):
            found[name] = tensor
    places = dict(part_places(shapes, row.names(config), row.fused))
    wanted = {name: place.whole_shape for place in places.values() for name in place.names}
    loose = {there for ours in row.reshaped if ours in places for there in places[ours].names}
    for name, shape in wanted.items():
        is_alike = name in found and without_ones(found[name].shape) == without_ones(shape)
        if is_alike or (name in loose and name in found and found[name].numel() == math.prod(shape)):
            found[name] = found[name].reshape(shape)  # a 1 x 1 convolution is a linear layer
    check_fit(wanted, found, directory)
    return ((name, place.cut(found)) for name, place in places.items())


def part_places(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str], fused: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Place]]:
    """Where each of our tensors lies there. What no name is given for is not looked for."""
    inside = {ours: (there, part, len(parts)) for there, parts in fused.items() for part, ours in enumerate(parts)}
    for name, shape in shapes.items():
        numbers = re.findall(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", name)
        pattern = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "{}", name)
        module, _, leaf = pattern.rpartition(".")
        if (exact := name.rpartition(".")[0]) in names:
            yield name, Place((f"{names[exact]}.{leaf}",), shape)
        elif pattern in names:
            yield name, Place((names[pattern].format(*numbers),), shape)
        elif module in inside:
            there, part, parts = inside[module]
            yield name, Place((f"{there}.{leaf}".format(*numbers),), shape, part, parts)
        elif module in names:
            yield name, Place((f"{names[module]}.{leaf}".format(*numbers),), shape)


def without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def weight_files(directory: Path, row: PublishedPart, variant: str | None = None) -> tuple[str, str]:
    """The names of the file of weights and of its index, one of which is there.

    Raises:
        ValueError: no such file, several variants and none of them plain, or pickles alone; it says what to do.
    """
    stem = re.escape(row.stem)
    variants: dict[str, tuple[str, str]] = {}
    for path in sorted(directory.iterdir()):
        single = re.fullmatch(rf"{stem}(?:\.([\w-]+))?\.safetensors", path.name)
        if index := re.fullmatch(rf"{stem}\.safetensors\.index(?:\.([\w-]+))?\.json", path.name):
            dotted = f".{index[1]}" if index[1] else ""
            variants[index[1] or ""] = (f"{row.stem}{dotted}.safetensors", path.name)
        elif single and not re.search(r"\d-of-\d", path.name):
            variants.setdefault(single[1] or "", (path.name, f"{path.name}.index.json"))
    if variant is not None and variant not in variants:
        named = ", ".join(filter(None, variants)) or "none"
        raise ValueError(f"'{directory}' has no variant '{variant}' of its weights; it has: {named}")
    if variant is not None or "" in variants:
        return variants[variant or ""]
    if len(variants) == 1:
        return next(iter(variants.values()))
    if variants:
        raise ValueError(f"'{directory}' has its weights in several variants, {', '.join(variants)}: name one")
    pickles = sorted(path.name for ending in PICKLES for path in directory.glob(ending))
    if pickles:
        raise ValueError(
            f"'{directory}' has its weights only as a pickle ({pickles[0]}), which may hold code that runs when it is "
            f"opened. Get the safetensors files, or have their authors' library write them: "
            f"{row.name}.from_pretrained(DIR).save_pretrained(NEW)"
        )
    raise ValueError(f"'{directory}' has no weights: there is no {row.stem}.safetensors and no index of several")
