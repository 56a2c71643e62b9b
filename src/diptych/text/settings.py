"""Settings: all that can be asked of how a text is written, listed once.

`generate`, the options of `diptych text`, a request to the runner and the settings of a trace are this one list; a new
setting is a new line here and what it does in `text/odds.py` or `text/runner.py`. Nothing here imports torch, so that
the page of help is instant.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, NamedTuple, Self, get_type_hints

from diptych.core.checks import is_number, is_whole
from diptych.core.spelling import unknown

MAX_CANDIDATES = 1000
CONSTRAINTS = {  # kind -> what it is
    "json_schema": "A JSON schema (text, or a file) that the text is valid under.",
    "regex": "A regular expression that the whole text matches.",
    "grammar": "A file with a Lark grammar that the text is derived from.",
}


class About(NamedTuple):
    """What a setting does, for a reader; which numbers it takes, in words and as a test."""

    says: str
    allowed: str = ""
    is_allowed: Callable[[Any], bool] = lambda value: True


def _anything(value: float) -> bool:
    return True


def _at_least_0(value: float) -> bool:
    return value >= 0


def _share(value: float) -> bool:
    return 0 < value <= 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a text is written. Each setting says itself what it does; docs/text-controls.md has definitions and papers.

    Raises:
        ValueError: a setting out of its range, in one line.
    """

    max_tokens: Annotated[
        int, About("The most tokens (words or parts of words) to write.", "a whole number >= 1", lambda n: n >= 1)
    ] = 200
    min_tokens: Annotated[
        int, About("The model cannot end the text before so many tokens.", "a whole number >= 0", _at_least_0)
    ] = 0
    temperature: Annotated[
        float, About("0 always takes the likeliest; 1 draws as the model says.", "a finite number >= 0", _at_least_0)
    ] = 0.8
    top_k: Annotated[
        int,
        About("Draw from the k likeliest only; 0 is all.", "a whole number >= 0 (0 keeps all tokens)", _at_least_0),
    ] = 0
    top_p: Annotated[
        float, About("Draw from the likeliest that reach this probability together.", "a number > 0 and <= 1", _share)
    ] = 1.0
    min_p: Annotated[
        float,
        About(
            "Draw from those at least this share as likely as the likeliest.",
            "a number >= 0 and <= 1",
            lambda share: 0 <= share <= 1,
        ),
    ] = 0.05
    typical_p: Annotated[
        float,
        About(
            "Draw from those nearest to the expected surprise that reach this probability.",
            "a number > 0 and <= 1",
            _share,
        ),
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        About(
            "Above 1, tokens already there become less likely.",
            "a finite number > 0 (1 is none)",
            lambda penalty: penalty > 0,
        ),
    ] = 1.0
    presence_penalty: Annotated[
        float, About("Taken off the logits of tokens already written.", "a finite number (0 is none)", _anything)
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        About("Taken off the logits of written tokens, once for each time.", "a finite number (0 is none)", _anything),
    ] = 0.0
    logit_bias: Annotated[Mapping[int, float], About("ID=NUMBER is added to a token's logit; may be given again.")] = (
        field(default_factory=dict)
    )
    stop: Annotated[Sequence[str], About("A text that ends the writing; may be given again.")] = ()
    constraint: Annotated[
        Mapping[str, Any] | None, About(f"One of {', '.join(CONSTRAINTS)}, and what the text must be by it.")
    ] = None
    num_candidates: Annotated[
        int,
        About(
            "How many of the likeliest tokens each step reports.",
            f"a whole number >= 1 and <= {MAX_CANDIDATES}",
            lambda count: 1 <= count <= MAX_CANDIDATES,
        ),
    ] = 8

    def __post_init__(self) -> None:
        for name, (kind, about) in listed().items():
            if kind in (int, float):
                _check_number(name, getattr(self, name), kind, about)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens ({self.max_tokens}), not {self.min_tokens}")
        object.__setattr__(self, "stop", _stop_texts(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "constraint", _constraint(self.constraint))

    @classmethod
    def named(cls, given: Mapping[str, Any]) -> Self:
        """Settings by their names. Raises: ValueError for a name that is not known."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("setting", name, known)
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `named` takes them again."""
        biases = {str(token): bias for token, bias in self.logit_bias.items()}
        return asdict(self) | {"stop": list(self.stop), "logit_bias": biases}


@cache
def listed() -> dict[str, tuple[Any, About]]:
    """Of each setting its type and what is said about it."""
    hints = get_type_hints(Settings, include_extras=True)
    return {field.name: (hints[field.name].__origin__, hints[field.name].__metadata__[0]) for field in fields(Settings)}


def _check_number(name: str, value: Any, kind: type, about: About) -> None:
    is_one = is_whole(value) if kind is int else is_number(value)
    if not is_one or not about.is_allowed(value):
        raise ValueError(f"{name} must be {about.allowed}, not {value!r}")


def _stop_texts(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop must be texts of at least one character, not {stop!r}")
    return tuple(texts)


def _biases(biases: Any) -> dict[int, float]:
    """Token ids may be written as strings, as JSON has them."""
    try:
        checked = {int(token): float(bias) for token, bias in biases.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"logit_bias must give a number for each token id, not {biases!r}") from error
    for token, bias in checked.items():
        if token < 0 or not math.isfinite(bias):
            raise ValueError(f"logit_bias must give finite numbers for token ids >= 0, not {token}: {bias}")
    return checked


def _constraint(wanted: Any) -> dict[str, Any] | None:
    """A schema may be written as JSON."""
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping) or len(wanted) != 1:
        raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)} with what it is, not {wanted!r}")
    ((kind, source),) = wanted.items()
    if kind not in CONSTRAINTS:
        raise unknown("constraint", str(kind), CONSTRAINTS)
    if kind == "json_schema":
        try:
            source = json.loads(source if isinstance(source, str) else json.dumps(source))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"json_schema is not JSON: {error}") from error
    if not isinstance(source, dict if kind == "json_schema" else str):
        raise ValueError(f"{kind} must be {'a JSON object' if kind == 'json_schema' else 'a text'}, not {source!r}")
    return {kind: source}
