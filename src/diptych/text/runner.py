"""The text runner: any number of texts written side by side, one token each with every call of the network.

A job is a text in progress. Its first step reads the whole prompt, the later ones a token each; rows of one call are
padded to the longest. What a job draws depends on its own seed and step alone, so a text comes out the same alone or in
company.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diptych.core.attention import Attention
from diptych.core.randomness import check_seed, uniform
from diptych.core.tokenizer import Tokenizer
from diptych.text.cache import KeyValueCache
from diptych.text.decoder import Decoder
from diptych.text.odds import Ids, Numbers, Odds, leading, log_total_and_entropy, odds, row
from diptych.text.record import Candidate, FinishReason, TextResult, TextStep, trace_of
from diptych.text.settings import Settings
from diptych.text.writer import Writer

FIRST_LENGTH = 128  # tokens of a slot before the cache grows
CHUNK = 2048  # tokens of a prompt that the network reads at a time: scores are CHUNK times the prompt, not its square


@dataclass(frozen=True)
class TextRequest:
    """What to write and how.

    Args:
        prompt_ids: what to go on from, special tokens included.
        settings: how.
        seed, sample: of the draws: the same two, the same text.
    """

    prompt_ids: list[int]
    settings: Settings = Settings()  # noqa: RUF009 - frozen
    seed: int = 0
    sample: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("the prompt is empty: give at least one word to go on from")
        check_seed(self.seed)


@dataclass
class TextJob:
    """A text in progress."""

    request: TextRequest
    slot: int
    limit: int  # tokens that may be drawn
    writer: Writer
    unread: list[int]  # tokens that the network reads with the next step
    prompt: frozenset[int]  # its tokens, each once
    tokens: list[int] = field(default_factory=list)  # drawn so far
    steps: list[TextStep] = field(default_factory=list)
    is_done: bool = False
    finish_reason: FinishReason = "cancelled"
    is_released: bool = False


class TextRunner:
    """Writes texts with one decoder.

    Args:
        name: the model's, for traces.
        slots: texts to make room for at first.
        chunk: the most tokens of a prompt that one call of the network reads.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, *, name: str = "", slots: int = 1, chunk: int = CHUNK
    ) -> None:
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"chunk must be a whole number of tokens >= 1, not {chunk!r}")
        self.decoder, self.tokenizer, self.name, self.chunk = decoder, tokenizer, name, chunk
        weight = decoder.embedding.weight
        self._device = weight.device
        heads = next(module for module in decoder.modules() if isinstance(module, Attention)).num_kv_heads
        self._cache = KeyValueCache(
            decoder.config, slots, FIRST_LENGTH, weight.device, weight.dtype, num_kv_heads=heads
        )

    def admit(self, request: TextRequest) -> TextJob:
        """Raises: ValueError for a prompt that does not fit the context, or tokens that the model does not know."""
        context, count, settings = self.decoder.config.context, len(request.prompt_ids), request.settings
        if count >= context:
            raise ValueError(f"the prompt has {count} tokens and fills the model's context of {context}")
        self._check_tokens("prompt token ids", request.prompt_ids)
        self._check_tokens("logit_bias token ids", settings.logit_bias)
        limit = min(settings.max_tokens, context - count + 1)  # the last token drawn is never read
        prompt = list(request.prompt_ids)
        return TextJob(request, self._cache.reserve(count), limit, Writer(settings.stop), prompt, frozenset(prompt))

    @torch.inference_mode()
    def advance(self, jobs: Sequence[TextJob]) -> list[TextStep]:
        """Each job gets one more token: one call of the network, and before it one for each chunk of a long prompt but
        its last. Steps in the order of the jobs."""
        if not jobs:
            return []
        if any(job.is_done or job.is_released for job in jobs):
            raise ValueError("a job that is done cannot be advanced")
        was_training = self.decoder.training
        if was_training:
            self.decoder.eval()
        while behind := [job for job in jobs if len(job.unread) > self.chunk]:
            self._read(behind)
        logits = self._read(jobs).cpu()
        if was_training:
            self.decoder.train()
        return [self._step(job, row) for job, row in zip(jobs, logits, strict=True)]

    def _read(self, jobs: Sequence[TextJob]) -> Tensor:
        """One call of the network on the next chunk of each job; logits after its last token, (B, V)."""
        new = [job.unread[: self.chunk] for job in jobs]
        counts = [len(row) for row in new]
        width = max(counts)
        cache = self._cache.append([job.slot for job in jobs], counts, width)
        logits: Tensor = self.decoder(
            torch.tensor([row + [0] * (width - len(row)) for row in new], device=self._device),
            positions=cache.positions,
            mask=cache.mask,
            cache=cache,
            places=torch.tensor(counts, device=self._device) - 1,
        )[:, 0, : self.tokenizer.size]
        for job in jobs:
            job.unread = job.unread[self.chunk :]
        return logits

    def finish(self, job: TextJob) -> TextResult:
        """The result of a job, done or cancelled; its place in the cache is free again."""
        if not job.is_released:
            job.is_released = True
            self._cache.release(job.slot)
        request = job.request
        settings = request.settings.to_dict() | {
            "prompt": self.tokenizer.decode(request.prompt_ids),
            "prompt_ids": list(request.prompt_ids),
            "seed": request.seed,
            "sample": request.sample,
        }
        text = "".join(step.text for step in job.steps)
        trace = trace_of(self.name, settings | {"finish_reason": job.finish_reason}, job.steps, self.tokenizer)
        return TextResult(text, job.tokens, job.finish_reason, request.seed, settings, trace)

    def _step(self, job: TextJob, logits: Tensor) -> TextStep:
        """Draw the next token of a job from its logits (V,)."""
        request, scores = job.request, row(logits)
        chances = odds(scores, request.settings, job.prompt, job.tokens, self._forbidden(job))
        u = float(uniform((), seed=request.seed, sample=request.sample, step=len(job.steps)))
        return self._take(job, chances.draw(u), scores, chances)

    def _forbidden(self, job: TextJob) -> Ids | None:
        """Tokens that the text cannot go on with."""
        if len(job.tokens) < job.request.settings.min_tokens and self.tokenizer.ends:
            return np.array(sorted(self.tokenizer.ends))
        return None

    def _take(self, job: TextJob, token: int, scores: Numbers, chances: Odds) -> TextStep:
        """Append a token to a job; the step that tells of it, with the logits and the odds that it was drawn from."""
        index = len(job.steps)
        is_end = token in self.tokenizer.ends
        is_last = is_end or index + 1 == job.limit
        text = job.writer.write(self.tokenizer.token_bytes(token), is_last=is_last)
        job.is_done = is_last or job.writer.has_stopped
        if job.is_done:
            job.finish_reason = "stop" if is_end or job.writer.has_stopped else "length"
        job.unread = [token]
        job.tokens.append(token)

        log_total, entropy = log_total_and_entropy(scores)
        shown = leading(scores, job.request.settings.num_candidates).tolist()
        if token not in shown:
            shown.append(token)
        candidates = [
            Candidate(id, self.tokenizer.piece(id), math.exp(float(scores[id]) - log_total), chances.of(id))
            for id in shown
        ]
        drawn = candidates[shown.index(token)]
        step = TextStep(index, token, text, drawn.probability, drawn.odds, candidates, entropy)
        job.steps.append(step)
        return step

    def _check_tokens(self, what: str, tokens: Iterable[int]) -> None:
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < self.tokenizer.size:
                raise ValueError(f"{what} must be whole numbers from 0 to {self.tokenizer.size - 1}, not {token!r}")
