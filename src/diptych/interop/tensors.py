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
    """Where a tensor of ours lies there.

    Args:
        names: of the tensor there; of those of all experts where ours is their stack.
        shape: of ours.
        part, parts: ours is the `part`-th of `parts` equal parts of the rows there.
        is_transposed: there the two axes are exchanged.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    part: int = 0
    parts: int = 1
    is_transposed: bool = False
    is_stack: bool = False

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of each tensor there."""
        own = self.shape[1:] if self.is_stack else self.shape
        whole = (own[0] * self.parts, *own[1:]) if self.parts > 1 else own
        return whole[::-1] if self.is_transposed else whole

    def cut(self, found: Mapping[str, Tensor]) -> Tensor:
        """Ours, out of the tensors there; a copy only of what is stacked."""
        if self.is_stack:
            return torch.stack([found[name] for name in self.names])
        whole = found[self.names[0]]
        turned = whole.mT if self.is_transposed else whole
        return turned.chunk(self.parts)[self.part] if self.parts > 1 else turned


def places(config: DecoderConfig, row: Architecture) -> dict[str, Place]:
    """Where each tensor of the decoder lies in a checkpoint of that architecture."""
    with weights.outline():
        shapes = {name: tuple(tensor.shape) for name, tensor in Decoder(config).state_dict().items()}
    return {name: _place(name, shape, row) for name, shape in shapes.items()}


def _place(name: str, shape: tuple[int, ...], row: Architecture) -> Place:
    module, leaf = name.rsplit(".", 1)
    layer = re.match(r"blocks\.(\d+)\.", module)
    pattern = re.sub(r"^blocks\.\d+", "blocks.{}", module)
    if pattern == "blocks.{}.feed_forward" and layer:  # its parameters are those of experts
        there = row.expert_names[leaf]
        is_stack = there.count("{}") > 1
        names = tuple(there.format(layer[1], expert) for expert in range(shape[0] if is_stack else 1))
        return Place(names, shape, is_stack=is_stack)
    for fused, modules in row.fused.items():
        if pattern in modules:
            there, part, parts = fused, modules.index(pattern), len(modules)
            break
    else:
        there, part, parts = row.names[pattern], 0, 1
    there = there.format(layer[1]) if layer else there
    return Place((f"{there}.{leaf}",), shape, part, parts, leaf == "weight" and there.endswith(row.transposed))


def decoder_tensors(directory: str | Path, config: DecoderConfig, row: Architecture) -> Iterator[tuple[str, Tensor]]:
    """The decoder's tensors by its own names, from a directory of that architecture.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, as it is called there.
    """
    found = weights.read_tensors(directory)
    found = {name: tensor for name, tensor in found.items() if not NO_WEIGHTS.search(name)}
    if not any(name.startswith(row.prefix) for name in found):  # saved without the head, and so without the prefix
        found = {name if name.startswith("lm_head.") else row.prefix + name: tensor for name, tensor in found.items()}
    most = max(config.num_layers, config.experts.num_experts if config.experts else 0)
    if most > len(found):  # before as many are named
        raise ValueError(f"'{directory}' does not fit its config.json: it has {len(found)} tensors for {most} modules")
    try:
        where = places(config, row)
    except (RuntimeError, OverflowError, TypeError) as error:  # torch has no room for the numbers
        raise ValueError(f"'{directory}' does not fit its config.json: no tensor is of such sizes") from error
    head = found.pop("lm_head.weight", None) if config.ties_embeddings else None
    if head is not None and not torch.equal(head, found.get(where["embedding.weight"].names[0], head)):
        raise ValueError(
            f"'{directory}' does not fit its config.json: tie_word_embeddings is true, but 'lm_head.weight' is not the "
            "embedding"
        )
    check_fit({name: place.whole_shape for place in where.values() for name in place.names}, found, directory)
    return ((name, place.cut(found)) for name, place in where.items())


def published_tensors(tensors: Mapping[str, Tensor], config: DecoderConfig, row: Architecture) -> dict[str, Tensor]:
    """The decoder's tensors as a checkpoint of that architecture has them."""
    fused: dict[str, list[tuple[Place, Tensor]]] = {}
    for name, place in places(config, row).items():
        tensor = weights.whole(tensors[name])
        pieces = tensor.unbind() if place.is_stack else [tensor]
        for there, piece in zip(place.names, pieces, strict=True):
            fused.setdefault(there, []).append((place, piece))
    published = {}
    for there, found in fused.items():
        found.sort(key=lambda one: one[0].part)
        whole = torch.cat([piece for _, piece in found]) if len(found) > 1 else found[0][1]
        published[there] = whole.mT.contiguous() if found[0][0].is_transposed else whole
    return published


def check_fit(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], directory: str | Path) -> None:
    """Raises: ValueError naming the first tensor that is missing, left over or of another shape."""
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
