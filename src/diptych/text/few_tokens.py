"""Reading a few tokens, as writing does: the decoder by one call of compiled code (`core.row_kernel`).

Here is decided what that is for: plain transformers on a CPU, whose weights lie there in bfloat16, float32, 8 or 4
bits, over a cache that keeps all of a text, as it is, in 12 bits or in 8, and up to MOST tokens that go on from there:
the next one of each of some texts, or one and those drafted after it. All others go through torch; both give the same
logits within rounding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from diptych.core import row_plan as at
from diptych.core.attention import Attention
from diptych.core.crew import crew, num_threads
from diptych.core.dropout import Dropout
from diptych.core.feedforward import FeedForward
from diptych.core.linear import Linear
from diptych.core.machine_code import is_here, multiplies_bfloats
from diptych.core.norms import LayerNorm, RMSNorm
from diptych.core.positions import rotary
from diptych.core.quantised import Int4Linear, Int8Linear, QuantisedEmbedding
from diptych.core.unchanged import Unchanged
from diptych.text.cache import KeyValueCache
from diptych.text.decoder import Block, Decoder

FORMS = {torch.bfloat16: at.BFLOAT, torch.float32: at.FLOAT, torch.int8: at.INT8, torch.uint8: at.INT4}
TAKES = {Decoder, Block, Attention, FeedForward, Dropout, RMSNorm, LayerNorm, nn.ModuleList}
TAKES |= {Linear, Int8Linear, Int4Linear, nn.Embedding, QuantisedEmbedding}
TURNS = 256  # positions whose angles are computed together
NORM = ("weight", "bias")  # in the order of the tables
LINE = 16  # numbers of a line of memory
MOST = 16  # tokens; of more, large models are read faster by torch


def suits(decoder: nn.Module, cache: KeyValueCache) -> bool:
    """Whether a few tokens go through the compiled kernel."""
    kinds = {type(module) for module in decoder.modules()}
    if not is_here() or kinds - TAKES or (Linear in kinds and kinds & {Int8Linear, Int4Linear}):
        return False
    assert isinstance(decoder, Decoder)
    config, tensors = decoder.config, [*decoder.parameters(), *decoder.buffers()]
    numbers = {tensor.dtype for tensor in tensors if tensor.dtype not in (torch.int8, torch.uint8)}
    return (
        not any(config.windows)
        and cache.keeps_all
        and cache.num_kv_heads == config.num_kv_heads  # none lie in other processes
        and numbers in ({torch.bfloat16}, {torch.float32})
        and bool(kinds & {Int8Linear, Int4Linear}) == (QuantisedEmbedding in kinds)
        and (Int4Linear not in kinds or _takes_nibbles(decoder, numbers))
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        and not any(module._compiled_call_impl for module in decoder.modules())
    )


def _takes_short(cache: KeyValueCache) -> bool:
    """Whether bfloat16 keys and values take 12 bits: where the kernel multiplies pairs of them."""
    is_bfloat = cache.keys[0].parts[0].dtype == torch.bfloat16
    return is_bfloat and cache.config.head_dim % at.BLOCK == 0 and multiplies_bfloats()


def _takes_nibbles(decoder: Decoder, numbers: set[torch.dtype]) -> bool:
    layers = [module for module in decoder.modules() if isinstance(module, Int4Linear)]
    return all(layer.unpacks for layer in layers) and numbers == {torch.bfloat16} and torch.cpu._is_vnni_supported()


class FewTokens:
    """A decoder and a cache that `suits`, as the kernel's tables. The weights stay where they are; the cache, which
    must be empty, is shortened where the kernel reads that."""

    def __init__(self, decoder: Decoder, cache: KeyValueCache) -> None:
        if _takes_short(cache):
            cache.shorten()
        self._decoder, self._cache, config = decoder, cache, decoder.config
        modules, self._unchanged = list(decoder.modules()), Unchanged(decoder)
        self._dtype = next(decoder.norm.parameters()).dtype
        self._layers = np.array([_layer(module) for module in modules if isinstance(module, Block)], np.int64)
        self._slots, self._length = 0, 0
        self._turns: dict[tuple[int, int], np.ndarray] = {}

        plan = np.zeros(at.DECODER, np.int64)
        plan[at.WIDTH], plan[at.NUM_LAYERS], plan[at.HIDDEN] = config.width, config.num_layers, config.hidden
        plan[at.NUM_HEADS], plan[at.NUM_KV_HEADS] = config.num_heads, config.num_kv_heads
        plan[at.HEAD_DIM], plan[at.VOCABULARY] = config.head_dim, config.vocab_size
        plan[at.NUMBERS], plan[at.IS_LAYER_NORM] = FORMS[self._dtype], config.norm == "layer"
        plan[at.CACHE] = at.SHORT if cache.is_short else FORMS[cache.keys[0].parts[0].dtype]
        plan[at.ACTIVATION], plan[at.EPS] = at.ACTIVATIONS[config.activation], _bits(config.norm_eps)
        plan[at.SCORE_CAP], plan[at.LOGIT_CAP] = _bits(config.attention_softcap), _bits(config.logit_softcap)
        plan[at.THREADS], plan[at.LAYER_TABLE] = num_threads(), self._layers.ctypes.data
        _fill(plan, at.FINAL_NORM, _addresses(decoder.norm, NORM))
        embedding = decoder.embedding
        matrix = embedding.matrix if isinstance(embedding, QuantisedEmbedding) else embedding
        _fill(plan, at.EMBEDDING, _matrix(matrix))
        _fill(plan, at.HEAD, _matrix(matrix if decoder.head is None else decoder.head))
        plan[at.UNIT] = at.ROWS_PACKED if any(isinstance(module, Int4Linear) for module in modules) else at.TILE_DOWN
        if decoder.position_embedding is not None:
            plan[at.POSITIONS] = decoder.position_embedding.weight.data_ptr()
        self._plans, self._room = plan[None], np.empty(0, np.float32)
        self._make_room(1)

    def _make_room(self, rows: int) -> None:
        """Tables for so many rows, and memory for what is computed of them."""
        config, threads = self._decoder.config, int(self._plans[0, at.THREADS])
        self._plans = np.repeat(self._plans[:1], rows, axis=0)
        group = config.num_heads // config.num_kv_heads
        segments = -(-config.context // at.SEGMENT)
        projected = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        attending = group * config.head_dim + max(group * at.SEGMENT, 2 * config.head_dim)
        read = max(config.width, config.num_heads * config.head_dim)
        wide = at.INPUT // 4 + _lines(max(rows * read, attending))
        packed = wide + _lines(rows * config.hidden)
        scratch = packed + -(-rows // at.TILE_ACROSS) * at.TILE_ACROSS * (_lines(max(read, config.hidden)) + LINE)
        sizes = [config.width, projected, config.hidden, config.num_heads * segments * (config.head_dim + 2)]
        begins = np.cumsum([0, *(_lines(rows * size) for size in sizes)])
        self._room = np.zeros(begins[-1] + scratch * threads + LINE, np.float32)
        first = self._room.ctypes.data + -self._room.ctypes.data % (4 * LINE)
        self._plans[:, [at.SCRATCH, at.SCRATCH_BYTES]] = first + 4 * begins[-1], 4 * scratch
        self._plans[:, [at.WIDE, at.PACKED]] = 4 * wide, 4 * packed
        for column, begin, size in zip(
            (at.RESIDUAL, at.PROJECTED, at.WIDENED, at.PARTIAL), begins[:-1], sizes, strict=True
        ):
            self._plans[:, column] = first + 4 * (begin + size * np.arange(rows))

    def takes(self, counts: Sequence[int]) -> bool:
        """Whether texts that go on by so many tokens each are read here, with the decoder as it is now."""
        return sum(counts) <= MOST and self._unchanged.is_so() and not torch.is_autocast_enabled("cpu")

    def read(self, texts: Sequence[Sequence[int]], slots: Sequence[int]) -> list[Tensor]:
        """The logits for what follows each of the next tokens of some texts: (T, V), float32, for each."""
        cache, config, counts = self._cache, self._decoder.config, [len(tokens) for tokens in texts]
        starts, rows = cache.extend(slots, counts), sum(counts)
        positions = [start + place for start, count in zip(starts, counts, strict=True) for place in range(count)]
        slots = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        if rows > len(self._plans):
            self._make_room(rows)
            self._length = 0
        if (self._slots, self._length) != (len(cache.lengths), cache.length):
            self._find_cache()
        plans = self._plans[:rows]
        logits = torch.empty(rows, config.vocab_size, dtype=torch.float32)
        plans[0, at.ROWS] = rows
        plans[:, at.TOKEN], plans[:, at.POSITION] = [token for tokens in texts for token in tokens], positions
        plans[:, at.LOGITS] = logits.data_ptr() + 4 * config.vocab_size * np.arange(rows)
        plans[:, at.KEPT] = np.array(slots) * (config.num_kv_heads * plans[0, at.ROOM])
        if config.position == "rotary":
            plans[:, at.COS] = self._turns_at(positions, slots)
            plans[:, at.SIN] = plans[:, at.COS] + 4 * config.head_dim
        crew().run(plans.ctypes.data, int(plans[0, at.THREADS]))
        return list(logits.split(counts))

    def _find_cache(self) -> None:
        """Where keys and values are, now that the cache has grown."""
        cache = self._cache
        self._slots, self._length = len(cache.lengths), cache.length
        for row, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            for column, kept in ((at.KEYS, keys), (at.VALUES, values)):
                _fill(row, column, [part.data_ptr() for part in kept.parts])
        self._plans[:, at.ROOM] = cache.keys[0].length

    def _turns_at(self, positions: Sequence[int], slots: Sequence[int]) -> list[int]:
        """The addresses of cos and sin of positions."""
        firsts, prompts = [place // TURNS * TURNS for place in positions], [self._cache.prompts[slot] for slot in slots]
        wanted, kept = list(zip(firsts, prompts, strict=True)), self._turns
        self._turns = {}
        for where in wanted:
            if where not in self._turns:
                self._turns[where] = kept[where] if where in kept else self._some_turns(*where)
        size = 8 * self._decoder.config.head_dim  # bytes of a position
        begins = [self._turns[where].ctypes.data for where in wanted]
        return [begin + place % TURNS * size for begin, place in zip(begins, positions, strict=True)]

    def _some_turns(self, first: int, prompt: int) -> np.ndarray:
        """(TURNS, 2 D), the cos and sin of positions from `first` on, of a text whose prompt has so many tokens."""
        config = self._decoder.config
        positions = torch.arange(first, first + TURNS)[None]
        lengths = (positions + 1).clamp(min=prompt)
        both = rotary(positions, config.head_dim, config.rope_theta, config.rope_scaling, lengths=lengths)
        rows = torch.cat(both, dim=-1).to(self._dtype).float()  # (1, 1, TURNS, 2 D), rounded as for a prompt
        turns: np.ndarray = rows.contiguous().numpy()
        return turns


def _layer(block: Block) -> list[int]:
    """A row of the table of layers; the cache's columns are filled later."""
    row, attention, feed_forward = [0] * at.LAYER, block.attention, block.feed_forward
    assert isinstance(feed_forward, FeedForward)
    matrices: dict[int, nn.Module | None] = {
        at.QUERY: attention.query,
        at.KEY: attention.key,
        at.VALUE: attention.value,
        at.OUTPUT: attention.output,
        at.GATE: feed_forward.gate,
        at.UP: feed_forward.up,
        at.DOWN: feed_forward.down,
    }
    norms: dict[int, nn.Module | None] = {
        at.ATTENTION_NORM: block.attention_norm,
        at.FEED_FORWARD_NORM: block.feed_forward_norm,
        at.QUERY_NORM: attention.query_norm,
        at.KEY_NORM: attention.key_norm,
    }
    for column, module in matrices.items():
        if module is not None:
            row[column : column + len(at.MATRIX)] = _matrix(module)
    for column, module in norms.items():
        if module is not None:
            row[column : column + len(NORM)] = _addresses(module, NORM)
    return row


def _matrix(module: nn.Module) -> list[int]:
    """The columns of a linear layer, or of an embedding that multiplies."""
    weight, scale = module.weight, "scale_and_offset" if isinstance(module, Int4Linear) else "scale"
    assert isinstance(weight, Tensor)
    return [*_addresses(module, ("weight", scale, "bias")), len(weight), FORMS[weight.dtype]]


def _addresses(module: nn.Module, names: tuple[str, ...]) -> list[int]:
    """Of tensors of a module; 0 for those that it has not."""
    tensors = [getattr(module, name, None) for name in names]
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _fill(plan: np.ndarray, column: int, values: list[int]) -> None:
    plan[column : column + len(values)] = values


def _bits(number: float) -> int:
    return int(np.float32(number).view(np.uint32))


def _lines(count: int) -> int:
    """So many numbers as whole lines of memory."""
    return -(-count // LINE) * LINE
