"""The constraint: a text that is always a beginning of something that a schema, an expression or a grammar allows.

Before each draw the tokens that no allowed text goes on with are masked out (Willard & Louf 2023, section 3), so what
is drawn follows the model's own odds among the rest. llguidance keeps the parser; it knows tokens by their bytes, so
any vocabulary will do.
"""

import json
from collections.abc import Callable, Mapping
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from diptych.core.tokenizer import Tokenizer
from diptych.text.odds import Ids

# White space between the parts of JSON: one space, or a new line with its indent. As any amount is JSON, a model could
# go on with it for ever.
WHITESPACE = r" |\n {0,24}"
COMPILERS: dict[str, Callable[[Any], str]] = {
    "json_schema": lambda schema: LLMatcher.grammar_from_json_schema(
        schema, defaults={"whitespace_pattern": WHITESPACE}
    ),
    "regex": LLMatcher.grammar_from_regex,
    "grammar": LLMatcher.grammar_from_lark,
}


class Constraint:
    """What one text may go on with.

    Args:
        wanted: one of "json_schema", "regex" and "grammar", and it; see `Settings`.

    Raises:
        ValueError: a schema, an expression or a grammar that cannot be understood, or that no text is written under.
    """

    def __init__(self, tokenizer: Tokenizer, wanted: Mapping[str, Any]) -> None:
        ((kind, source),) = wanted.items()
        self._ends = np.array(sorted(tokenizer.ends), dtype=np.int64)
        self._size = tokenizer.size
        self._matcher = _compiled(tokenizer, kind, json.dumps(source)).deep_copy()
        self._look()
        if self.is_complete:
            raise ValueError(f"{kind} cannot be used: nothing can be written under it")

    @property
    def is_complete(self) -> bool:
        """Whether nothing can be added to the text any more, but an end."""
        return not self._goes_on.any()

    @property
    def is_met(self) -> bool:
        """Whether the text as it stands is what was wanted. One that is complete and is not has run into a rule that
        cannot be fulfilled, or has become too complex to be followed."""
        return self._matcher.is_accepting()

    def forbidden(self, *, may_end: bool) -> NDArray[np.bool_]:
        """The tokens that cannot come next: (V,).

        Args:
            may_end: False forbids the tokens that end a text, too, unless nothing else is left.
        """
        return ~(self._is_allowed if may_end or self.is_complete else self._goes_on)

    def accept(self, token: int) -> None:
        """The text goes on with `token`, which must not be forbidden."""
        self._matcher.consume_token(token)
        self._look()

    def fork(self) -> "Constraint":
        """The same, to go on with other tokens."""
        fork = copy(self)
        fork._matcher = self._matcher.deep_copy()
        return fork

    def _look(self) -> None:
        if self._matcher.is_error():
            self._is_allowed = np.zeros(self._size, dtype=bool)
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._is_allowed = np.unpackbits(bits, count=self._size, bitorder="little").astype(bool)
        self._goes_on = self._is_allowed.copy()
        self._goes_on[self._ends] = False


def forbidden(tokenizer: Tokenizer, constraint: Constraint | None, *, may_end: bool) -> Ids | NDArray[np.bool_] | None:
    """Tokens that a text cannot go on with: ids, (V,) bool, or None where it can with any."""
    if constraint:
        return constraint.forbidden(may_end=may_end)
    return None if may_end else np.array(sorted(tokenizer.ends), dtype=np.int64)


class _Words:
    """A tokenizer as llguidance asks for it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = {id: name.encode() for name, id in tokenizer.specials.items()}
        self.tokens = [names.get(id) or tokenizer.token_bytes(id) for id in range(tokenizer.size)]
        self.special_token_ids = sorted(names)
        self.bos_token_id = tokenizer.begin
        self.eos_token_id = min(tokenizer.ends, default=None)
        self._encode = tokenizer.encode
        self._bytes = {data[0]: id for id, data in enumerate(self.tokens) if len(data) == 1 and id not in names}

    def __call__(self, text: str) -> list[int]:
        """Tokens that are exactly the bytes of `text`: where only one text may come, it is written as the tokenizer
        would have it. One that puts a space before a text is asked for it after a new line."""
        data = text.encode()
        for before in ("", "\n"):
            start, whole = self._encode(before), self._encode(before + text)
            ids = whole[len(start) :]
            if whole[: len(start)] == start and b"".join(self.tokens[id] for id in ids) == data:
                return ids
        return [self._bytes[byte] for byte in data]


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """Made once a tokenizer: for a large vocabulary it takes a moment."""
    return LLTokenizer(_Words(tokenizer), n_vocab=tokenizer.size, eos_token=sorted(tokenizer.ends))  # type: ignore[arg-type]


@lru_cache(maxsize=16)
def _compiled(tokenizer: Tokenizer, kind: str, source: str) -> LLMatcher:
    """The parser before anything is written, made once for any number of texts; `source` is JSON."""
    vocabulary, grammar = _vocabulary(tokenizer), COMPILERS[kind](json.loads(source))
    is_wrong, told = LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
    if is_wrong:
        raise ValueError(f"{kind} cannot be used: {_reason(told[0])}")
    return LLMatcher(vocabulary, grammar, log_level=0)


def _reason(told: str) -> str:
    """One line of an error's several: what is wrong, without the picture of where."""
    lines = [line.strip() for line in told.splitlines() if line.strip()] or ["no reason given"]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
