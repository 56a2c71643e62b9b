"""Writing a text alone, a token at a time: the decoder by one call of compiled code (`core.row_kernel`).

Here is decided which decoders that is for: plain transformers on a CPU, whose weights lie there in bfloat16, float32 or
8 bits, over a cache that keeps all of a text as it is. All others, and whatever reads more than one token, go through
torch; both give the same logits within rounding.
"""

import numpy as np
import torch
from torch import Tensor, nn

from diptych.core import row_plan as at
from diptych.core.attention import Attention
from diptych.core.crew import crew, num_threads
from diptych.core.dropout import Dropout
from diptych.core.feedforward import FeedForward
from diptych.core.machine_code import is_here
from diptych.core.norms import RMSNorm
from diptych.core.positions import rotary
from diptych.core.quantised import Int8Linear, QuantisedEmbedding
from diptych.text.cache import KeyValueCache
from diptych.text.decoder import Block, Decoder

FORMS = {torch.bfloat16: at.BFLOAT, torch.float32: at.FLOAT, torch.int8: at.INT8}
TAKES = {Decoder, Block, Attention, FeedForward, Dropout, RMSNorm, nn.LayerNorm, nn.ModuleList}
TAKES |= {nn.Linear, Int8Linear, nn.Embedding, QuantisedEmbedding}
TURNS = 256  # positions whose angles are computed together
MATRIX, NORM = ("weight", "scale", "bias"), ("weight", "bias")  # in the order of the tables
LINE = 16  # numbers of a line of memory


def suits(decoder: nn.Module, cache: KeyValueCache) -> bool:
    """Whether one token of one text goes through the compiled kernel."""
    kinds = {type(module) for module in decoder.modules()}
    if not is_here() or kinds - TAKES or {nn.Linear, Int8Linear} <= kinds:
        return False
    assert isinstance(decoder, Decoder)
    config, tensors = decoder.config, [*decoder.parameters(), *decoder.buffers()]
    numbers = {tensor.dtype for tensor in tensors if tensor.dtype != torch.int8}
    return (
        not any(config.windows)
        and cache.keeps_all
        and cache.num_kv_heads == config.num_kv_heads  # none lie in other processes
        and numbers in ({torch.bfloat16}, {torch.float32})
        and (Int8Linear in kinds) == (QuantisedEmbedding in kinds)
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        and not any(module._compiled_call_impl for module in decoder.modules())
    )


class OneRow:
    """A decoder and a cache that `suits`, as the kernel's tables. The weights stay where they are."""

    def __init__(self, decoder: Decoder, cache: KeyValueCache) -> None:
        self._decoder, self._cache, config = decoder, cache, decoder.config
        modules = list(decoder.modules())
        holders = [holder for module in modules for holder in (module._parameters, module._buffers)]
        self._tensors = [(holder, name, tensor) for holder in holders for name, tensor in holder.items()]
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._dtype = next(decoder.norm.parameters()).dtype
        self._layers = np.array([_layer(module) for module in modules if isinstance(module, Block)], np.int64)
        self._threads, self._slots, self._length = num_threads(), 0, 0
        self._turns, self._turned = np.empty(0, np.float32), (-1, -1)

        group = config.num_heads // config.num_kv_heads
        segments = -(-config.context // at.SEGMENT)
        projected = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        attending = group * config.head_dim + max(group * at.SEGMENT, 2 * config.head_dim)
        seen = config.num_heads * config.head_dim
        packed = LINE + _lines(max(config.width + config.hidden, seen, attending))
        scratch = packed + _lines(max(config.width, seen, config.hidden))
        sizes = [config.width, projected, config.hidden, config.num_heads * segments * (config.head_dim + 2)]
        room = np.zeros(sum(map(_lines, sizes)) + scratch * self._threads + LINE, np.float32)
        self._room, begin = room, room.ctypes.data + -room.ctypes.data % (4 * LINE)
        begins = [begin + 4 * sum(map(_lines, sizes[:count])) for count in range(len(sizes) + 1)]

        self._plan = plan = np.zeros(at.DECODER, np.int64)
        plan[at.WIDTH], plan[at.NUM_LAYERS], plan[at.HIDDEN] = config.width, config.num_layers, config.hidden
        plan[at.NUM_HEADS], plan[at.NUM_KV_HEADS] = config.num_heads, config.num_kv_heads
        plan[at.HEAD_DIM], plan[at.VOCABULARY] = config.head_dim, config.vocab_size
        plan[at.NUMBERS], plan[at.IS_LAYER_NORM] = FORMS[self._dtype], config.norm == "layer"
        plan[at.ACTIVATION], plan[at.EPS] = at.ACTIVATIONS[config.activation], _bits(config.norm_eps)
        plan[at.SCORE_CAP], plan[at.LOGIT_CAP] = _bits(config.attention_softcap), _bits(config.logit_softcap)
        plan[at.THREADS], plan[at.SCRATCH_BYTES], plan[at.PACKED] = self._threads, 4 * scratch, 4 * packed
        plan[[at.RESIDUAL, at.PROJECTED, at.WIDENED, at.PARTIAL, at.SCRATCH]] = begins
        plan[at.LAYER_TABLE] = self._layers.ctypes.data
        _fill(plan, at.FINAL_NORM, _addresses(decoder.norm, NORM))
        embedding = decoder.embedding
        matrix = embedding.matrix if isinstance(embedding, QuantisedEmbedding) else embedding
        plan[at.WEIGHTS] = FORMS[matrix.weight.dtype]
        _fill(plan, at.EMBEDDING, _addresses(matrix, MATRIX))
        _fill(plan, at.HEAD, _addresses(matrix if decoder.head is None else decoder.head, MATRIX))
        if decoder.position_embedding is not None:
            plan[at.POSITIONS] = decoder.position_embedding.weight.data_ptr()

    def is_current(self) -> bool:
        """Whether the decoder is as it was: nothing is hung beside its layers, and no weight is another tensor."""
        return (
            not any(self._hooks)
            and all(holder[name] is tensor for holder, name, tensor in self._tensors)
            and not torch.is_autocast_enabled("cpu")
        )

    def read(self, token: int, slot: int) -> Tensor:
        """The logits for what follows the next token of a text: (1, V), float32."""
        plan, cache, config = self._plan, self._cache, self._decoder.config
        (position,) = cache.extend([slot], [1])
        if (self._slots, self._length) != (len(cache.lengths), cache.length):
            self._find_cache()
        if config.position == "rotary":
            row = self._turns_at(position, slot)
            plan[at.COS], plan[at.SIN] = row, row + 4 * config.head_dim
        logits = torch.empty(1, config.vocab_size, dtype=torch.float32)
        plan[at.TOKEN], plan[at.POSITION], plan[at.LOGITS] = token, position, logits.data_ptr()
        plan[at.KEPT] = slot * config.num_kv_heads * plan[at.ROOM]
        crew().run(plan.ctypes.data, self._threads)
        return logits

    def _find_cache(self) -> None:
        """Where keys and values are, now that the cache has grown."""
        cache = self._cache
        self._slots, self._length = len(cache.lengths), cache.length
        self._layers[:, at.KEYS] = [kept.whole.data_ptr() for kept in cache.keys]
        self._layers[:, at.VALUES] = [kept.whole.data_ptr() for kept in cache.values]
        self._plan[at.ROOM] = cache.keys[0].length * self._decoder.config.head_dim

    def _turns_at(self, position: int, slot: int) -> int:
        """The address of cos and sin of a position."""
        config, prompt = self._decoder.config, self._cache.prompts[slot]
        first = position // TURNS * TURNS
        if self._turned != (first, prompt):
            self._turned = first, prompt
            positions = torch.arange(first, first + TURNS)[None]
            lengths = (positions + 1).clamp(min=prompt)
            both = rotary(positions, config.head_dim, config.rope_theta, config.rope_scaling, lengths=lengths)
            rows = torch.cat(both, dim=-1).to(self._dtype).float()  # (1, 1, TURNS, 2 D), rounded as for a prompt
            self._turns = rows.contiguous().numpy()
        return int(self._turns.ctypes.data) + (position - first) * 8 * config.head_dim


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
    for found, names in ((matrices, MATRIX), (norms, NORM)):
        for column, module in found.items():
            if module is not None:
                row[column : column + len(names)] = _addresses(module, names)
    return row


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
