"""The tokenizers that published text encoders were trained with: prompt to token ids, the way CLIP and T5 read.

Unlike the house's own (`core.tokenizer`) these need not give a text back: CLIP's reads in lower case and knows words by
their ends, T5's has pieces of text and none for every byte. The rules lie in tokenizer.json, run by `tokenizers`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from diptych.core.files import write_atomically


class PromptTokenizer:
    """Args:
    engine: its post-processor puts a begin (or none) before a text and an end after it.
    pad: the token that stands after the end.
    length: tokens that a prompt has at most, begin and end among them.

    Raises:
        ValueError: rules that put anything else around a text.
    """

    def __init__(self, engine: Engine, pad: int, length: int) -> None:
        self._engine, self.pad, self.length = engine, pad, length
        engine.no_padding()
        engine.no_truncation()
        self.size: int = engine.get_vocab_size(with_added_tokens=True)
        borders = engine.encode("").ids
        if len(borders) not in (1, 2) or engine.encode("", add_special_tokens=False).ids:
            raise ValueError(
                f"it puts {len(borders)} tokens around a prompt; an end, or a begin and an end is supported"
            )
        self.begin: int | None = borders[0] if len(borders) == 2 else None
        self.end: int = borders[-1]
        word, bordered = (engine.encode("a", add_special_tokens=adds).ids for adds in (False, True))
        if bordered != self.bordered(word):
            raise ValueError("it puts tokens around a prompt otherwise than as its begin and its end")
        if not 0 <= pad < self.size or length < 3:
            raise ValueError(f"its padding must be one of its {self.size} tokens, and a prompt may have at least 3")

    @classmethod
    def load(cls, path: str | Path) -> "PromptTokenizer":
        """A tokenizer.json that `save` wrote. Raises: ValueError for any other."""
        engine = engine_from(path)
        padding: dict[str, Any] | None = engine.padding
        if padding is None or padding["length"] is None:
            raise ValueError(f"'{path}' cannot be used: it does not say how prompts are padded")
        try:
            return cls(engine, padding["pad_id"], padding["length"])
        except ValueError as error:
            raise ValueError(f"'{path}' cannot be used: {error}") from error

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), self.to_json().encode())

    def to_json(self) -> str:
        """The rules as tokenizer.json has them, with padding and length among them."""
        rules = json.loads(self._engine.to_str())
        rules["padding"] = {
            "strategy": {"Fixed": self.length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": self.pad,
            "pad_type_id": 0,
            "pad_token": self._engine.id_to_token(self.pad),
        }
        return json.dumps(rules, ensure_ascii=False, indent=2) + "\n"

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, without begin and end. The name of a special token in it becomes that token, as
        everywhere else that these tokenizers are used."""
        return list(self._engine.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each token of `encode` stands: (start, end) in characters."""
        return list(self._engine.encode(text, add_special_tokens=False).offsets)

    def bordered(self, ids: Iterable[int]) -> list[int]:
        return [*([] if self.begin is None else [self.begin]), *ids, self.end]

    def piece(self, id: int) -> str:
        """One token for a reader, as the vocabulary spells it."""
        return self._engine.id_to_token(id) or ""


def engine_from(path: str | Path) -> Engine:
    """Raises: ValueError for a file that is missing or no tokenizer.json."""
    if not Path(path).is_file():
        raise ValueError(f"'{path}' is missing: the text encoder has no tokenizer")
    try:
        return Engine.from_file(str(path))
    except Exception as error:  # the engine raises bare Exception for every malformed file
        raise ValueError(f"'{path}' is not a tokenizer.json: {' '.join(str(error).split())}") from error
