"""The text runner: any number of texts written side by side, one token each at a time.

A job is a text in progress. With its first step the network reads the whole prompt, with the later ones the token that
was drawn last. Drafted tokens may be read along with that one (see `speculation`): then the logits for the steps that
follow are there already. What a job draws depends on its own seed and step alone, so a text comes out the same alone or
in company.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from diptych.core.checks import is_whole
from diptych.core.randomness import check_seed, uniform
from diptych.core.tokenizer import Tokenizer
from diptych.text.cache import CacheSettings
from diptych.text.constraint import Constraint, forbidden
from diptych.text.decoder import Decoder
from diptych.text.odds import Numbers, Odds, odds, row
from diptych.text.reader import CHUNK, Part, Reader
from diptych.text.record import FinishReason, Speculated, TextResult, TextStep, step_of, trace_of
from diptych.text.settings import Settings
from diptych.text.speculation import Drafter, Unfinished
from diptych.text.writer import Writer

MAX_DRAFT_TOKENS = 64


@dataclass(frozen=True)
class TextRequest:
    """What to write and how.

    Args:
        prompt_ids: what to go on from, special tokens included.
        settings: how.
        seed, sample: of the draws: the same two, the same text.
        draft_tokens: the most tokens that the runner's drafter guesses ahead; 0 is none. They change no text.
    """

    prompt_ids: list[int]
    settings: Settings = Settings()  # noqa: RUF009 - frozen
    seed: int = 0
    sample: int = 0
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("the prompt is empty: give at least one word to go on from")
        check_seed(self.seed)
        for name, most in (("sample", 2**32), ("draft_tokens", MAX_DRAFT_TOKENS)):
            value = getattr(self, name)
            if not (is_whole(value) and 0 <= value <= most):
                raise ValueError(f"{name} must be a whole number from 0 to {most}, not {value!r}")

    def u(self, step: int) -> float:
        """The number in [0, 1) that decides a step."""
        return float(uniform((), seed=self.seed, sample=self.sample, step=step))

    def draw(self, chances: Odds, step: int) -> int:
        """The token of a step; one that is certain needs no number, which costs a tenth of a small model's step."""
        return int(chances.tokens[0]) if len(chances.tokens) == 1 else chances.draw(self.u(step))


@dataclass
class TextJob:
    """A text in progress."""

    request: TextRequest
    slot: int
    limit: int  # tokens that may be drawn
    writer: Writer
    unread: list[int]  # tokens that the network reads with its next call
    prompt: frozenset[int]  # its tokens, each once
    constraint: Constraint | None = None
    tokens: list[int] = field(default_factory=list)  # drawn so far
    ahead: list[Tensor] = field(default_factory=list)  # logits (V,) of the next steps, as far as they are known
    drafted: list[int] = field(default_factory=list)  # tokens read ahead of the text; `ahead` follows from them
    steps: list[TextStep] = field(default_factory=list)
    is_done: bool = False
    finish_reason: FinishReason = "cancelled"
    is_released: bool = False
    calls: int = 0  # of the network
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def is_ahead(self) -> bool:
        return bool(self.ahead)


class TextRunner:
    """Writes texts with one decoder.

    Args:
        name: the model's, for traces.
        slots: texts to make room for at first.
        chunk: the most tokens of a prompt that one call of the network reads.
        drafter: guesses ahead for the requests that have `draft_tokens`.
        cache: how what was read is kept.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str = "",
        slots: int = 1,
        chunk: int = CHUNK,
        drafter: Drafter | None = None,
        cache: CacheSettings | None = None,
    ) -> None:
        self.decoder, self.tokenizer, self.name = decoder, tokenizer, name
        self._reader, self._drafter = Reader(decoder, slots, chunk, cache), drafter
        self._is_endless = self._reader.cache.streaming is not None
        if self._is_endless and drafter is not None:
            raise ValueError("a cache with sinks drops what is read ahead of a text, so nothing may draft")

    def admit(self, request: TextRequest) -> TextJob:
        """Raises: ValueError for a prompt that fills the context, tokens that the model does not know, a constraint
        that cannot be understood, or draft_tokens where nothing drafts."""
        context, count, settings = self.decoder.config.context, len(request.prompt_ids), request.settings
        if count >= context and not self._is_endless:
            raise ValueError(f"the prompt has {count} tokens and fills the model's context of {context}")
        self._check_tokens("prompt token ids", request.prompt_ids)
        self._check_tokens("logit_bias token ids", settings.logit_bias)
        if request.draft_tokens and self._drafter is None:
            raise ValueError(
                f"draft_tokens must be 0, not {request.draft_tokens}: this runner has nothing to draft with"
            )
        constraint = Constraint(self.tokenizer, settings.constraint) if settings.constraint else None
        limit = settings.max_tokens
        if not self._is_endless:
            limit = min(limit, context - count + 1)  # the last token drawn is never read
        if limit > 1:
            self._reader.prepare()
        prompt, slot = list(request.prompt_ids), self._reader.cache.reserve(count)
        return TextJob(request, slot, limit, Writer(settings.stop), prompt, frozenset(prompt), constraint)

    @property
    def cache_bytes(self) -> int:
        """What keys and values take."""
        return self._reader.cache.num_bytes

    def advance(self, jobs: Sequence[TextJob]) -> list[TextStep]:
        """Each job gets one more token, by one call of the network for those that are not ahead (and more for prompts
        that are long, or of very different lengths). Steps in the order of the jobs."""
        if any(job.is_done or job.is_released for job in jobs):
            raise ValueError("a job that is done cannot be advanced")
        if reading := [job for job in jobs if not job.is_ahead]:
            self._read(reading)
        return [self._step(job) for job in jobs]

    def _read(self, jobs: Sequence[TextJob]) -> None:
        """Get each job the logits of its next step, and of those that follow as far as its draft goes."""
        if self._drafter is not None:
            self._draft(jobs, self._drafter)
        parts = [Part(job.slot, job.unread + job.drafted, wanted=1 + len(job.drafted)) for job in jobs]
        for job, logits in zip(jobs, self._reader.read(parts), strict=True):
            job.ahead = list(logits[:, : self.tokenizer.size])
            job.calls += 1

    def _draft(self, jobs: Sequence[TextJob], drafter: Drafter) -> None:
        """A job that has begun gets guesses at its next tokens, as far as it has a use for them."""
        texts = [
            Unfinished(job.slot, job.request, [*job.request.prompt_ids, *job.tokens], count, job.constraint)
            for job in jobs
            if job.tokens and (count := min(job.request.draft_tokens, job.limit - len(job.tokens) - 1))
        ]
        by_slot = {text.slot: drafted for text, drafted in zip(texts, drafter.draft(texts), strict=True)}
        for job in jobs:
            job.drafted = by_slot.get(job.slot, [])
            job.num_drafted += len(job.drafted)

    def finish(self, job: TextJob) -> TextResult:
        """The result of a job, done or cancelled; its place in the cache is free again."""
        if not job.is_released:
            job.is_released = True
            self._reader.cache.release(job.slot)
            if self._drafter:
                self._drafter.forget(job.slot)
        request = job.request
        settings = request.settings.to_dict() | {
            "prompt": self.tokenizer.decode(request.prompt_ids),
            "prompt_ids": list(request.prompt_ids),
            "seed": request.seed,
            "sample": request.sample,
        }
        text = "".join(step.text for step in job.steps)
        trace = trace_of(self.name, settings | {"finish_reason": job.finish_reason}, job.steps, self.tokenizer)
        return TextResult(text, job.tokens, job.finish_reason, request.seed, settings, trace, self._speculated(job))

    def _speculated(self, job: TextJob) -> Speculated | None:
        if self._drafter is None or not job.request.draft_tokens:
            return None
        return Speculated(self._drafter.name, job.num_drafted, job.num_accepted, job.calls, len(job.tokens))

    def _step(self, job: TextJob) -> TextStep:
        """Draw the next token of a job from the logits that are there for it."""
        request, scores = job.request, row(job.ahead.pop(0))
        barred = forbidden(self.tokenizer, job.constraint, may_end=len(job.tokens) >= request.settings.min_tokens)
        chances = odds(scores, request.settings, job.prompt, job.tokens, barred)
        return self._take(job, request.draw(chances, len(job.steps)), scores, chances)

    def _take(self, job: TextJob, token: int, scores: Numbers, chances: Odds) -> TextStep:
        """Append a token to a job; the step that tells of it, with the logits and the odds that it was drawn from."""
        index = len(job.steps)
        reason: FinishReason | None = "length" if index + 1 == job.limit else None
        if token in self.tokenizer.ends:
            reason = "stop"
        elif job.constraint:
            job.constraint.accept(token)
            if job.constraint.is_complete:
                reason = "stop" if job.constraint.is_met else "constraint"
        text = job.writer.write(self.tokenizer.token_bytes(token), is_last=reason is not None)
        if job.writer.has_stopped:
            reason = "stop"
        if reason:
            job.is_done, job.finish_reason = True, reason
        self._go_on(job, token)
        job.tokens.append(token)

        count = job.request.settings.num_candidates
        step = step_of(index, token, text, scores, chances, self.tokenizer, count, job.request.sample)
        job.steps.append(step)
        return step

    def _go_on(self, job: TextJob, token: int) -> None:
        """After a draw: what was read ahead holds if it was read after this token, and is taken back if not."""
        if job.drafted and job.drafted[0] == token:
            job.drafted.pop(0)
            job.num_accepted += 1
            return
        if job.drafted:
            self._reader.cache.truncate(job.slot, len(job.request.prompt_ids) + len(job.tokens))
        job.ahead, job.drafted, job.unread = [], [], [token]

    def _check_tokens(self, what: str, tokens: Iterable[int]) -> None:
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < self.tokenizer.size:
                raise ValueError(f"{what} must be whole numbers from 0 to {self.tokenizer.size - 1}, not {token!r}")
