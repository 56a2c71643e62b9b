"""The tokenizer in a folder of a published painter, in the forms that CLIP's and T5's are published in.

tokenizer.json holds all rules; where it is missing they are built from CLIP's vocab.json and merges.txt, or from the
pieces in T5's spiece.model. What is padded with stands beside it, in tokenizer_config.json.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Engine

from diptych.core.checks import is_number
from diptych.core.weights import read_object
from diptych.image.prompt_tokens import PromptTokenizer, engine_from
from diptych.interop.sentencepiece import read_pieces

BESIDE = ("special_tokens_map.json", "tokenizer_config.json")  # the latter decides
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
LENGTHS = {"clip": 77, "t5": 512}
LONGEST = 100_000  # tokenizer_config.json says 10^30 for "no limit"


def open_tokenizer(directory: str | Path) -> PromptTokenizer:
    """The tokenizer in a folder.

    Raises:
        ValueError: in one line that names the folder, for files that are missing, damaged or of another kind.
    """
    directory = Path(directory)
    about: dict[str, Any] = {}
    for name in BESIDE:
        if (directory / name).is_file():
            about |= read_object(directory / name)
    try:
        if (directory / "tokenizer.json").is_file():
            engine = engine_from(directory / "tokenizer.json")
        elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            engine = clip_engine(directory / "vocab.json", directory / "merges.txt", about)
        elif (directory / "spiece.model").is_file():
            engine = t5_engine(directory / "spiece.model")
        else:
            raise ValueError("it has no tokenizer.json, no vocab.json with merges.txt, and no spiece.model")
        _add(engine, about)
        kind = "clip" if type(engine.model).__name__ == "BPE" else "t5"
        told: Any = about.get("model_max_length")
        length = int(told) if is_number(told) and told <= LONGEST else LENGTHS[kind]
        return PromptTokenizer(engine, _pad(engine, about), length)
    except ValueError as error:
        raise ValueError(f"the tokenizer in '{directory}' cannot be used: {error}") from error


def clip_engine(vocabulary: Path, merges: Path, about: dict[str, Any]) -> Engine:
    """CLIP's rules (Radford et al. 2021, sec. 2.4): lower case, spaces as one, words by kind of letter, bytes spelled
    as letters, "</w>" at the end of a word.

    Args:
        about: tokenizer_config.json, which may name the begin and the end otherwise.
    """
    begin, end = (_named(about.get(key)) or usual for key, usual in _USUAL.items())
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=end)
    except Exception as error:  # the engine raises bare Exception for every malformed file
        raise ValueError(f"vocab.json and merges.txt are not those of a BPE: {' '.join(str(error).split())}") from error
    engine = Engine(model)
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    engine.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    engine.decoder = decoders.ByteLevel()
    ids = {name: engine.token_to_id(name) for name in (begin, end)}
    (first, last), missing = ids.values(), [name for name, id in ids.items() if id is None]
    if first is None or last is None:
        raise ValueError(f"its vocabulary lacks '{missing[0]}'")
    engine.add_special_tokens([AddedToken(name, normalized=False) for name in (begin, end)])
    engine.post_processor = processors.RobertaProcessing((end, last), (begin, first), False, False)
    return engine


_USUAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}


def t5_engine(path: Path) -> Engine:
    """T5's rules from SentencePiece's file: the likeliest pieces of each word (Kudo 2018), and 100 sentinels after."""
    pieces, unknown_id, charsmap = read_pieces(path)
    try:
        engine = Engine(models.Unigram(pieces, unk_id=unknown_id, byte_fallback=False))
        engine.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
    except Exception as error:  # the engine raises bare Exception for every malformed file
        raise ValueError(f"spiece.model cannot be used: {' '.join(str(error).split())}") from error
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    engine.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    end = engine.token_to_id("</s>")
    if end is None:
        raise ValueError("spiece.model lacks '</s>'")
    names = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in range(99, -1, -1))]
    engine.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    engine.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return engine


def _named(entry: Any) -> str | None:
    """The name of a token that is written as itself, or as an object with its content."""
    name = entry.get("content") if isinstance(entry, dict) else entry
    return name if isinstance(name, str) else None


def _add(engine: Engine, about: dict[str, Any]) -> None:
    """Tokens that were added to the vocabulary later, and what is padded with, which counts as special in a prompt."""
    listed = about.get("added_tokens_decoder", {})
    if not isinstance(listed, dict) or not all(re.fullmatch(r"\d{1,9}", str(id)) for id in listed):
        raise ValueError("its tokenizer_config.json must list added_tokens_decoder by number")
    added = engine.get_added_tokens_decoder()
    for id, entry in sorted(listed.items(), key=lambda one: int(one[0])):
        name = _named(entry)
        if name is None or int(id) in added:
            continue
        is_special = bool(entry.get("special", False))
        flags = {key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
        token = AddedToken(name, special=is_special, **flags)
        engine.add_special_tokens([token]) if is_special else engine.add_tokens([token])
        if engine.token_to_id(name) != int(id):
            raise ValueError(f"its tokenizer_config.json says that '{name}' is token {id}, it is another")
    pad = _named(about.get("pad_token"))
    if pad is not None and pad not in {token.content for token in engine.get_added_tokens_decoder().values()}:
        if engine.token_to_id(pad) is None:
            raise ValueError(f"its padding '{pad}' is no token of it")
        engine.add_special_tokens([AddedToken(pad, normalized=False)])


def _pad(engine: Engine, about: dict[str, Any]) -> int:
    """What prompts are padded with: as tokenizer_config.json says, else "<pad>", else the end."""
    named = _named(about.get("pad_token"))
    padding = engine.token_to_id(named if named is not None else "<pad>")
    return padding if padding is not None else engine.encode("").ids[-1]
