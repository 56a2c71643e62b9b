"""Weights of a published decoder <-> the decoder's own, by the names of its architecture.

Tensors stay mapped from their files until the decoder takes them: what is only renamed is never copied here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diptych.core import weights
from diptych.interop.architectures import Architecture
from diptych.text.decoder import Decoder, DecoderConfig

# What old checkpoints carry besides their weights: masks and rotary frequencies.
NO_WEIGHTS = re.compile(r"(\.attn\.(masked_)?bias|\.rotary_emb\.inv_freq)$")


@dataclass(frozen=True)
class Place:
    """Where a tensor of ours lies: the `part`-th of `parts` equal parts of the rows of the tensor `name` there.

    Args:
        shape: of ours.
        is_transposed: there its last two axes are exchanged.
    """

    name: str
    shape: tuple[int, ...]
    part: int = 0
    parts: int = 1
    is_transposed: bool = False

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of the tensor there."""
        whole = (self.shape[0] * self.parts, *self.shape[1:])
        return whole[::-1] if self.is_transposed else whole

    def cut(self, whole: Tensor) -> Tensor:
        """Ours out of the tensor there, without a copy."""
        turned = whole.mT if self.is_transposed else whole
        return turned.chunk(self.parts)[self.part]


def places(config: DecoderConfig, row: Architecture) -> dict[str, Place]:
    """Where each tensor of the decoder lies in a checkpoint of that architecture."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Decoder(config).state_dict().items()}
    fused = {
        module: (whole, part, len(modules))
        for whole, modules in row.fused.items()
        for part, module in enumerate(modules)
    }
    found = {}
    for name, shape in shapes.items():
        module, leaf = name.rsplit(".", 1)
        layer = re.match(r"blocks\.(\d+)\.", module)
        pattern = re.sub(r"^blocks\.\d+", "blocks.{}", module)
        whole, part, parts = fused[pattern] if pattern in fused else (row.names[pattern], 0, 1)
        there = whole.format(layer[1]) if layer else whole
        is_transposed = leaf == "weight" and there.endswith(row.transposed)
        found[name] = Place(f"{there}.{leaf}", shape, part, parts, is_transposed)
    return found


def decoder_tensors(directory: str | Path, config: DecoderConfig, row: Architecture) -> Iterator[tuple[str, Tensor]]:
    """The decoder's tensors by its own names, from a directory of that architecture.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, as it is called there.
    """
    found = weights.read_tensors(directory)
    found = {name: tensor for name, tensor in found.items() if not NO_WEIGHTS.search(name)}
    if not any(name.startswith(row.prefix) for name in found):  # saved without the head, and so without the prefix
        found = {name if name.startswith("lm_head.") else row.prefix + name: tensor for name, tensor in found.items()}
    where = places(config, row)
    head = found.pop("lm_head.weight", None) if config.ties_embeddings else None
    if head is not None and not torch.equal(head, found.get(where["embedding.weight"].name, head)):
        raise ValueError(
            f"'{directory}' does not fit its config.json: tie_word_embeddings is true, but 'lm_head.weight' is not the "
            "embedding"
        )
    _check({place.name: place.whole_shape for place in where.values()}, found, directory)
    for name, place in where.items():
        yield name, place.cut(found[place.name])


def published_tensors(tensors: Mapping[str, Tensor], config: DecoderConfig, row: Architecture) -> dict[str, Tensor]:
    """The decoder's tensors as a checkpoint of that architecture has them."""
    parts: dict[str, list[tuple[Place, Tensor]]] = {}
    for name, place in places(config, row).items():
        parts.setdefault(place.name, []).append((place, weights.whole(tensors[name])))
    published = {}
    for name, found in parts.items():
        found.sort(key=lambda one: one[0].part)
        whole = torch.cat([tensor for _, tensor in found]) if len(found) > 1 else found[0][1]
        published[name] = whole.mT.contiguous() if found[0][0].is_transposed else whole
    return published


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], directory: str | Path) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        raise ValueError(f"'{directory}' does not fit its config.json: it lacks '{missing[0]}'{_more(missing)}")
    if extra:
        raise ValueError(
            f"'{directory}' does not fit its config.json: it has '{extra[0]}'{_more(extra)}, which the model has not"
        )
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise ValueError(
                f"'{directory}' does not fit its config.json: '{name}' is {tuple(found[name].shape)}, the model needs "
                f"{shape}"
            )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
