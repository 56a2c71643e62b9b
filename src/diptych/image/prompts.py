"""From prompts to the condition that a network is given, through one text encoder or several."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from diptych.core.tokenizer import Tokenizer
from diptych.image.condition import Condition
from diptych.image.encoders import TextEncoder, encode_prompts


class Prompter(Protocol):
    """Args: modules: the encoders by name, as a checkpoint has them."""

    modules: Mapping[str, nn.Module]

    def __call__(self, prompts: Sequence[str], *, is_negative: bool = False, cuts: bool = False) -> Condition:
        """Prompts as the network sees them.

        Args:
            is_negative: they are what guidance moves away from; "" is then no prompt at all.
            cuts: keep the first tokens of a prompt that has too many.

        Raises:
            ValueError: a prompt that is too long and not to be cut.
        """
        ...


class OwnPrompter:
    """The house's own: a small encoder that was trained with the network, or before it."""

    def __init__(self, encoder: TextEncoder, tokenizer: Tokenizer) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.modules: Mapping[str, nn.Module] = {"encoder": encoder}

    def __call__(self, prompts: Sequence[str], *, is_negative: bool = False, cuts: bool = False) -> Condition:
        """See `Prompter`; "" is what caption dropout trained, negative or not."""
        return Condition(*self.encode(prompts, cuts=cuts))

    def encode(self, prompts: Sequence[str], *, cuts: bool = False) -> tuple[Tensor, Tensor]:
        """Context (B, length, width) and mask (B, length)."""
        device = self.encoder.embedding.weight.device
        tokens, mask = encode_prompts(self.tokenizer, list(prompts), self.encoder.config.length, cuts=cuts)
        tokens, mask = tokens.to(device), mask.to(device)
        return self.encoder(tokens, mask), mask
