"""Pictures as rows of patches for a transformer, and where each patch lies.

A patch of p x p places is one token (Dosovitskiy et al. 2021). Its place reaches the network as a vector that is added
(a table) or as an angle by which queries and keys are turned (rotary, one part of each head for each axis).
"""

import torch
from torch import Tensor

POSITIONS = ("table", "rotary")


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, H/p W/p, C p p), row after row.

    Raises:
        ValueError: height or width is no multiple of the patch.
    """
    height, width = x.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"a picture of {width} x {height} places cannot be cut into patches of {patch} x {patch}")
    cut = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, p)
    rows: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return rows


def from_patches(rows: Tensor, height: int, width: int, patch: int, *, has_channels_last: bool = False) -> Tensor:
    """(B, H/p W/p, C p p) -> (B, C, H, W).

    Args:
        has_channels_last: a row's numbers are (p, p, C) instead.
    """
    grid = rows.unflatten(1, (height // patch, width // patch))
    if has_channels_last:
        cut = grid.unflatten(3, (patch, patch, -1)).permute(0, 5, 1, 3, 2, 4)
    else:
        cut = grid.unflatten(3, (-1, patch, patch)).permute(0, 3, 1, 4, 2, 5)
    picture: Tensor = cut.flatten(4, 5).flatten(2, 3)
    return picture


def sincos_table(side: int, width: int, spacing: float = 1.0) -> Tensor:
    """A vector for each place of a square: half of it from the column, half from the row (side, side, width), float32.

    The sines and cosines of Vaswani et al. 2017 in each half, as in Peebles & Xie 2023. They are worked out even where
    a network is built without numbers, since no checkpoint has them.

    Args:
        width: a multiple of 4.
        spacing: distance from a place to the next.
    """
    quarter = width // 4
    turns = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = (torch.arange(side, dtype=torch.float64, device="cpu") * spacing)[:, None] * turns
    waves = torch.cat((angles.sin(), angles.cos()), dim=-1).float()  # (side, width / 2)
    columns, rows = waves[None].expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return torch.cat((columns, rows), dim=-1)


def cropped(table: Tensor, height: int, width: int) -> Tensor:
    """The middle of a table of places (side, side, width) as rows (height width, width) (Esser et al. 2024).

    Raises:
        ValueError: a picture that is larger than the table.
    """
    side = len(table)
    if max(height, width) > side:
        raise ValueError(f"a picture of {width} x {height} patches is larger than this network's {side} x {side}")
    top, left = (side - height) // 2, (side - width) // 2
    return table[top : top + height, left : left + width].flatten(0, 1)


def place_angles(
    height: int,
    width: int,
    axes: tuple[int, ...],
    *,
    words: int = 0,
    pairs_neighbours: bool = False,
    theta: float = 10000.0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `positions.apply_rotary`: words first, which lie at 0 on every axis, then the patches.

    Args:
        height, width: in patches.
        axes: components of a head that turn with each axis, even; the last two axes are row and column, and on any
            before them everything lies at 0.

    Returns:
        each (1, 1, words + height width, sum of axes), float32.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.zeros(words + height * width, len(axes), dtype=torch.float64)
    places[words:, -2], places[words:, -1] = rows.flatten(), columns.flatten()
    angles = torch.cat(
        [
            places[:, axis, None] * theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
            for axis, size in enumerate(axes)
        ],
        dim=-1,
    )[None, None]
    cos, sin = (part.float().to(device) for part in (angles.cos(), angles.sin()))
    if pairs_neighbours:
        return cos.repeat_interleave(2, -1), torch.stack((-sin, sin), dim=-1).flatten(-2)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
