"""The key-value cache: what attention has read once is kept, so that each step reads one new token.

Two tensors a layer, in which each sequence has a row (slot), however long it is. New keys and values are written in
place; what lies past a sequence's length is never looked at, so a slot is freed by setting its length to 0. Slots grow
by doubling. Length grows in small steps up to the model's context, a layer at a time: what is kept lies close together,
and attention over a few new tokens reads all of it without a copy. A layer with a sliding window keeps no more than
that (`text.span`), and everything may be kept in fewer bits (`text.kept`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core import blocked
from diptych.core.attention import Store
from diptych.core.checks import is_whole
from diptych.core.few_queries import FEW
from diptych.text.decoder import DecoderConfig
from diptych.text.kept import Kept, KeptInBytes, ShortKept
from diptych.text.span import Span

STEP = 256  # tokens that the cache grows by, at least
SPARE = 256  # tokens that a window keeps so that as many can be taken back


@dataclass(frozen=True)
class CacheSettings:
    """How the cache keeps what was read.

    Args:
        dtype: "int8" halves the memory for a small error; "" keeps keys and values as they are computed, bfloat16 in 12
            bits where the compiled kernel reads them (`text.kept`).
        sinks: tokens of the beginning that stay when a text outgrows the context, which it then may: attention goes on
            over them and the last `window` tokens, with positions counted within the cache (Xiao et al. 2023, sec.
            3.2). They take 4. With 0 a text ends where the context does.
        window: tokens kept besides the sinks; 0 is as many as the context has room for.
    """

    dtype: str = ""
    sinks: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ("", "int8"):
            raise ValueError(f"the cache's dtype must be int8, or none, not '{self.dtype}'")
        for name in ("sinks", "window"):
            value = getattr(self, name)
            if not (is_whole(value) and value >= 0):
                raise ValueError(f"the cache's {name} must be a whole number of tokens >= 0, not {value!r}")
        if self.window and not self.sinks:
            raise ValueError("the cache's window needs sinks: without its first tokens a text cannot go on")

    def streaming(self, config: DecoderConfig) -> Span | None:
        """What is kept of a text that may outgrow the context; None where it may not.

        Raises: ValueError for more than the context holds, or a model whose positions are learned one by one.
        """
        if not self.sinks:
            return None
        window = self.window or config.context - self.sinks
        if window < 1 or self.sinks + window > config.context:
            raise ValueError(
                f"the cache's sinks ({self.sinks}) and window ({self.window or 1}) must fit the context of "
                f"{config.context}"
            )
        if config.position == "learned":
            raise ValueError("the cache's sinks must be 0: the model's positions are learned, and end with the context")
        return Span(window, self.sinks)


class KeyValueCache:
    """Keys and values of many sequences of different lengths.

    Args:
        slots: sequences to hold at first.
        length: tokens of each to hold at first, at most the context.
        dtype: of keys and values, that of the decoder's computation.
        num_kv_heads: heads here; fewer than config's where they are divided over processes.

    Raises:
        ValueError: settings that do not go with the model.
    """

    def __init__(
        self,
        config: DecoderConfig,
        slots: int,
        length: int,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        num_kv_heads: int | None = None,
        settings: CacheSettings | None = None,
    ) -> None:
        settings = settings or CacheSettings()
        self.config = config
        self.streaming = settings.streaming(config)
        windows = config.windows or (0,) * config.num_layers
        self.spans = [self.streaming or Span(window, spare=SPARE if window else 0) for window in windows]
        self.windows = windows
        heads = config.num_kv_heads if num_kv_heads is None else num_kv_heads
        self.num_kv_heads = heads
        self.length = min(length, config.context)  # of a text for which there is room now
        kind = KeptInBytes if settings.dtype == "int8" else Kept
        self.keys: list[Kept]
        self.values: list[Kept]
        self.keys, self.values = (
            [kind((slots, heads, span.room(self.length), config.head_dim), device, dtype) for span in self.spans]
            for _ in range(2)
        )
        self.lengths: list[int] = [0] * slots
        self._most: list[int] = [0] * slots  # that each has had: what a window has dropped does not come back
        self.prompts: list[int] = [0] * slots
        self._free = list(range(slots))[::-1]

    @property
    def keeps_all(self) -> bool:
        """Whether every layer has all of a text, a place for each token."""
        return not any(span.window for span in self.spans)

    @property
    def is_short(self) -> bool:
        return isinstance(self.keys[0], ShortKept)

    @property
    def num_bytes(self) -> int:
        return sum(kept.num_bytes for kept in (*self.keys, *self.values))

    def shorten(self) -> None:
        """From now on keep bfloat16 in 12 bits (`text.kept`); before anything is kept. For heads of a multiple of 64
        numbers, on a CPU."""
        shape = (len(self.lengths), self.num_kv_heads, self.length, self.config.head_dim)
        self.keys, self.values = (
            list[Kept](ShortKept(shape, are_values=are_values) for _ in self.spans) for are_values in (False, True)
        )

    def reserve(self, prompt: int = 0) -> int:
        """A free slot, empty, for a text whose first `prompt` tokens are known at once; the cache grows if there is
        none."""
        if not self._free:
            slots = len(self.lengths)
            self._grow(2 * slots, self.length)
            for about in (self.lengths, self._most, self.prompts):
                about += [0] * slots
            self._free = list(range(slots, 2 * slots))[::-1]
        slot = self._free.pop()
        self.prompts[slot] = prompt
        return slot

    def release(self, slot: int) -> None:
        self.lengths[slot] = self._most[slot] = 0
        self._free.append(slot)

    def truncate(self, slot: int, length: int) -> int:
        """Forget all but the first `length` tokens of a sequence; what lies past them is written over.

        Returns:
            The tokens that are left: 0 where a window has dropped some that it would reach again.
        """
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"a sequence of {self.lengths[slot]} tokens cannot be cut to {length}")
        most = self._most[slot]
        if any(span.room(most) < most and most - length > span.spare for span in self.spans):
            length = self._most[slot] = 0
        self.lengths[slot] = length
        return length

    def fork(self, source: int, slot: int) -> None:
        """Make the sequence in `slot` the same as the one in `source`; from here on each goes its own way."""
        length = self._most[source]
        for span, *both in zip(self.spans, self.keys, self.values, strict=True):
            for kept in both:
                kept.copy(source, slot, span.room(length))
        for about in (self.lengths, self._most, self.prompts):
            about[slot] = about[source]

    def append(self, slots: Sequence[int], counts: Sequence[int], width: int) -> "Appending":
        """Make room for `counts[i]` new tokens in `slots[i]`, handed over as rows padded at the end to `width`.

        The result is the `cache` of one call of the decoder, and holds the positions and the masks of that call. The
        lengths count the new tokens at once.

        Raises:
            ValueError: a sequence outgrows the context; or, where it may, a call has more tokens than the window.
        """
        if self.streaming is not None and width > self.streaming.window:
            raise ValueError(f"{width} tokens at once do not fit the cache's window of {self.streaming.window}")
        starts = self.extend(slots, counts)
        return Appending(self, slots, starts, counts, width)

    def extend(self, slots: Sequence[int], counts: Sequence[int]) -> list[int]:
        """Make room for `counts[i]` new tokens in `slots[i]`, and count them.

        Returns:
            The lengths before.

        Raises:
            ValueError: a sequence outgrows the context, where it may not.
        """
        starts = [self.lengths[slot] for slot in slots]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        longest = max(ends)
        if self.streaming is None and longest > self.config.context:
            raise ValueError(f"a sequence of {longest} tokens does not fit the context of {self.config.context}")
        needed = max(longest, *(self.prompts[slot] for slot in slots))  # a prompt that comes in parts grows it once
        if self.length < min(needed, self.config.context):
            needed = max(needed, self.length + self.length // 16)
            self._grow(len(self.lengths), min(-(-needed // STEP) * STEP, self.config.context))
        for slot, end in zip(slots, ends, strict=True):
            self.lengths[slot] = end
            self._most[slot] = max(self._most[slot], end)
        return starts

    def _grow(self, slots: int, length: int) -> None:
        self.length = length
        for span, *both in zip(self.spans, self.keys, self.values, strict=True):
            for kept in both:
                kept.grow(slots, span.room(length))


class Appending:
    """One call's view of the cache: where its new tokens go, and what each of them may look at.

    `positions` is (B, T) int64; `lengths` is (B, T or 1) int64, the tokens that a text has when each of its tokens is
    read; `key_positions` is None, or (B, S) int64 where keys are kept unturned and are turned as they are read. `masks`
    has, for each window of the model's layers, bool (B, 1, T, S) over what is read, or None where nothing was kept
    before: then the new tokens look at each other alone.
    """

    def __init__(
        self, cache: KeyValueCache, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int], width: int
    ) -> None:
        device = cache.keys[0].device
        self._cache = cache
        start, count = torch.tensor(starts, device=device)[:, None], torch.tensor(counts, device=device)[:, None]
        place = torch.arange(width, device=device)[None]
        # Past a row's count there is padding, which looks where the row's last token does.
        positions = (start + place).minimum(start + count - 1)  # (B, T)
        self._views = {
            span: View(span, kept.length, slots, starts, counts, positions)
            for span, kept in dict(zip(cache.spans, cache.keys, strict=True)).items()  # a few spans, many layers
        }
        prompts = torch.tensor([cache.prompts[slot] for slot in slots], device=device)[:, None]
        self.key_positions: Tensor | None = None
        if cache.streaming is None:
            self.positions, self.lengths = positions, (positions + 1).maximum(prompts)
            self.masks = {
                window: self._views[span].mask for window, span in zip(cache.windows, cache.spans, strict=True)
            }
        else:
            span = cache.streaming
            view, ends = self._views[span], start + count
            self.positions, self.key_positions = (span.within(where, ends) for where in (positions, view.keys))
            self.lengths = ends.clamp(max=span.sinks + span.window)
            self.masks = {window: span.narrowed(window).mask(positions, view.keys) for window in cache.windows}

    def store(self, layer: int) -> Store:
        """Writes new keys and values of a layer, (B, Hkv, T, D) each; gives all that may be looked at, (.., S, D)."""
        view = self._views[self._cache.spans[layer]]
        return LayerStore(view.exchange, self._cache.keys[layer], self._cache.values[layer])


class LayerStore:
    """Hands new keys and values to where a layer's are kept."""

    def __init__(self, exchange: Callable[[Kept, Tensor], Tensor], keys: Kept, values: Kept) -> None:
        self._exchange, self._keys, self._values = exchange, keys, values

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._exchange(self._keys, keys), self._exchange(self._values, values)


def leave_uncompiled() -> None:
    """Before a decoder is compiled: its blocks share what is compiled, and where a layer's keys are kept is another
    place for each. Not said where it is defined, since that would load the whole compiler."""
    blocked.leave_uncompiled()
    LayerStore.__call__ = torch.compiler.disable(LayerStore.__call__)  # type: ignore[method-assign]


class View:
    """How one call writes and reads the layers of one span; `keys` is (B, S), the position of each key that is read, -1
    where there is none.

    Args:
        room: places that the layers have.
        positions: (B, T), of the new tokens.
    """

    def __init__(
        self,
        span: Span,
        room: int,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        positions: Tensor,
    ) -> None:
        width, device = positions.shape[1], positions.device
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self._slots, self._rows = slots, torch.tensor(slots, device=device)
        self._is_fresh = not any(starts)
        # New tokens are written first and read with the others, unless they write over what the first of them see.
        self._is_in_place = all(
            span.room(end) == end or span.is_streaming or count <= span.spare + 1
            for end, count in zip(ends, counts, strict=True)
        )
        longest = max(ends if self._is_in_place else starts)
        # All of the room is read without a copy; for many queries, or where it is much too large, a copy costs less.
        self._reach = room if width <= FEW and room <= max(STEP, 2 * longest) else min(room, longest)
        new = positions.where(torch.arange(width, device=device) < torch.tensor(counts, device=device)[:, None], -1)
        if self._is_fresh:
            self.keys = new
        elif self._is_in_place:
            self.keys = span.positions(torch.tensor(ends, device=device), self._reach)
        else:
            self.keys = torch.cat((span.positions(torch.tensor(starts, device=device), self._reach), new), dim=1)
        is_plain = self._is_fresh and (not span.window or width <= span.window)
        self.mask = None if is_plain else span.mask(positions, self.keys)

        first, last = (int(span.places(torch.tensor(place))) for place in (starts[0], ends[0] - 1))
        self._run = (slots[0], first, counts[0]) if len(slots) == 1 and last - first == counts[0] - 1 else None
        if self._run is None:
            is_kept = new >= 0
            if span.window:
                is_kept &= (new < span.sinks) | (new >= torch.tensor(ends, device=device)[:, None] - span.ring)
            rows, columns = is_kept.nonzero(as_tuple=True)
            self._from, self._to = (rows, columns), (self._rows[rows], span.places(new[rows, columns]))

    def exchange(self, kept: Kept, new: Tensor) -> Tensor:
        """Write new keys or values, (B, Hkv, T, D), and give all that may be looked at, (B, Hkv, S, D)."""
        if self._is_fresh:
            self._write(kept, new)
            return new
        if self._is_in_place:
            self._write(kept, new)
            return self._read(kept).to(new.dtype)
        seen = torch.cat((self._read(kept).to(new.dtype), new), dim=2)
        self._write(kept, new)
        return seen

    def _read(self, kept: Kept) -> Tensor:
        return kept.read(self._slots, self._rows, self._reach)

    def _write(self, kept: Kept, new: Tensor) -> None:
        if self._run is not None:
            slot, start, count = self._run
            kept.write_run(slot, start, new[0, :, :count])
        else:
            (rows, columns), (slots, places) = self._from, self._to
            kept.write_at(slots, places, new[rows, :, columns])
