"""The text encoder: a prompt to one vector a token, which the denoiser looks at through cross-attention.

A small transformer that sees the whole prompt at once (no causal mask), trained together with the denoiser.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.attention import Attention
from diptych.core.feedforward import FeedForward
from diptych.core.norms import NORMS, RMSNorm, branch
from diptych.core.positions import rotary
from diptych.core.spelling import unknown
from diptych.core.tokenizer import Tokenizer
from diptych.core.weights import load_into, read_config
from diptych.image.prompt_tokens import PromptTokenizer


@dataclass(frozen=True)
class EncoderConfig:
    """Args: length: tokens that a prompt may have, the begin and the end among them."""

    vocab_size: int = 512
    width: int = 256
    num_layers: int = 3
    num_heads: int = 4
    length: int = 48

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EncoderConfig":
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("text encoder setting", key, known)
        config = cls(**values)
        if min(asdict(config).values()) < 1 or config.width % (2 * config.num_heads) or config.length < 3:
            raise ValueError(
                "text encoder sizes must be positive, width a multiple of 2 x num_heads, length at least 3"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each normed before and added after: of this encoder, of CLIP's towers and of T5.

    Args:
        norm: one of `core.norms.NORMS`.
        has_bias: on all projections.
        scale: of attention's scores, 1 / sqrt(head_dim) when None.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        *,
        head_dim: int | None = None,
        norm: str = "rms",
        norm_eps: float = 1e-6,
        activation: str = "silu",
        is_gated: bool = True,
        has_bias: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = NORMS[norm](width, norm_eps)
        self.attention = Attention(
            width, num_heads, head_dim=head_dim, has_qkv_bias=has_bias, has_output_bias=has_bias, scale=scale
        )
        self.feedforward_norm = NORMS[norm](width, norm_eps)
        self.feedforward = FeedForward(width, hidden, activation=activation, is_gated=is_gated, has_bias=has_bias)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """x (B, S, width); the rest as `Attention.forward` has it."""
        x, normed = branch(self.attention_norm, x)
        x = x + self.attention(normed, rotary=rotary, mask=mask, bias=bias, is_causal=is_causal)
        x, normed = branch(self.feedforward_norm, x)
        thought: Tensor = self.feedforward(normed)
        return x + thought


class TextEncoder(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.num_heads, config.width * 8 // 3) for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, length) int64, mask (B, length) bool, True where there is a token -> (B, length, width)."""
        x = self.embedding(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        angles = rotary(positions, self.config.width // self.config.num_heads)
        for block in self.blocks:
            x = block(x, rotary=angles, mask=mask[:, None, None, :])
        context: Tensor = self.norm(x)
        return context


def encoder_sizes_of(directory: str | Path) -> dict[str, Any]:
    """What the checkpoint of a pairing or a painter says of its text encoder.

    Raises:
        ValueError: for a directory that is no checkpoint with one.
    """
    if not Path(directory).is_dir():
        raise ValueError(f"there is no text encoder at '{directory}'; 'diptych train recipes/pairing.toml' makes one")
    config = read_config(directory)
    whole = config.get("pairing", config)
    sizes = whole.get("encoder") if isinstance(whole, dict) else None
    if not isinstance(sizes, dict):
        raise ValueError(f"'{directory}' is not a checkpoint with a text encoder of the house's kind")
    return sizes


def trained_encoder(directory: str | Path) -> tuple[TextEncoder, Tokenizer]:
    """The frozen text encoder of a pairing or a painter, and the tokenizer of its prompts.

    Raises:
        ValueError: for a directory that is no whole checkpoint with one.
    """
    encoder = TextEncoder(EncoderConfig.from_dict(encoder_sizes_of(directory)))
    load_into(encoder, directory, "encoder.")
    return encoder.requires_grad_(False).eval(), Tokenizer.load(Path(directory) / "tokenizer.json")


def as_read(prompt: str, tokenizer: Tokenizer | PromptTokenizer) -> str:
    """What of a prompt is tokenised: the house's own tokenizers read small letters, without space around them."""
    return prompt.strip().lower() if isinstance(tokenizer, Tokenizer) else prompt


def encode_prompts(
    tokenizer: Tokenizer | PromptTokenizer, prompts: list[str], length: int, *, cuts: bool = False
) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts, each (B, length), padded.

    An empty prompt is begin and end alone: what caption dropout trains, and what guidance moves away from.

    Args:
        cuts: keep the first tokens of a prompt that has too many, as for captions that nobody wrote for this encoder.

    Raises:
        ValueError: a prompt with too many tokens that is not to be cut.
    """
    pad = tokenizer.pad if isinstance(tokenizer, PromptTokenizer) else tokenizer.end
    tokens = torch.full((len(prompts), length), pad, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    borders = len(tokenizer.bordered([]))
    for row, prompt in enumerate(prompts):
        ids = tokenizer.bordered(tokenizer.encode(as_read(prompt, tokenizer)))
        if cuts and len(ids) > length:
            ids = [*ids[: length - 1], tokenizer.end]
        if len(ids) > length:
            raise ValueError(
                f"the prompt is too long: {len(ids) - borders} tokens, at most {length - borders}: '{prompt[:40]}...'"
            )
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
    return tokens, mask
