"""The decoder: a transformer that reads tokens and says how likely each token of the vocabulary is to come next.

Pre-norm blocks of attention and feed-forward (Touvron et al. 2023): RMS norms, rotary positions, gated SiLU, norms of
queries and keys, one matrix for reading and predicting tokens. Every one of these is a switch of `DecoderConfig`, so
that GPT-2, Llama, Mistral and Qwen are settings of the same network.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.attention import Attention, Store, within_window
from diptych.core.checks import check_keys, is_whole
from diptych.core.dropout import Dropout
from diptych.core.experts import Experts, ExpertsConfig
from diptych.core.feedforward import ACTIVATIONS, FeedForward
from diptych.core.few_queries import FEW, additive
from diptych.core.likelihood import likelihood_of_products, negative_log_likelihood
from diptych.core.linear import Linear
from diptych.core.norms import NORMS, branch
from diptych.core.positions import RopeScaling, rotary
from diptych.core.precision import at_least_float32, in_autocast
from diptych.core.spelling import unknown

INITIAL_DEVIATION = 0.02
POSITIONS = ("rotary", "learned", "none")


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder.

    Args:
        hidden: width of the feed-forward half.
        context: the most tokens that attention spans in training and generation.
        position: "rotary", "learned" (one vector a place, added to the embedding) or "none".
        rope_scaling: how rotary positions turn more slowly, in a model that was trained on shorter texts.
        norm_eps: of all norms, those of queries and keys included.
        experts: what takes the place of the feed-forward in some layers or in all; `hidden` is that of the others.
        windows: of each layer, how many tokens attention spans, the token itself included; 0 spans all. () is 0 in all.
        attention_softcap: bends the scores of attention, see `Attention`; 0 leaves them.
        logit_softcap: c bends the logits to c tanh(logit / c); 0 leaves them.
        dropout: share of the embedding and of each residual branch dropped while training.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    context: int
    position: str = "rotary"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm: str = "rms"
    norm_eps: float = 1e-6
    is_gated: bool = True
    activation: str = "silu"
    has_qk_norm: bool = True
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_feed_forward_bias: bool = False
    experts: ExpertsConfig | None = None
    windows: tuple[int, ...] = ()
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    ties_embeddings: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (is_whole(value) and value >= 1):
                raise ValueError(f"{field.name} must be a whole number >= 1, not {value!r}")
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be true or false, not {value!r}")
            if field.type is float and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{field.name} must be a number, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.position not in POSITIONS:
            raise unknown("position", str(self.position), POSITIONS)
        if self.head_dim % 2 and self.position == "rotary":
            raise ValueError(f"head_dim must be even, not {self.head_dim}: rotary positions turn pairs")
        if self.rope_scaling and (self.position != "rotary" or self.head_dim < 4):
            raise ValueError("rope_scaling needs rotary positions and a head_dim of at least 4")
        if self.norm not in NORMS:
            raise unknown("norm", str(self.norm), NORMS)
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", str(self.activation), ACTIVATIONS)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number >= 0 and < 1, not {self.dropout}")
        for name in ("rope_theta", "norm_eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a finite number > 0, not {getattr(self, name)}")
        for name in ("attention_softcap", "logit_softcap"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number >= 0 (0 is none), not {getattr(self, name)}")
        if (
            not all(map(is_whole, self.windows))
            or min(self.windows, default=0) < 0
            or len(self.windows) not in (0, self.num_layers)
        ):
            raise ValueError(
                f"windows must be {self.num_layers} whole numbers >= 0, one for each layer (0 spans all), or none, "
                f"not {list(self.windows)}"
            )
        if self.experts and max(self.experts.layers, default=0) >= self.num_layers:
            raise ValueError(
                f"experts.layers must be below num_layers ({self.num_layers}), not {list(self.experts.layers)}"
            )

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        """Raises: ValueError for a key that is not known, is missing, or has an impossible value."""
        known = [field.name for field in fields(cls)]
        check_keys("decoder", entries, known, known[: known.index("position")])
        windows = entries.get("windows", ())
        if not isinstance(windows, list | tuple):
            raise ValueError(f"windows must be a list of whole numbers, not {windows!r}")
        scaling = entries.get("rope_scaling")
        if isinstance(scaling, Mapping):
            scaling = RopeScaling.from_dict(scaling)
        elif scaling is not None and not isinstance(scaling, RopeScaling):
            raise ValueError(f"rope_scaling must be a table of settings, not {scaling!r}")
        experts = entries.get("experts")
        if isinstance(experts, Mapping):
            experts = ExpertsConfig.from_dict(experts)
        elif experts is not None and not isinstance(experts, ExpertsConfig):
            raise ValueError(f"experts must be a table of settings, not {experts!r}")
        return cls(**{**entries, "windows": tuple(windows), "rope_scaling": scaling, "experts": experts})

    @classmethod
    def from_depth(cls, depth: int, vocab_size: int, context: int, **overrides: Any) -> Self:
        """One dial: width 40 a layer (rounded up to heads of 64), feed-forward three times as wide.

        Depth 8 with 4,096 tokens is a model of 12 M parameters.
        """
        if not (is_whole(depth) and depth >= 1):
            raise ValueError(f"depth must be a whole number >= 1, not {depth!r}")
        width = math.ceil(40 * depth / 64) * 64
        sizes = {
            "vocab_size": vocab_size,
            "width": width,
            "num_layers": depth,
            "num_heads": width // 64,
            "num_kv_heads": width // 64,
            "head_dim": 64,
            "hidden": 3 * width,
            "context": context,
        }
        return cls.from_dict(sizes | overrides)

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        scaling = self.rope_scaling and self.rope_scaling.to_dict()
        experts = self.experts and self.experts.to_dict()
        return asdict(self) | {"windows": list(self.windows), "rope_scaling": scaling, "experts": experts}

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """What a layer has in place of a feed-forward; None where it has one."""
        has_experts = self.experts and (not self.experts.layers or layer in self.experts.layers)
        return self.experts if has_experts else None


class Cache(Protocol):
    """Keeps the keys and values of tokens already read (see `text.cache`).

    Args:
        lengths: (B, T), tokens that the text has when each token is read: all of the prompt for those in it.
    """

    lengths: Tensor

    @property
    def key_positions(self) -> Tensor | None:
        """(B, S), by which keys are turned as they are read; None where they were turned before they were kept."""
        ...

    @property
    def masks(self) -> Mapping[int, Tensor | None]:
        """For each window that a layer has, bool (B, 1, T, S) over what is read."""
        ...

    def store(self, layer: int) -> Store:
        """What the attention of `layer` hands its new keys and values to, and gets all of them from."""
        ...


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config.width, config.norm_eps)
        self.attention = Attention(
            config.width,
            config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            has_qk_norm=config.has_qk_norm,
            norm_eps=config.norm_eps,
            has_qkv_bias=config.has_qkv_bias,
            has_output_bias=config.has_output_bias,
            softcap=config.attention_softcap,
        )
        self.feed_forward_norm = NORMS[config.norm](config.width, config.norm_eps)
        experts, activation, is_gated = config.experts_of(layer), config.activation, config.is_gated
        self.feed_forward = (
            Experts(config.width, experts, activation=activation, is_gated=is_gated)
            if experts
            else FeedForward(
                config.width,
                config.hidden,
                activation=activation,
                is_gated=is_gated,
                has_bias=config.has_feed_forward_bias,
            )
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        is_causal: bool,
        store: Store | None,
        key_turn: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        x, normed = branch(self.attention_norm, x)
        seen = self.attention(normed, rotary=turn, mask=mask, is_causal=is_causal, store=store, kept_rotary=key_turn)
        x, normed = branch(self.feed_forward_norm, x + self.dropout(seen))  # (B, T, C)
        following: Tensor = x + self.dropout(self.feed_forward(normed))
        return following


class Decoder(nn.Module):
    """Tokens -> logits of the next token."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width) if config.position == "learned" else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = NORMS[config.norm](config.width, config.norm_eps)
        self.head: nn.Module | None = (
            None if config.ties_embeddings else Linear(config.width, config.vocab_size, bias=False)
        )
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Biases of 0, normal weights of deviation 0.02; what ends a residual branch is smaller by sqrt(2 num_layers),
        so that the sum over layers keeps its size (Radford et al. 2019, section 2.3)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                if name.endswith(".bias"):
                    nn.init.zeros_(parameter)
                continue
            is_branch_end = name.endswith(("attention.output.weight", "down.weight", "feed_forward.down"))
            scale = 1 / math.sqrt(2 * self.config.num_layers) if is_branch_end else 1.0
            nn.init.normal_(parameter, std=INITIAL_DEVIATION * scale)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = True,
        cache: Cache | None = None,
        places: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Logits for what follows each token, or how unlikely what follows is.

        Args:
            tokens: (B, T), int64.
            positions: (B, T), place of each token in its document; 0, 1, 2, ... when None.
            mask: bool (B, 1, T, S), True where a token may look.
            is_causal: each token sees itself and those before it; a mask that comes with it must say so, too.
            cache: gets the new keys and values and gives back all S of them, with masks of its own; needs its
                positions.
            places: (B, P), int64: only the logits at these places of each row are wanted.
            targets: (B, T), int64, -100 where there is none.

        Returns:
            (B, T, vocab_size), float32; (B, P, vocab_size) with places; with targets, the sum of -log p(target) in
            nats, for which the logits are not kept.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        config, turn, key_turn = self.config, None, None
        embedded = self.embedding(tokens)
        if self.position_embedding is not None:
            embedded = embedded + self.position_embedding(positions)
        elif config.position == "rotary":
            lengths = None if cache is None else cache.lengths
            scaled = config.head_dim, config.rope_theta, config.rope_scaling
            turn = rotary(positions, *scaled, lengths=lengths)
            if cache is not None and cache.key_positions is not None:
                key_turn = rotary(cache.key_positions, *scaled, lengths=lengths)
        x = self.dropout(in_autocast(embedded))  # (B, T, C)
        if turn is not None:
            turn = turn[0].to(x.dtype), turn[1].to(x.dtype)
        if key_turn is not None:
            key_turn = key_turn[0].to(x.dtype), key_turn[1].to(x.dtype)
        masks = self._masks(mask, tokens) if cache is None else cache.masks
        if cache is not None and tokens.shape[1] <= FEW:
            masks = {window: seen if seen is None else additive(seen, x.dtype) for window, seen in masks.items()}
        for index, block in enumerate(self.blocks):
            seen = masks[config.windows[index] if config.windows else 0]
            x = block(x, turn, seen, is_causal, None if cache is None else cache.store(index), key_turn)
        if places is not None:
            x = x[torch.arange(len(x), device=x.device)[:, None], places]
        x = self.norm(x)
        weight = self._head_weight()
        if targets is not None and weight is not None and not config.logit_softcap:
            return likelihood_of_products(x, weight, targets)
        logits = F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        if config.logit_softcap:
            logits = config.logit_softcap * torch.tanh(at_least_float32(logits) / config.logit_softcap)
        return at_least_float32(logits) if targets is None else negative_log_likelihood(logits, targets)

    def _head_weight(self) -> Tensor | None:
        """What x is multiplied by for the logits, where that is all that the head does: no adapter is on it."""
        if self.head is None:
            return self.embedding.weight if isinstance(self.embedding, nn.Embedding) else None
        return self.head.weight if type(self.head) is Linear and not self.head._forward_hooks else None

    def _masks(self, mask: Tensor | None, tokens: Tensor) -> dict[int, Tensor | None]:
        """The mask for each window that a layer has, where all tokens come at once."""
        masks: dict[int, Tensor | None] = {0: mask}
        count = tokens.shape[1]
        rows = torch.arange(count, device=tokens.device)[None]
        for window in set(self.config.windows) - {0}:
            masks[window] = within_window(mask, rows, count, window)
        return masks
