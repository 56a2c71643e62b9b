"""Text to token ids and back: BPE over bytes (Sennrich et al. 2016), run by `tokenizers`.

Two kinds of vocabulary hold every byte: byte-level, whose tokens are bytes spelled as letters (GPT-2, Llama 3, Qwen),
and SentencePiece's with byte fallback, whose tokens are text with "▁" for the space, and "<0x0A>" for a byte (Llama 2,
Mistral). Either way a token is bytes, so a text can be shown as its tokens come.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from diptych.core.files import write_atomically

BEGIN = "<|begin|>"
END = "<|end|>"
BESIDE = "tokenizer_config.json"
SMALLEST_VOCABULARY = 256 + 2  # the bytes, a begin and an end


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's printable letter for each byte, inverted: bytes without a visible letter are moved past 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in visible}
    hidden = (byte for byte in range(256) if byte not in set(visible))
    letters.update({chr(256 + place): byte for place, byte in enumerate(hidden)})
    return letters


class Tokenizer:
    """A vocabulary of byte-level BPE, or of BPE with byte fallback; special tokens never come from plain text.

    Args:
        ends: tokens that end a text, the usual one first; "<|end|>" when None.

    Raises:
        ValueError: a vocabulary of another kind, whose tokens are no bytes.
    """

    def __init__(self, engine: Engine, ends: Sequence[int] | None = None) -> None:
        self._engine = engine
        # Asked part by part: the whole as JSON is 100 MB of objects for a vocabulary of 128,256.
        added = sorted(engine.get_added_tokens_decoder().items())
        self.specials: dict[str, int] = {token.content: id for id, token in added if token.special}
        self._names = {id: name for name, id in self.specials.items()}
        vocabulary = engine.get_vocab(with_added_tokens=True)
        self.size: int = max(vocabulary.values(), default=-1) + 1
        decoder = list(_parts(json.loads(engine.decoder.__getstate__()) if engine.decoder is not None else {}))
        self._table = _bytes_of_tokens(vocabulary, type(engine.model).__name__, decoder, self._names)
        self._hides_first_space = any(map(_hides_first_space, decoder))
        self._of_bytes = _ids_of_bytes(engine, self._table, self._names)
        self.begin: int | None = self._begin()
        house = self.specials.get(END)
        self._ends = list(ends) if ends is not None else [] if house is None else [house]
        for id in self._ends:
            if not 0 <= id < self.size:
                raise ValueError(f"the end of a text must be a token from 0 to {self.size - 1}, not {id}")

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
    def load(cls, path: str | Path, more_ends: Iterable[int] = ()) -> "Tokenizer":
        """Any tokenizer.json of these two kinds; `tokenizer_config.json` beside it may say what ends a text.

        Args:
            more_ends: ids that end a text, too.

        Raises:
            ValueError: a missing or malformed file, or a vocabulary of another kind.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"'{path}' is missing: the checkpoint has no tokenizer")
        try:
            engine = Engine.from_file(str(path))
        except Exception as error:  # the engine raises bare Exception for every malformed file
            raise ValueError(f"'{path}' is not a tokenizer.json: {' '.join(str(error).split())}") from error
        try:
            ends = [*_ends_beside(path, engine), *more_ends]
            return cls(engine, list(dict.fromkeys(ends)) or None)
        except ValueError as error:
            raise ValueError(f"'{path}' cannot be used: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json, and beside it tokenizer_config.json unless a text ends with "<|end|>" alone."""
        path = Path(path)
        write_atomically(path, self.to_json().encode())
        names = [self._engine.id_to_token(id) for id in self._ends]
        if names not in ([], [END]):
            about = {"eos_token": names[0], "end_tokens": names}
            write_atomically(path.with_name(BESIDE), (json.dumps(about, ensure_ascii=False, indent=2) + "\n").encode())

    def to_json(self) -> str:
        """What `save` writes."""
        return self._engine.to_str(pretty=True)

    def encode(self, text: str, *, obey_specials: bool = False) -> list[int]:
        """Token ids of a text, without begin and end.

        Args:
            obey_specials: a special token's name inside `text` becomes that token, as in a rendered chat; else it is
                spelled out.
        """
        if self._of_bytes and not obey_specials:
            return list(map(self._of_bytes.__getitem__, text.encode()))
        self._engine.encode_special_tokens = not obey_specials
        return list(self._engine.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on as many threads as there are cores."""
        if self._of_bytes:
            return list(map(self.encode, texts))
        self._engine.encode_special_tokens = True
        return [encoding.ids for encoding in self._engine.encode_batch_fast(texts, add_special_tokens=False)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each token of `encode` stands: (start, end) in characters."""
        self._engine.encode_special_tokens = True
        return list(self._engine.encode(text, add_special_tokens=False).offsets)

    def bordered(self, ids: Iterable[int]) -> list[int]:
        """A document's tokens between begin and end; without a begin, the end of the document before stands there."""
        return [self.end if self.begin is None else self.begin, *ids, self.end]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, specials left out; bytes that are not UTF-8 become U+FFFD.

        A vocabulary with byte fallback begins every text with a space, which is not part of it.
        """
        text = b"".join(self.token_bytes(id) for id in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._hides_first_space else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token adds to a text already begun; a special token adds none."""
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
    def end(self) -> int:
        """The token that ends a text. Raises: ValueError if there is none."""
        return self._ends[0] if self._ends else self.id(END)

    @property
    def ends(self) -> frozenset[int]:
        """Every token that ends a text: of a model that chats, also those that end an answer."""
        return frozenset(self._ends)

    @property
    def splits_at_spaces(self) -> bool:
        """Whether the space between two words begins a token of the second, as the engine's rules have it."""
        rules = self._engine.pre_tokenizer
        return rules is not None and [span for _, span in rules.pre_tokenize_str("a b")] == [(0, 1), (1, 3)]

    def _begin(self) -> int | None:
        """What the file's own rules put before a text; else "<|begin|>", where there is one.

        Raises: ValueError for more than one token.
        """
        whole, bare = (self._engine.encode("a", add_special_tokens=adds).ids for adds in (True, False))
        before = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare) if bare else 0
        if before > 1:
            raise ValueError(f"it puts {before} tokens before a text; one at most is supported")
        return whole[0] if before else self.specials.get(BEGIN)


def _ends_beside(path: Path, engine: Engine) -> list[int]:
    """Ids of the tokens that end a text by the tokenizer_config.json beside `path`, in its order."""
    beside = path.with_name(BESIDE)
    if not beside.is_file():
        return []
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{BESIDE} beside it is not valid JSON: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{BESIDE} beside it must hold a JSON object, not {type(about).__name__}")
    listed = about.get("end_tokens", [])
    if not isinstance(listed, list):
        raise ValueError(f"{BESIDE} beside it must list end_tokens, not {listed!r}")
    ids = []
    for entry in [about.get("eos_token"), *listed]:
        name = entry.get("content") if isinstance(entry, dict) else entry
        if name is None:
            continue
        id = engine.token_to_id(name) if isinstance(name, str) else None
        if id is None:
            raise ValueError(f"{BESIDE} beside it ends texts with {name!r}, which is no token")
        ids.append(id)
    return ids


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, sequences taken apart."""
    if decoder.get("type") == "Sequence":
        for part in decoder["decoders"]:
            yield from _parts(part)
    elif decoder:
        yield decoder


def _hides_first_space(part: dict[str, Any]) -> bool:
    if part["type"] == "Strip":
        return bool(part["content"] == " " and part["start"] == 1)
    return bool(part["type"] == "Metaspace" and part["prepend_scheme"] != "never")


def _bytes_of_tokens(
    vocabulary: dict[str, int], model: str, decoder: list[dict[str, Any]], names: dict[int, str]
) -> list[bytes]:
    """The bytes of each id, b"" for the special (`names`) and for ids that no token has."""
    kinds = {part["type"] for part in decoder}
    letters = _bytes_of_letters()
    if model != "BPE" or not kinds & {"ByteLevel", "ByteFallback"}:
        raise ValueError(f"its vocabulary ({model}) is neither byte-level BPE nor BPE with byte fallback")
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, id in vocabulary.items():
        if id in names:
            continue
        if "ByteLevel" in kinds:  # a token in other letters is one that was added, and is its own text
            is_spelled = letters.keys() >= set(token)
            table[id] = bytes(letters[letter] for letter in token) if is_spelled else token.encode()
        elif byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", token):
            table[id] = bytes.fromhex(byte[1])
        else:
            table[id] = _unspelled(token, decoder).encode()
    return table


def _ids_of_bytes(engine: Engine, table: list[bytes], names: dict[int, str]) -> list[int] | None:
    """The id of each byte, where a text's tokens are its bytes; the engine takes 20 times as long to say so."""
    if len(table) != 256 + len(names):
        return None
    rules = json.loads(engine.pre_tokenizer.__getstate__()) if engine.pre_tokenizer is not None else {}
    is_plain = rules.get("type") == "ByteLevel" and not rules["add_prefix_space"] and engine.normalizer is None
    ids = {token: id for id, token in enumerate(table) if id not in names}
    singles = [ids.get(bytes([byte])) for byte in range(256)]
    found = [id for id in singles if id is not None]
    return found if is_plain and len(found) == 256 else None


def _unspelled(token: str, decoder: list[dict[str, Any]]) -> str:
    for part in decoder:
        if part["type"] == "Metaspace":
            token = token.replace(part["replacement"], " ")
        elif part["type"] == "Replace" and "String" in part["pattern"]:
            token = token.replace(part["pattern"]["String"], part["content"])
    return token
