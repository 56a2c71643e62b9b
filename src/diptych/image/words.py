"""Which part of the picture each word of the prompt was looked at from, taken down while the picture is painted.

In every layer where places of the picture look at words, each place shares its attention out among the tokens of the
prompt. A watch is put on these layers for one call of the network, works the shares out from the same queries and keys,
and means them over heads and layers (Hertz et al. 2022, sec. 3.1; Tang et al. 2023, "What the DAAM", eq. 4 to 6; there
sums, here shares). A network that nobody watches has no hook on it, and one that is watched computes the same bits.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.attention import Attention
from diptych.core.positions import apply_rotary
from diptych.image.dit import DiTBlock
from diptych.image.joint import JointAttention, SingleBlock

Word = tuple[str, tuple[int, ...]]  # a word of the prompt, and where in the context its tokens stand
Size = tuple[int, int]
WORD = re.compile(r"\w(?:[\w'’-]*\w)?")
LARGEST_GRID = 64  # places of a map, a side
MOST_SCORES = 1 << 24  # numbers held at once: 64 MiB


def words_in(text: str, spans: Sequence[tuple[int, int]], first: int = 0) -> list[Word]:
    """Tokens put together to the words of a text; what stands for punctuation alone is left out.

    Args:
        spans: where in the text each token stands, (start, end) in characters.
        first: the place of the first token in the context.
    """
    found: list[Word] = []
    for word in WORD.finditer(text):
        inside = (place for place, (start, end) in enumerate(spans) if start < word.end() and word.start() < end)
        if places := tuple(first + place for place in inside):
            found.append((word[0], places))
    return found


@dataclass
class Watch:
    """What one job wants to see of a call.

    Args:
        words: those of its prompt.
        seen: (count, words, h, w), float16, on the CPU: the share of each place's attention that each word had in the
            last call; None before the first, and where the network looks at no words.
    """

    words: list[Word]
    seen: Tensor | None = None


@contextmanager
def watching(
    network: nn.Module, size: Size, length: int, watches: Sequence[tuple[slice, Watch | None]]
) -> Iterator[None]:
    """Fills the watches from the one call of the network inside the block.

    Args:
        size: (h, w) of the latents in the call; length: tokens of its context.
        watches: the rows of the call that belong to each.
    """
    asked = [(rows, watch) for rows, watch in watches if watch is not None]
    if not asked:
        yield
        return
    attention = WordAttention(size, length, torch.cat([torch.arange(rows.start, rows.stop) for rows, _ in asked]))
    with ExitStack() as hooks:
        for module, looks in lookers(network):
            hook = module.register_forward_pre_hook(attention.hook(looks), with_kwargs=True)
            hooks.callback(hook.remove)
        yield
    first = 0
    maps = attention.shares()
    for rows, watch in asked:
        last = first + rows.stop - rows.start
        watch.seen = None if maps is None else of_words(maps[first:last], watch.words).half().cpu()
        first = last


def of_words(maps: Tensor, words: Sequence[Word]) -> Tensor:
    """From shares of tokens (B, S, h, w) to those of words, the sums over their tokens: (B, words, h, w)."""
    if not words:
        return maps[:, :0]
    return torch.stack([maps[:, list(places)].sum(1) for _, places in words], dim=1)


# From a module and its arguments to queries (B, H, N, D) of the picture's places, keys (B, H or a divisor of it, S or
# more, D), the words' first, and a mask that is broadcast to (B, 1, N, S or more); None where no words are looked at.
Look = tuple[Tensor, Tensor, Tensor | None] | None
Looks = Callable[[Any, tuple[Any, ...], dict[str, Any], int], Look]


def lookers(network: nn.Module) -> Iterator[tuple[nn.Module, Looks]]:
    """The modules of a network where words are looked at, and how each does it."""
    for module in network.modules():
        if isinstance(module, JointAttention):
            yield module, jointly
        elif isinstance(module, SingleBlock) or (isinstance(module, DiTBlock) and module.cross_attention is None):
            yield module.attention, in_one_row
        elif isinstance(module, Attention):
            yield module, across


def across(attention: Attention, arguments: tuple[Any, ...], named: dict[str, Any], length: int) -> Look:
    """Cross-attention: only words are looked at."""
    context = named.get("context")
    if context is None:
        return None
    q, k, _ = attention.heads(arguments[0], context)
    return q, k, named.get("mask")


def jointly(attention: JointAttention, arguments: tuple[Any, ...], named: dict[str, Any], length: int) -> Look:
    """Words and picture look at both, each side by weights of its own."""
    q, k, _ = attention.heads(*arguments[:3])
    return q[:, :, length:], k, arguments[3]


def in_one_row(attention: Attention, arguments: tuple[Any, ...], named: dict[str, Any], length: int) -> Look:
    """Words and picture are one row of tokens."""
    q, k, _ = attention.heads(arguments[0])
    if (rotary := named.get("rotary")) is not None:
        cos, sin = rotary
        q, k = (apply_rotary(turned, cos, sin, attention.pairs_neighbours) for turned in (q, k))
    return q[:, :, length:], k, named.get("mask")


class WordAttention:
    """The attention to the tokens of a context in one call of a network, layer after layer.

    Args:
        size: (h, w) of the latents; length: S, tokens of the context; rows: of the call, which are wanted.
    """

    def __init__(self, size: Size, length: int, rows: Tensor) -> None:
        self.size, self.length, self.rows = size, length, rows
        self.sums: dict[Size, Tensor] = {}  # of the layers on one grid: (B, S, h, w)

    def hook(self, looks: Looks) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def look(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            picked = tuple(map(self._picked, arguments))
            found = looks(module, picked, {name: self._picked(value) for name, value in named.items()}, self.length)
            if found is not None:
                self.add(*found)

        return look

    def _picked(self, value: Any) -> Any:
        """The wanted rows of an argument; what is one for all rows stays, and so does what is no tensor."""
        if isinstance(value, Tensor) and value.ndim > 2 and value.shape[0] > 1:
            return value[self.rows.to(value.device)]
        return value

    def add(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> None:
        """One more layer, its heads meaned; see `Looks`. A layer whose queries lie on no grid of the picture's is left
        out."""
        grid = grid_of(q.shape[2], self.size)
        if grid is None:
            return
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).float().mT
        rows = max(1, MOST_SCORES // (q.shape[0] * q.shape[1] * k.shape[-1]))
        parts = []
        for first in range(0, q.shape[2], rows):
            scores = q[:, :, first : first + rows].float() @ k / math.sqrt(q.shape[-1])
            if mask is not None:
                part = mask if mask.shape[-2] == 1 else mask[..., first : first + rows, :]
                scores = scores + part if part.is_floating_point() else scores.masked_fill(~part, -math.inf)
            parts.append(scores.softmax(-1)[..., : self.length].mean(1))
        shares = torch.cat(parts, dim=1).mT.unflatten(-1, grid)
        factor = -(-max(grid) // LARGEST_GRID)
        grid = -(-grid[0] // factor), -(-grid[1] // factor)
        shares = resized(shares, grid)
        self.sums[grid] = shares + self.sums[grid] if grid in self.sums else shares

    def shares(self) -> Tensor | None:
        """(B, S, h, w), float32, of the finest grid: the part of each place's attention to words that each token had.
        All tokens together are 1. None where no layer looked at words."""
        if not self.sums:
            return None
        finest = max(self.sums, key=math.prod)
        whole = torch.stack([resized(part, finest) for part in self.sums.values()]).sum(0)
        return whole / whole.sum(1, keepdim=True)


def grid_of(places: int, size: Size) -> Size | None:
    """The grid of so many places that lies over latents of a size: each place for a square of f x f of them."""
    for factor in range(1, max(size) + 1):
        grid = -(-size[0] // factor), -(-size[1] // factor)
        if math.prod(grid) == places:
            return grid
    return None


def resized(maps: Tensor, size: Size) -> Tensor:
    """Maps (B, S, h, w) on another grid; each way is a mean of neighbours, so that what adds up to 1 still does."""
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
