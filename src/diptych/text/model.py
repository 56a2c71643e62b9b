"""A text model: a decoder and its tokenizer, loaded from a checkpoint, ready to write and to judge."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from diptych.core import weights
from diptych.core.adapters import Adapters
from diptych.core.checks import is_whole
from diptych.core.generation import Generation
from diptych.core.lora import Adapter
from diptych.core.positions import RopeScaling
from diptych.core.precision import choose
from diptych.core.quantised import check_bits
from diptych.core.randomness import check_seed
from diptych.core.tokenizer import Tokenizer
from diptych.text.assembly import assemble
from diptych.text.cache import CacheSettings, leave_uncompiled
from diptych.text.chat_template import FILE, read_template
from diptych.text.conversation import ChatFormat
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.objective import token_log_probabilities
from diptych.text.odds import row
from diptych.text.reader import CHUNK, Part, Reader
from diptych.text.record import TextResult, TextStep, step_of
from diptych.text.runner import TextRequest, TextRunner
from diptych.text.settings import Settings
from diptych.text.speculation import drafter_of
from diptych.text.writer import Writer

MAX_SAMPLES = 256
TOGETHER = 64  # tokens of a text that is given whose logits are there at once


class TextModel:
    """Writes on from a prompt, and says how likely a text is.

    Args:
        name: what traces and lists call it.
        chat_template: how it reads a conversation, if it was trained on any (see `text.chat_template`).
        defaults: settings of `generate` that it is best written with, where they are not those of `Settings`.

    Raises:
        ValueError: defaults that are no settings, or a tokenizer with more tokens than the decoder.
    """

    panel: Literal["text"] = "text"

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        chat_template: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if tokenizer.size > decoder.config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.size} tokens, the decoder only {decoder.config.vocab_size}")
        self.decoder, self.tokenizer, self.name, self.chat_template = decoder, tokenizer, name, chat_template
        self.config = decoder.config
        self.adapters = Adapters(decoder)
        self.defaults = dict(defaults or {})
        Settings.named(self.defaults)  # validated where they are made

    @classmethod
    def load(
        cls, directory: str | Path, *, device: str | None = None, dtype: str | None = None, bits: int | None = None
    ) -> Self:
        """See `diptych.load`.

        Raises: ValueError for a directory that is no whole text checkpoint, a device or dtype that is not here.
        """
        check_bits(bits)
        chosen_device, chosen_dtype = choose(device, dtype)
        config = weights.read_config(directory)
        if config.get("panel") != "text" or not isinstance(config.get("decoder"), dict):
            raise ValueError(
                f"'{directory}' is not a text checkpoint: its config.json needs panel \"text\" and a decoder"
            )
        try:
            decoder_config = DecoderConfig.from_dict(config["decoder"])
        except ValueError as error:
            raise ValueError(f"'{directory}/config.json': {error}") from error
        tensors = weights.iterate_tensors(directory)
        decoder = assemble(decoder_config, tensors, directory, device=chosen_device, dtype=chosen_dtype, bits=bits)
        tokenizer = Tokenizer.load(Path(directory) / "tokenizer.json")
        defaults = config.get("defaults", {})
        if not isinstance(defaults, dict):
            raise ValueError(f"'{directory}/config.json': defaults must be a table of settings, not {defaults!r}")
        name = str(config.get("name", Path(directory).name))
        return cls(name, decoder, tokenizer, chat_template=read_template(directory), defaults=defaults)

    def compile(self) -> None:
        """Have the blocks compiled (`torch.compile`) when they are first used. Whether it pays depends on the machine:
        docs/decoding-speed.md has a figure of a CPU, where it does not."""
        leave_uncompiled()
        for block in self.decoder.blocks:
            block.compile(dynamic=True)

    def save(self, directory: str | Path, card: str | None = None, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint directory, whole or not at all.

        Args:
            card: the text of its README.md.
            dtype: of the weights in the file; None keeps theirs.
        """
        config: dict[str, Any] = {"panel": "text", "name": self.name, "decoder": self.config.to_dict()}
        config |= {"defaults": self.defaults} if self.defaults else {}
        tensors = {name: value.to(dtype or value.dtype) for name, value in self.decoder.state_dict().items()}
        texts = {} if self.chat_template is None else {FILE: self.chat_template}
        weights.save(directory, config, tensors, tokenizer=self.tokenizer, card=card, texts=texts)

    def stretched(self, context: int, kind: str | None = "yarn") -> "TextModel":
        """The same weights for texts of `context` tokens.

        Args:
            kind: of the scaling of rotary positions (see `RopeScaling`), by what `context` is over the trained one;
                None leaves positions as they are, and those that were never seen make the model lose the thread.

        Raises:
            ValueError: an unknown kind, a context below the model's, or positions that are learned one by one.
        """
        if context < self.config.context or self.config.position == "learned":
            reason = "its positions are learned" if self.config.position == "learned" else "that would be shorter"
            raise ValueError(
                f"the context of '{self.name}' cannot go from {self.config.context} to {context}: {reason}"
            )
        scaling = self.config.rope_scaling
        if kind is not None:
            original = scaling.original_context if scaling else self.config.context
            scaling = RopeScaling(kind, context / original, original)
        decoder = copy(self.decoder)  # shares the weights
        decoder.config = replace(self.config, context=context, rope_scaling=scaling)
        stretched = copy(self)
        stretched.decoder, stretched.config = decoder, decoder.config
        return stretched

    def runner(
        self,
        slots: int = 1,
        *,
        speculate: "str | TextModel | None" = None,
        cache: CacheSettings | None = None,
        chunk: int = CHUNK,
    ) -> TextRunner:
        """A fresh runner over this model, for many requests at once.

        Args:
            cache: how what was read is kept: in 8 bits, past the context.
            chunk: the most tokens of a prompt that one call of the network reads.
            speculate: what guesses ahead for the requests that have `draft_tokens`: "ngram" looks up what followed the
                text's last tokens before, a text model with the same tokenizer writes ahead.
        """
        drafter = None if speculate is None else drafter_of(speculate, self.tokenizer)
        return TextRunner(
            self.decoder, self.tokenizer, name=self.name, slots=slots, chunk=chunk, drafter=drafter, cache=cache
        )

    def generate(
        self,
        prompt: str | list[int],
        *,
        seed: int | None = None,
        n: int = 1,
        first_sample: int = 0,
        speculate: "str | TextModel | None" = None,
        draft_tokens: int = 4,
        cache: CacheSettings | None = None,
        **settings: Any,
    ) -> Generation[TextStep, TextResult]:
        """Write on from a prompt: iterate for steps, or call `.result()`.

        Args:
            prompt: a text, or token ids that are taken as they are (with what begins a text, if it is wanted).
            seed: None draws a fresh one, which the result names.
            n: how many texts. The prompt is read once; text i draws from (seed, first_sample + i) and so is the one
                that it is alone. A step says whose it is (`sample`), `.results()` are all of them.
            speculate: "ngram" or a smaller model guesses tokens ahead; it changes the speed, not the text (see
                `text.speculation`).
            draft_tokens: how many at a time.
            cache: how what was read is kept: in 8 bits, past the context.
            settings: those of `Settings`, by name: temperature, top_p, max_tokens, stop, ...; what is left out is as
                the model's own `defaults` have it.

        Raises:
            ValueError: for a setting that is unknown or out of its range, an empty prompt, or one longer than the
                context.
        """
        if not (is_whole(n) and 1 <= n <= MAX_SAMPLES):
            raise ValueError(f"n must be a whole number from 1 to {MAX_SAMPLES}, not {n!r}")
        ahead = 0 if speculate is None else draft_tokens
        ids, chosen, seed = self.prompt_ids(prompt), Settings.named(self.defaults | settings), check_seed(seed)
        requests = [TextRequest(ids, chosen, seed, first_sample + place, ahead) for place in range(n)]
        return Generation(self.runner(slots=n, speculate=speculate, cache=cache), *requests)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Have an adapter at hand; `use_adapter` puts it to use. Raises: ValueError for a name that is taken."""
        self.adapters.add(name, adapter)

    def use_adapter(self, which: str | Mapping[str, float] | None, strength: float = 1.0) -> None:
        """Write with one of the adapters, with several, or with none, from the next text on; see `Adapters.use`."""
        self.adapters.use(which, strength)

    def merge_adapter(self, name: str, strength: float = 1.0) -> None:
        """Add an adapter to the weights for good: as quick as the model itself, and no longer switchable."""
        self.adapters.merge(name, strength)

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How a conversation becomes token ids. Raises: ValueError for a chat template that cannot be read."""
        return ChatFormat(self.tokenizer, self.chat_template)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Generation[TextStep, TextResult]:
        """Answer the last message of a conversation: `generate`, on what the chat template makes of the messages.

        Args:
            messages: [{"role": "user", "content": "Hello"}, ...]; see `ChatFormat.ids`, also for tools and variables.
            settings: as of `generate`.

        Raises:
            ValueError: a message that is none, a conversation that the template refuses or that is longer than the
                context, a setting out of its range.
        """
        return self.generate(self.chat_format.ids(messages, tools=tools, variables=variables), **settings)

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt; a text begins with the tokenizer's begin, where it has one.

        Raises: ValueError for an empty prompt.
        """
        if not prompt:
            raise ValueError("the prompt is empty: give at least one word to go on from")
        if not isinstance(prompt, str):
            return list(prompt)
        begin = [] if self.tokenizer.begin is None else [self.tokenizer.begin]
        return [*begin, *self.tokenizer.encode(prompt)]

    def score(self, text: str | Sequence[int]) -> Tensor:
        """log p of each token given those before it, nats, float32 on the CPU: (number of ids - 1,).

        A text is scored as begin and its tokens, so every token of it has a score; without a begin, all but the first.
        """
        return token_log_probabilities(self.decoder, self._scored_ids(text), self.config.context)

    def read(self, text: str | Sequence[int], *, num_candidates: int = Settings.num_candidates) -> Iterator[TextStep]:
        """A text that is there, read as one that is being written: for each token that `score` scores, the step that
        would have drawn it, with the tokens that the model held likelier.

        Raises: ValueError for a text of one token, or one longer than the context.
        """
        ids, count = self._scored_ids(text), Settings(num_candidates=num_candidates).num_candidates
        if len(ids) > self.config.context + 1:
            raise ValueError(f"the text has {len(ids)} tokens; the model's context takes at most {self.config.context}")
        return self._read(ids, count)

    def _read(self, ids: list[int], num_candidates: int) -> Iterator[TextStep]:
        reader, writer = Reader(self.decoder), Writer(())
        slot = reader.cache.reserve(len(ids))
        for start in range(0, len(ids) - 1, TOGETHER):
            some = ids[start : min(start + TOGETHER, len(ids) - 1)]
            (logits,) = reader.read([Part(slot, some, wanted=len(some))])
            for index, scores in enumerate(logits[:, : self.tokenizer.size], start):
                token = ids[index + 1]
                added = writer.write(self.tokenizer.token_bytes(token), is_last=index + 2 == len(ids))
                yield step_of(index, token, added, row(scores), None, self.tokenizer, num_candidates)

    def _scored_ids(self, text: str | Sequence[int]) -> list[int]:
        ids = self.prompt_ids(text)
        if len(ids) < 2:
            raise ValueError("a text needs at least two token ids to be scored")
        wrong = [id for id in ids if not 0 <= id < self.tokenizer.size]
        if wrong:
            raise ValueError(f"token ids must be from 0 to {self.tokenizer.size - 1}, not {wrong[0]}")
        return ids
