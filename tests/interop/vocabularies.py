"""Tiny vocabularies made as CLIP's and T5's are."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Engine
from tokenizers import models, normalizers, pre_tokenizers, trainers


def write_clip_words(folder: Path, texts: Sequence[str], size: int, pad: str = "<|endoftext|>") -> Path:
    """vocab.json and merges.txt: bytes, bytes at the end of a word, merges. "!" is the first, as it is in CLIP's, where
    some pad with it."""
    engine = Engine(models.BPE(end_of_word_suffix="</w>"))
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    engine.train_from_iterator(texts, trainer)
    merges = json.loads(engine.to_str())["model"]["merges"]
    names = ["!", *alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    names = list(dict.fromkeys([*names, "<|startoftext|>", "<|endoftext|>"]))
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: place for place, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def t5_pieces(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities, numbered as T5 numbers them."""
    engine = Engine(models.Unigram())
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=specials, unk_token="<unk>", show_progress=False)
    engine.train_from_iterator(texts, trainer)
    return [(name, score) for name, score in json.loads(engine.to_str())["model"]["vocab"]]
