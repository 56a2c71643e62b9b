"""Where the layers of a painter's parts lie among names that others give them, for adapters that are kept by names.

The names are those of the rows by which the part itself is read (`denoisers`, `encoders`), and those of the original
networks (`original_names`). Some tools write every dot as "_": what is looked up is a name so written, which is exact
because all names are known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from diptych.core.lora import adaptable
from diptych.image.clip import TextTower
from diptych.image.mmdit import MMDiT
from diptych.image.t5 import T5Encoder
from diptych.image.unet import UNet
from diptych.interop import denoisers, encoders, original_names
from diptych.interop.parts import PublishedPart, part_of, part_places
from diptych.interop.tensors import Place

Rows = tuple[tuple[int, int], ...]  # from, to

ROWS = (*denoisers.ROWS, *encoders.ROWS)
TOWER = "text_model."  # before a text tower's names, but in the newest files
# Layers that older files call otherwise: the ending of a name, and what stood in its place.
ENDINGS = {
    ".to_out.0": (".to_out",),
    ".q_proj": (".to_q",),
    ".k_proj": (".to_k",),
    ".v_proj": (".to_v",),
    ".out_proj": (".to_out",),
}


@dataclass(frozen=True)
class Spot:
    """A matrix as others keep it: the rows in it of each of our layers, in their order, and all of its rows."""

    rows: Mapping[str, Rows]
    height: int


def row_of(part: nn.Module) -> PublishedPart | None:
    """The row that a part of a painter is read by; None for what nobody else has."""
    name = None
    if isinstance(part, UNet) and part.config.is_framed:
        name = "UNet2DConditionModel"
    elif isinstance(part, MMDiT):
        name = "FluxTransformer2DModel" if part.config.positions == "rotary" else "SD3Transformer2DModel"
    elif isinstance(part, TextTower):
        name = "CLIPTextModelWithProjection" if part.config.projection else "CLIPTextModel"
    elif isinstance(part, T5Encoder):
        name = "T5EncoderModel"
    return None if name is None else part_of({"_class_name": name}, ROWS)


def layer_places(part: nn.Module) -> dict[str, Place]:
    """Where each layer of a part lies by the names of diffusers or transformers, or its own where it has a name there
    from nobody; the names are those of modules."""
    shapes = {f"{name}.weight": tuple(layer.weight.shape) for name, layer in adaptable(part).items()}
    row = row_of(part)
    if row is None:
        return {name.removesuffix(".weight"): Place((_module(name),), shape) for name, shape in shapes.items()}
    places = part_places(shapes, row.names(part.config), row.fused)
    return {
        _module(name): Place((_module(place.names[0]),), place.shape, place.part, place.parts) for name, place in places
    }


def spots(part: nn.Module) -> dict[str, Spot]:
    """Every name by which a matrix of a part may be called, dots written as "_", and what it holds."""
    pieces: dict[str, dict[int, Spot]] = {}
    for name, place in layer_places(part).items():
        height = place.shape[0]
        pieces.setdefault(place.names[0], {})[place.part] = Spot({name: ((0, height),)}, height)
    named = {there: _joined([found[number] for number in sorted(found)]) for there, found in pieces.items()}
    known = dict(named)
    if isinstance(part, TextTower):
        known |= {f"{TOWER}{name}": spot for name, spot in named.items()}
    elif isinstance(part, UNet) and part.config.is_framed:
        known |= {name: named[there] for name, there in original_names.of_unet(part.config, named)}
    elif isinstance(part, MMDiT):
        for name, there, is_swapped in original_names.of_mmdit(part.config):
            if all(one in named for one in there):
                spot = _joined([named[one] for one in there])
                known[name] = _swapped(spot) if is_swapped else spot
    for name, spot in list(known.items()):
        for ending, older in ENDINGS.items():
            if name.endswith(ending):
                known |= {name.removesuffix(ending) + one: spot for one in older}
    return {name.replace(".", "_"): spot for name, spot in known.items()}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _joined(spots: Iterable[Spot]) -> Spot:
    """Several matrices, one below the other."""
    rows: dict[str, Rows] = {}
    height = 0
    for spot in spots:
        rows |= {name: tuple((a + height, b + height) for a, b in found) for name, found in spot.rows.items()}
        height += spot.height
    return Spot(rows, height)


def _swapped(spot: Spot) -> Spot:
    """The matrix of one layer with the halves of its rows exchanged."""
    half = spot.height // 2
    return Spot(dict.fromkeys(spot.rows, ((half, spot.height), (0, half))), spot.height)
