"""Text to token ids and back: byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2), run by `tokenizers`."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from diptych.core.files import write_atomically

BEGIN = "<|begin|>"
END = "<|end|>"
SMALLEST_VOCABULARY = 256 + 2  # the bytes, a begin and an end


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's printable letter for each byte, inverted: bytes without a visible letter are moved past 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in visible}
    hidden = (byte for byte in range(256) if byte not in set(visible))
    letters.update({chr(256 + place): byte for place, byte in enumerate(hidden)})
    return letters


class Tokenizer:
    """A byte-level BPE vocabulary: every string is encoded without loss, special tokens never come from plain text."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.size: int = engine.get_vocab_size()
        added = json.loads(engine.to_str())["added_tokens"]
        self.specials: dict[str, int] = {entry["content"]: entry["id"] for entry in added if entry["special"]}
        self._names = {id: name for name, id in self.specials.items()}
        self._table = self._bytes_of_tokens()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: list[str] | None = None) -> "Tokenizer":
        """Learn `vocab_size` tokens from `texts`; the special tokens come first, the 256 bytes are always in."""
        specials = [BEGIN, END] if specials is None else specials
        if vocab_size < 256 + len(specials):
            raise ValueError(
                f"vocab_size must be at least {256 + len(specials)} (256 bytes and the specials), not {vocab_size}"
            )
        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        engine.train_from_iterator(texts, trainer)
        return cls(engine)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"'{path}' is missing: the checkpoint has no tokenizer")
        try:
            return cls(Engine.from_file(str(path)))
        except Exception as error:  # the engine raises bare Exception for every malformed file
            raise ValueError(f"'{path}' is not a tokenizer.json: {' '.join(str(error).split())}") from error

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), self.to_json().encode())

    def to_json(self) -> str:
        """What `save` writes."""
        return self._engine.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. A special token's name inside `text` is spelled out, not obeyed."""
        self._engine.encode_special_tokens = True
        return list(self._engine.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on as many threads as there are cores."""
        self._engine.encode_special_tokens = True
        return [encoding.ids for encoding in self._engine.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, specials left out; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(id) for id in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for; a special token stands for none."""
        return self._table[id]

    def piece(self, id: int) -> str:
        """One token for a reader: its text, or the name of a special."""
        return self._names.get(id) or self.token_bytes(id).decode("utf-8", errors="replace")

    def id(self, special: str) -> int:
        if special not in self.specials:
            raise ValueError(
                f"the tokenizer has no special token '{special}'; it has: {', '.join(self.specials) or 'none'}"
            )
        return self.specials[special]

    @property
    def begin(self) -> int:
        return self.id(BEGIN)

    @property
    def end(self) -> int:
        return self.id(END)

    @property
    def splits_at_spaces(self) -> bool:
        """Whether the space between two words begins a token of the second, as the engine's rules have it."""
        rules = self._engine.pre_tokenizer
        return rules is not None and [span for _, span in rules.pre_tokenize_str("a b")] == [(0, 1), (1, 3)]

    def _bytes_of_tokens(self) -> list[bytes]:
        letters = _bytes_of_letters()
        table = [b""] * self.size
        for token, id in self._engine.get_vocab(with_added_tokens=True).items():
            if id in self._names:
                continue
            if not letters.keys() >= set(token):
                raise ValueError(f"its vocabulary is not byte-level BPE (token {id} is {token!r})")
            table[id] = bytes(letters[letter] for letter in token)
        return table
