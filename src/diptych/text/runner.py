"""The text runner: any number of texts written side by side, one token each with every call of the network.

A job is a text in progress. Its first step reads the whole prompt, the later ones a token each; rows of one call are
padded to the longest. What a job draws depends on its own seed and step alone, so a text comes out the same alone or in
company.
"""

import codecs
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.core.attention import Attention
from diptych.core.randomness import check_seed, uniform
from diptych.core.tokenizer import Tokenizer
from diptych.core.trace import Trace
from diptych.text.cache import KeyValueCache
from diptych.text.decoder import Decoder
from diptych.text.odds import Controls, draw, odds

FIRST_LENGTH = 128  # tokens of a slot before the cache grows
CHUNK = 2048  # tokens of a prompt that the network reads at a time: scores are CHUNK times the prompt, not its square
MAX_CANDIDATES = 1000
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TextRequest:
    """What to write and how. See `Controls` for the five that shape the odds.

    Args:
        prompt_ids: what to go on from, special tokens included.
        max_tokens: the most tokens to draw; fewer where the context ends.
        seed, sample: of the draws: the same two, the same text.
        stop: texts that end the generation; they are not part of the result.
        num_candidates: how many of the most probable tokens each step reports.
    """

    prompt_ids: list[int]
    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    num_candidates: int = 8
    sample: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("the prompt is empty: give at least one word to go on from")
        for name, most in (("max_tokens", None), ("num_candidates", MAX_CANDIDATES)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
                raise ValueError(
                    f"{name} must be a whole number >= 1{f' and <= {most}' if most else ''}, not {value!r}"
                )
        if isinstance(self.stop, str) or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise ValueError(f"stop must be texts of at least one character, not {self.stop!r}")
        check_seed(self.seed)
        _ = self.controls  # validated where it is made

    @property
    def controls(self) -> Controls:
        return Controls(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


@dataclass(frozen=True)
class Candidate:
    """A token that might have come: its `probability` under the model itself, its `odds` after the controls."""

    token: int
    text: str
    probability: float
    odds: float


@dataclass(frozen=True)
class TextStep:
    """One token.

    Args:
        text: what it adds to the text for certain; "" while a character or a possible stop text is incomplete.
        probability: of the token under the whole vocabulary's softmax at temperature 1.
        drawn_probability: of the token after the controls.
        candidates: the most probable first; the token itself comes last if it is not among them.
        entropy: of the whole vocabulary's softmax at temperature 1, nats.
    """

    index: int
    token: int
    text: str
    probability: float
    drawn_probability: float
    candidates: list[Candidate]
    entropy: float


@dataclass(frozen=True)
class TextResult:
    """A finished text.

    Args:
        text: the texts of the steps, joined.
        tokens: all that were drawn, the one that ended the text included.
        finish_reason: "stop" (the end token or a stop text), "length" (max_tokens or the context), "cancelled".
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    seed: int
    settings: dict[str, Any]
    trace: Trace


class Writer:
    """Bytes of tokens -> text that will not change any more.

    Keeps back a character whose bytes are not all there, and an ending that may turn out to begin a stop text.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.has_stopped = False

    def write(self, data: bytes, *, is_last: bool) -> str:
        """The text that is certain after these bytes; with `is_last`, all that is left."""
        self._held += self._decoder.decode(data, final=is_last)
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.has_stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - (0 if is_last else self._possible_stop()))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _possible_stop(self) -> int:
        """Length of the longest ending of the held text that begins a stop text."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0


@dataclass
class TextJob:
    """A text in progress."""

    request: TextRequest
    slot: int
    limit: int  # tokens that may be drawn
    writer: Writer
    unread: list[int]  # tokens that the network reads with the next step
    steps: list[TextStep] = field(default_factory=list)
    is_done: bool = False
    finish_reason: FinishReason = "cancelled"
    is_released: bool = False

    @property
    def tokens(self) -> list[int]:
        return [step.token for step in self.steps]


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
        """Raises: ValueError for a prompt that does not fit the context or has tokens that the model does not know."""
        context, count = self.decoder.config.context, len(request.prompt_ids)
        if count > context:
            raise ValueError(f"the prompt has {count} tokens; the model's context takes at most {context}")
        for token in request.prompt_ids:
            if not isinstance(token, int) or not 0 <= token < self.tokenizer.size:
                raise ValueError(
                    f"prompt token ids must be whole numbers from 0 to {self.tokenizer.size - 1}, not {token!r}"
                )
        limit = min(request.max_tokens, context - count + 1)  # the last token drawn is never read
        return TextJob(request, self._cache.reserve(count), limit, Writer(request.stop), list(request.prompt_ids))

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
        settings = asdict(request) | {
            "prompt": self.tokenizer.decode(request.prompt_ids),
            "prompt_ids": list(request.prompt_ids),
            "stop": list(request.stop),
        }
        text = "".join(step.text for step in job.steps)
        trace = self._trace(job, settings | {"finish_reason": job.finish_reason})
        return TextResult(text, job.tokens, job.finish_reason, request.seed, settings, trace)

    def _step(self, job: TextJob, logits: Tensor) -> TextStep:
        """Draw the next token of a job from its logits (V,)."""
        request, index = job.request, len(job.steps)
        chances = odds(logits, request.controls, [*request.prompt_ids, *job.tokens])
        u = float(uniform((), seed=request.seed, sample=request.sample, step=index))
        token = draw(chances, u)
        log_probability = torch.log_softmax(logits.double(), dim=-1)
        probability = log_probability.exp()
        entropy = float(torch.special.entr(probability).sum())

        is_end = token in self.tokenizer.ends
        is_last = is_end or index + 1 == job.limit
        text = job.writer.write(self.tokenizer.token_bytes(token), is_last=is_last)
        job.is_done = is_last or job.writer.has_stopped
        if job.is_done:
            job.finish_reason = "stop" if is_end or job.writer.has_stopped else "length"
        job.unread = [token]

        leading = probability.topk(min(request.num_candidates, len(probability))).indices.tolist()
        shown = leading if token in leading else [*leading, token]
        candidates = [
            Candidate(id, self.tokenizer.piece(id), float(probability[id]), float(chances[id])) for id in shown
        ]
        step = TextStep(index, token, text, float(probability[token]), float(chances[token]), candidates, entropy)
        job.steps.append(step)
        return step

    def _trace(self, job: TextJob, settings: dict[str, Any]) -> Trace:
        """Arrays with a row a step; candidates without the drawn token where it is not among the leading."""
        width = min(job.request.num_candidates, self.tokenizer.size)
        shown = [step.candidates[:width] for step in job.steps]
        count = len(job.steps)

        def numbers(rows: list[Any], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(rows, dtype=dtype).reshape(count, *shape)

        arrays = {
            "tokens": numbers(job.tokens, dtype=torch.int64),
            "probability": numbers([step.probability for step in job.steps]),
            "drawn_probability": numbers([step.drawn_probability for step in job.steps]),
            "entropy": numbers([step.entropy for step in job.steps]),
            "candidate_tokens": numbers([[one.token for one in row] for row in shown], width, dtype=torch.int64),
            "candidate_probability": numbers([[one.probability for one in row] for row in shown], width),
            "candidate_odds": numbers([[one.odds for one in row] for row in shown], width),
        }
        facts = [
            {
                "text": step.text,
                "piece": self.tokenizer.piece(step.token),
                "candidates": [one.text for one in row],
            }
            for step, row in zip(job.steps, shown, strict=True)
        ]
        return Trace("text", self.name, settings, arrays, facts)
