"""How far back a text model finds a number that it has read: passkeys at several lengths and depths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.core.randomness import uniform
from diptych.core.share import Share
from diptych.data.passkeys import SHORTEST, hidden
from diptych.text.cache import CacheSettings
from diptych.text.model import TextModel
from diptych.text.runner import TextRequest
from diptych.text.settings import Settings

BANDS = 5  # of depth, each with the same number of texts
TOGETHER = 16384  # tokens of the texts that are read side by side


@dataclass(frozen=True)
class PasskeyReport:
    """Args: found: for each length in tokens, the share of numbers found in each band of depth, the start first."""

    model: str
    context: int
    rope_scaling: str | None
    found: dict[int, list[Share]]

    def total(self, length: int) -> Share:
        bands = self.found[length]
        return Share(sum(band.found for band in bands), sum(band.asked for band in bands))

    def to_dict(self) -> dict[str, Any]:
        lengths = {
            str(length): self.total(length).to_dict() | {"by_depth": [band.to_dict() for band in bands]}
            for length, bands in self.found.items()
        }
        about = {"model": self.model, "on": "passkey", "context": self.context, "rope_scaling": self.rope_scaling}
        return about | {"lengths": lengths}


def evaluate_passkeys(
    model: TextModel,
    lengths: Sequence[int],
    *,
    texts: int = 200,
    seed: int = 1,
    rope_scaling: str | None = None,
    cache: CacheSettings | None = None,
    watch: Callable[[float, int], None] | None = None,
) -> PasskeyReport:
    """Ask for the number in `texts` texts of each length, greedily.

    Args:
        lengths: in tokens of the model's own; past its context it reads as `TextModel.stretched` does.
        rope_scaling: the kind of scaling past the context; None is none but what the model has.
        cache: how what was read is kept.
        watch: is told how many texts are done, of how many.

    Raises:
        ValueError: a length or number of texts that is too small, an unknown kind of scaling, or a model whose context
            cannot be stretched.
    """
    if texts < BANDS:
        raise ValueError(f"the number of texts must be at least {BANDS}, one for each band of depth, not {texts}")
    if min(lengths, default=0) < SHORTEST:
        raise ValueError(f"lengths must be {SHORTEST} tokens or more, not {', '.join(map(str, lengths)) or 'none'}")
    found = {}
    for number, length in enumerate(lengths):
        reader = model.stretched(length, rope_scaling) if length > model.config.context else model
        hits = [0] * BANDS
        together = max(1, TOGETHER // length)
        for start in range(0, texts, together):
            samples = range(start, min(start + together, texts))
            for sample, is_found in zip(samples, _found(reader, length, samples, seed, cache), strict=True):
                hits[sample % BANDS] += is_found
            if watch:
                watch(number * texts + samples.stop, len(lengths) * texts)
        asked = [len(range(band, texts, BANDS)) for band in range(BANDS)]
        found[length] = [Share(*counts) for counts in zip(hits, asked, strict=True)]
    return PasskeyReport(model.name, model.config.context, rope_scaling, found)


def _found(model: TextModel, length: int, samples: range, seed: int, cache: CacheSettings | None) -> list[bool]:
    """Whether each text's number is what the model goes on with; band by band in turn, at a random depth in it."""

    def count(text: str) -> int:
        return len(model.tokenizer.encode(text))

    runner = model.runner(slots=len(samples), cache=cache)
    jobs, keys = [], []
    for sample in samples:
        depth = (sample % BANDS + float(uniform((), seed=seed, sample=sample, step=1))) / BANDS
        one = hidden(length, depth, seed, sample, count)
        settings = Settings(max_tokens=count(one.key), temperature=0.0, num_candidates=1)
        jobs.append(runner.admit(TextRequest(model.prompt_ids(one.prompt), settings)))
        keys.append(one.key)
    while writing := [job for job in jobs if not job.is_done]:
        runner.advance(writing)
    return [_digits(runner.finish(job).text) == _digits(key) for job, key in zip(jobs, keys, strict=True)]


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))
