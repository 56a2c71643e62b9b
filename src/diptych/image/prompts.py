"""From prompts to the condition that a network is given, through one text encoder or several."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from torch import Tensor, nn

from diptych.core.tokenizer import Tokenizer
from diptych.image.condition import Condition
from diptych.image.encoders import TextEncoder, as_read, encode_prompts
from diptych.image.weighting import Piece, joined, pieces, plain, weighted
from diptych.image.words import Word, words_in


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

    def words(self, prompt: str) -> list[Word]:
        """The words of a prompt, and where in the context of `__call__` the tokens of each stand."""
        ...


class OwnPrompter:
    """The house's own: a small encoder that was trained with the network, or before it."""

    def __init__(self, encoder: TextEncoder, tokenizer: Tokenizer) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.modules: Mapping[str, nn.Module] = {"encoder": encoder}

    def __call__(self, prompts: Sequence[str], *, is_negative: bool = False, cuts: bool = False) -> Condition:
        """See `Prompter`; "" is what caption dropout trained, negative or not. Weights in brackets are obeyed."""
        found = [pieces(prompt) for prompt in prompts]
        context, mask = self.encode([joined(one) for one in found], cuts=cuts)
        weights = [self._weights(one, context.shape[1]) for one in found]
        if any(weight != 1 for row in weights for weight in row):
            context = weighted(context, self.encode([""])[0], weights)
        return Condition(context, mask)

    def words(self, prompt: str) -> list[Word]:
        """See `Prompter`."""
        text = as_read(plain(prompt), self.tokenizer)
        return words_in(text, self.tokenizer.spans(text), first=1)  # after the token that begins every prompt

    def encode(self, prompts: Sequence[str], *, cuts: bool = False) -> tuple[Tensor, Tensor]:
        """Context (B, length, width) and mask (B, length) of prompts taken as they are."""
        device = self.encoder.embedding.weight.device
        tokens, mask = encode_prompts(self.tokenizer, list(prompts), self.encoder.config.length, cuts=cuts)
        tokens, mask = tokens.to(device), mask.to(device)
        return self.encoder(tokens, mask), mask

    def _weights(self, found: Sequence[Piece], length: int) -> list[float]:
        """Of each token: that of the piece of the prompt in which it ends."""
        if all(piece.weight == 1 for piece in found):
            return [1.0] * length
        text = joined(found)
        unread = len(text.encode()) - len(text.lstrip().encode())  # at its start, see `as_read`
        borders = [border - unread for border in accumulate(len(piece.text.lower().encode()) for piece in found)]
        ids = self.tokenizer.encode(as_read(text, self.tokenizer))
        ends = accumulate(len(self.tokenizer.token_bytes(id)) for id in ids)
        begin = [1.0] * (len(self.tokenizer.bordered([])) - 1)
        weights = [found[min(bisect_left(borders, end), len(found) - 1)].weight for end in ends]
        return [*begin, *weights, *[1.0] * length][:length]
