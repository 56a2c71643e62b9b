"""Reading a few tokens on a GPU: the decoder as one recorded launch (`core.graphs`) for each length that is looked at.

Here is decided what that is for: texts that go on by equally many tokens, over a cache that keeps all of a text. What a
step depends on lies in tensors: which tokens come, where, and in which slots. The room that attention looks over is
fixed in a recording; it grows in steps of `STEP`, and what lies past a text's end is masked.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diptych.core.attention import Store
from diptych.core.experts import experts_of
from diptych.core.few_queries import FEW
from diptych.core.graphs import Graphs
from diptych.core.unchanged import Unchanged
from diptych.text.cache import STEP, KeyValueCache, LayerStore
from diptych.text.decoder import Decoder
from diptych.text.kept import Kept, follow_each_other


def suits(decoder: Decoder, cache: KeyValueCache) -> bool:
    """Whether a few tokens are read by recordings. What a router chooses is read on the host: not with experts."""
    return (
        cache.keys[0].device.type == "cuda"
        and not any(decoder.config.windows)
        and cache.keeps_all
        and not experts_of(decoder)
    )


class RecordedTokens:
    """A decoder and a cache that `suits`."""

    def __init__(self, decoder: Decoder, cache: KeyValueCache) -> None:
        self._decoder, self._cache, self._unchanged = decoder, cache, Unchanged(decoder)
        self._kept: Tensor | None = None  # the first layer's keys, as they lay when what is there now was recorded

    def takes(self, counts: Sequence[int]) -> bool:
        """Whether texts that go on by so many tokens each are read here, with the decoder as it is now."""
        is_ready = self._unchanged.is_so() and not self._decoder.training
        return is_ready and counts[0] <= FEW and len(set(counts)) == 1

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]], slots: Sequence[int]) -> list[Tensor]:
        """The logits for what follows each of the next tokens of some texts: (T, V), float32, for each, on the CPU."""
        cache, count = self._cache, len(texts[0])
        starts = cache.extend(slots, [count] * len(texts))
        kept = cache.keys[0].parts[0]
        if self._kept is not kept:  # the cache has grown: it is in other places
            self._graphs, self._kept = Graphs(kept.device, direct=1), kept
        reach = min(-(-(max(starts) + count) // STEP) * STEP, cache.keys[0].length)
        prompts = [cache.prompts[slot] for slot in slots]
        rows = [[*text, *about] for text, about in zip(texts, zip(starts, prompts, slots, strict=True), strict=True)]
        where = torch.tensor(rows)
        if kept.is_cuda:
            where = where.pin_memory()
        run = tuple(slots) if follow_each_other(slots) else None

        def step(where: Tensor) -> Tensor:
            tokens, (starts, prompts, rows) = where[:, :count], where[:, count:].unbind(1)
            view = Places(cache, run, rows, starts[:, None] + torch.arange(count, device=where.device), prompts, reach)
            logits: Tensor = self._decoder(tokens, positions=view.positions, cache=view)
            return logits

        where = where.to(kept.device, non_blocking=True)
        return list(self._graphs.call((run, reach), step, where).cpu())


class Places:
    """One step's view of the cache (`decoder.Cache`), of tensors alone.

    Args:
        run: the slots, where they follow each other; `rows` are they as a tensor, (B,).
        positions: (B, T), of the new tokens.
        prompts: (B,), tokens of the text that were known at once.
        reach: places that are looked at.
    """

    key_positions = None

    def __init__(
        self,
        cache: KeyValueCache,
        run: tuple[int, ...] | None,
        rows: Tensor,
        positions: Tensor,
        prompts: Tensor,
        reach: int,
    ) -> None:
        self._cache, self._run, self._rows, self._reach = cache, run, rows, reach
        self.positions, self.lengths = positions, (positions + 1).maximum(prompts[:, None])
        seen = torch.arange(reach, device=positions.device) <= positions[:, :, None]
        self.masks: Mapping[int, Tensor | None] = {0: seen[:, None]}
        self._slots, self._places = rows[:, None].expand_as(positions).flatten(), positions.flatten()

    def store(self, layer: int) -> Store:
        """Writes new keys and values of a layer, (B, Hkv, T, D) each; gives all that may be looked at, (.., S, D)."""
        return LayerStore(self._exchange, self._cache.keys[layer], self._cache.values[layer])

    def _exchange(self, kept: Kept, new: Tensor) -> Tensor:
        kept.write_at(self._slots, self._places, new.transpose(1, 2).flatten(0, 1))
        return kept.read(self._run, self._rows, self._reach).to(new.dtype)
