"""Reading: the one place where tokens go into the decoder and logits come out, with the cache between.

A part is what one sequence reads next: its prompt, the token that was drawn last, or that one and tokens drafted after
it. Parts of different lengths share a call as rows padded at their end; those that would be mostly padding get a call
of their own, and a long prompt is read in chunks. Sequences that begin with the same tokens read them once, and each
goes on from its own copy.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.attention import Attention
from diptych.core.checks import is_whole
from diptych.core.crew import crew
from diptych.core.few_queries import FEW
from diptych.core.kernels import is_ours, onednn
from diptych.core.machine_code import ROWS, compile_beside
from diptych.core.together import libraries
from diptych.text import few_tokens, recorded
from diptych.text.cache import CacheSettings, KeyValueCache
from diptych.text.decoder import Decoder
from diptych.text.few_tokens import FewTokens
from diptych.text.recorded import RecordedTokens

FIRST_LENGTH = 128  # tokens of a slot before the cache grows
CHUNK = 2048  # tokens of a prompt that the network reads at a time: scores are CHUNK times the prompt, not its square


@dataclass(frozen=True)
class Part:
    """What a sequence reads next.

    Args:
        slot: of the sequence in the cache.
        tokens: at least one.
        wanted: how many of the last of them to give logits for.
    """

    slot: int
    tokens: list[int]
    wanted: int = 1


class Reader:
    """A decoder with the cache of what it has read.

    Args:
        slots: sequences to make room for at first.
        chunk: the most tokens of a prompt that one call of the network reads.
        settings: of the cache.
    """

    def __init__(
        self, decoder: Decoder, slots: int = 1, chunk: int = CHUNK, settings: CacheSettings | None = None
    ) -> None:
        if not (is_whole(chunk) and chunk >= 1):
            raise ValueError(f"chunk must be a whole number of tokens >= 1, not {chunk!r}")
        weight = next(decoder.parameters())
        self._device = weight.device
        heads = next(module for module in decoder.modules() if isinstance(module, Attention)).num_kv_heads
        self.cache = KeyValueCache(
            decoder.config,
            slots,
            FIRST_LENGTH,
            weight.device,
            weight.dtype,
            num_kv_heads=heads,
            settings=settings,
        )
        streaming = self.cache.streaming
        self.decoder, self.chunk = decoder, chunk if streaming is None else min(chunk, streaming.window)
        self._few_tokens: FewTokens | RecordedTokens | None = None
        if few_tokens.suits(decoder, self.cache):
            self._few_tokens = FewTokens(decoder, self.cache)
        elif recorded.suits(decoder, self.cache):
            self._few_tokens = RecordedTokens(decoder, self.cache)

    def prepare(self) -> None:
        """Compile what reading needs, if that was never done on this machine: it takes seconds, which is better told
        before a text begins than in its middle."""
        is_compiled = isinstance(self._few_tokens, FewTokens)
        compile_beside([ROWS] * is_compiled + libraries(self._device, next(self.decoder.parameters()).dtype))
        if is_compiled:
            crew()

    def read(self, parts: Sequence[Part]) -> list[Tensor]:
        """The logits for what follows each of the last `wanted` tokens of each part: (wanted, V), float32, on the CPU.

        Raises: ValueError for a sequence that outgrows the context.
        """
        few, counts = self._few_tokens, [len(part.tokens) for part in parts]
        have_begun = bool(parts) and all(self.cache.lengths[part.slot] for part in parts)
        if few and have_begun and few.takes(counts):  # a prompt is always begun by torch
            logits = few.read([part.tokens for part in parts], [part.slot for part in parts])
            return [row[len(row) - part.wanted :] for part, row in zip(parts, logits, strict=True)]
        return self._read_in_calls(parts)

    @torch.inference_mode()
    def _read_in_calls(self, parts: Sequence[Part]) -> list[Tensor]:
        beginnings: dict[tuple[int, ...], int] = {}  # the first of the parts that begin with the same tokens
        first = [
            index if self.cache.lengths[part.slot] else beginnings.setdefault((part.wanted, *part.tokens), index)
            for index, part in enumerate(parts)
        ]
        was_training = self.decoder.training
        if was_training:
            self.decoder.eval()
        logits: dict[int, Tensor] = {}
        for group in together({index: len(parts[index].tokens) for index in first}):
            logits |= zip(group, self._read([parts[index] for index in group]), strict=True)
        if was_training:
            self.decoder.train()
        for index, part in enumerate(parts):
            if index != first[index]:
                self.cache.fork(parts[first[index]].slot, part.slot)
        return [logits[index] for index in first]

    def _read(self, parts: Sequence[Part]) -> list[Tensor]:
        """All but the last chunk of the parts that have several, then one call for all."""
        while behind := [part for part in parts if len(part.tokens) > max(self.chunk, part.wanted)]:
            counts = [min(self.chunk, len(part.tokens) - part.wanted) for part in behind]
            self._call([Part(part.slot, part.tokens[:count]) for part, count in zip(behind, counts, strict=True)])
            rest = {part.slot: part.tokens[count:] for part, count in zip(behind, counts, strict=True)}
            parts = [Part(part.slot, rest.get(part.slot, part.tokens), part.wanted) for part in parts]
        logits = list(self._call(parts).cpu())
        return [row[len(row) - part.wanted :] for part, row in zip(parts, logits, strict=True)]

    def _call(self, parts: Sequence[Part]) -> Tensor:
        """One call of the network: logits (B, P, V) after the last P tokens of each row, P the most that one wants."""
        counts, most = [len(part.tokens) for part in parts], max(part.wanted for part in parts)
        width, device = max(counts), self._device
        rows = [part.tokens + [0] * (width - count) for part, count in zip(parts, counts, strict=True)]
        places = [[max(0, count - most + place) for place in range(most)] for count in counts]
        cache = self.cache.append([part.slot for part in parts], counts, width)
        is_one_row = len(rows) * width == 1 and is_ours(next(self.decoder.parameters()))
        with onednn(False) if is_one_row else nullcontext():
            logits: Tensor = self.decoder(
                torch.tensor(rows, device=device),
                positions=cache.positions,
                cache=cache,
                places=torch.tensor(places, device=device),
            )
        return logits


def together(counts: dict[int, int]) -> list[list[int]]:
    """Divide parts, by their numbers of tokens, into calls: none is padded to more than twice its length, or to FEW,
    up to which reading the weights takes longer than using them."""
    groups: list[list[int]] = []
    width = 0
    for index in sorted(counts, key=lambda index: -counts[index]):
        if not groups or width > max(FEW, 2 * counts[index]):
            groups.append([])
            width = counts[index]
        groups[-1].append(index)
    return [sorted(group) for group in groups]
