"""Prompts are read as transformers reads them, by the rules of CLIP and of T5 with tiny vocabularies."""

import json
import struct

import pytest
from tests.interop.vocabularies import t5_pieces, write_clip_words
from transformers import CLIPTokenizer, T5Tokenizer

from diptych.image.encoders import encode_prompts
from diptych.image.prompt_tokens import PromptTokenizer
from diptych.interop.prompts import open_tokenizer

WORDS = ["a cat wearing sunglasses on a beach at sunset, isn't it? 12 cats!", "the quick brown fox jumps"] * 4
TEXTS = [
    "",
    "A CAT  wearing\n sunglasses!",
    "don't we've 3.14 you'll THEY'RE",
    "café cafe\u0301 Zürich ﬁ ½ İ ß",
    "日本語 한국어 العربية हिन्दी",
    "🐱 the 👩‍👩‍👧‍👦 cat!!!",
    "fox <|endoftext|> cat </s> <pad> <extra_id_3> <|startoftext|>",
    "\u00a0 \u200b\u202e tab\t end ",
    "the quick brown fox " * 40,
    "(masterpiece:1.2), [blur] a_b-c.d/e #1 @x",
]


@pytest.fixture
def clip(tmp_path):
    """`clip("!")`: a folder with vocab.json and merges.txt, padded so."""
    return lambda pad: write_clip_words(tmp_path / "clip", WORDS, 600, pad)


def assert_equal(ours, theirs):
    for text in TEXTS:
        found, mask = encode_prompts(ours, [text], ours.length, cuts=True)
        wanted = theirs(text, padding="max_length", truncation=True, max_length=ours.length)
        assert found[0].tolist() == wanted["input_ids"], text
        assert mask[0].tolist() == [bool(seen) for seen in wanted["attention_mask"]], text


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_clip_from_vocab_and_merges(clip, pad, tmp_path):
    """Where "!" is what SD2 and SDXL pad with, "!" in a prompt is that token, too. From tokenizer.json as transformers
    writes it, and from ours, it is the same."""
    directory = clip(pad)
    theirs, ours = CLIPTokenizer.from_pretrained(directory), open_tokenizer(directory)
    assert (ours.length, ours.pad) == (77, theirs.pad_token_id)
    assert_equal(ours, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "merges.txt").exists()
    assert_equal(open_tokenizer(tmp_path / "theirs"), theirs)
    ours.save(tmp_path / "tokenizer.json")
    again = PromptTokenizer.load(tmp_path / "tokenizer.json")
    assert (again.length, again.pad, again.begin, again.end) == (77, ours.pad, ours.begin, ours.end)
    assert_equal(again, theirs)


def test_a_token_that_was_added_later_is_one(clip):
    """As textual inversion adds them: it is one token wherever it stands."""
    theirs = CLIPTokenizer.from_pretrained(clip("<|endoftext|>"))
    size = len(theirs)
    directory = clip("<|endoftext|>")
    about = json.loads((directory / "tokenizer_config.json").read_text())
    about["added_tokens_decoder"] = {str(size): {"content": "<hat>", "special": False, "normalized": True}}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
    theirs.add_tokens("<hat>")
    ours = open_tokenizer(directory)
    assert ours.encode("a cat in a <hat>")[-1] == size
    assert ours.encode("a cat in a <hat>") == theirs("a cat in a <hat>", add_special_tokens=False)["input_ids"]


def test_t5_from_tokenizer_json_and_from_spiece_model(tmp_path):
    """spiece.model is written here field by field, from the format's description."""

    def field(number, value):
        size, head = len(value), bytes([number << 3 | 2])
        return head + bytes([size & 127 | 128, size >> 7]) + value

    vocabulary = t5_pieces(WORDS)
    theirs = T5Tokenizer(vocab=[*vocabulary, *((f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1))])
    theirs.save_pretrained(tmp_path / "json")
    kinds = {"<unk>": b"\x18\x02", "<pad>": b"\x18\x03", "</s>": b"\x18\x03"}
    pieces = [
        field(1, name.encode()) + b"\x15" + struct.pack("<f", score) + kinds.get(name, b"")
        for name, score in vocabulary
    ]
    message = b"".join(field(1, piece) for piece in pieces) + field(2, b"\x18\x01") + field(3, field(1, b"nmt_nfkc"))
    (tmp_path / "spiece").mkdir()
    (tmp_path / "spiece" / "spiece.model").write_bytes(message)
    for kind in ("json", "spiece"):
        ours = open_tokenizer(tmp_path / kind)
        assert (ours.length, ours.pad, ours.begin, ours.end) == (512, 0, None, 1)
        assert_equal(ours, theirs)
    (tmp_path / "spiece" / "spiece.model").write_bytes(message[:-3])
    with pytest.raises(ValueError, match="is damaged or no SentencePiece file"):
        open_tokenizer(tmp_path / "spiece")


def test_a_prompt_that_is_too_long_is_refused_or_cut(clip):
    ours = open_tokenizer(clip("<|endoftext|>"))
    with pytest.raises(ValueError, match="the prompt is too long: 200 tokens, at most 75: 'x x x"):
        encode_prompts(ours, ["x " * 200], 77)
    tokens, mask = encode_prompts(ours, ["x " * 200], 77, cuts=True)
    assert tokens[0, -1] == ours.end
    assert mask.all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it has no tokenizer.json, no vocab.json with merges.txt, and no spiece.model"),
        ({"tokenizer.json": "{}"}, "is not a tokenizer.json"),
        ({"vocab.json": "{}", "merges.txt": ""}, "its vocabulary lacks '<|startoftext|>'"),
        ({"vocab.json": "[", "merges.txt": ""}, "are not those of a BPE"),
        ({"spiece.model": ""}, "it has no pieces"),
        ({"tokenizer_config.json": "[]"}, "must hold a JSON object"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        open_tokenizer(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_that_is_no_token_is_refused(clip):
    with pytest.raises(ValueError, match="its padding 'PAD' is no token of it"):
        open_tokenizer(clip("PAD"))
