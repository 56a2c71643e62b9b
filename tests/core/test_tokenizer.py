"""Every string comes back as it went in; a special token's name in plain text is only text."""

import json
import random
import re

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models, normalizers, pre_tokenizers, processors

from diptych.core.tokenizer import BEGIN, END, Tokenizer

STORIES = ["Once upon a time there was a cat.", "The cat saw a dog and said hello. " * 3, "A fox 🦊 ran over é and ö."]
TEXTS = [
    "",
    " ",
    "\x00\x01\t\r\n\u2028",
    "  two spaces, then\n\na paragraph ",
    "👩‍👩‍👧‍👦 🇨🇭 🦊 e\u0301 ﬁ ½ ﷽ \U0010ffff",
    "中文 العربية עברית हिन्दी ไทย",
    f"the end is {END}, the beginning {BEGIN}{BEGIN}",
    "<|endoftext|> <s> [MASK] Ġ Ċ ▁",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(STORIES * 4, 300)


def specials_of(tokenizer: Tokenizer) -> set[int]:
    return set(tokenizer.specials.values())


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_and_never_holds_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not specials_of(tokenizer) & set(ids)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_any_unicode_comes_back(tokenizer):
    draw = random.Random(7)
    for _ in range(200):
        points = [draw.choice((draw.randrange(0xD800), draw.randrange(0xE000, 0x110000))) for _ in range(20)]
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_of_a_vocabulary_of_bytes_the_ids_are_those_that_the_engine_gives(tmp_path):
    bare = Tokenizer.train((), 258)
    bare.save(tmp_path / "tokenizer.json")
    engine = Engine.from_file(str(tmp_path / "tokenizer.json"))
    engine.encode_special_tokens = True
    theirs = [engine.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert bare.encode_batch(TEXTS) == [bare.encode(text) for text in TEXTS] == theirs
    assert bare.encode(f"a{END}", obey_specials=True) == [*bare.encode("a"), bare.end]


@pytest.mark.parametrize("kind", ["a space before", "lower case", "one more token"])
def test_rules_that_a_vocabulary_of_bytes_comes_with_are_kept(kind, tmp_path):
    engine = Engine.from_str(Tokenizer.train((), 258).to_json())
    if kind == "a space before":
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif kind == "lower case":
        engine.normalizer = normalizers.Lowercase()
    else:
        engine.add_tokens(["Once"])
    wanted = engine.encode("Once", add_special_tokens=False).ids
    assert Tokenizer(engine).encode("Once") == wanted
    assert wanted != Tokenizer.train((), 258).encode("Once")


def test_the_256_bytes_are_tokens_and_each_stands_for_itself(tokenizer):
    single = [tokenizer.token_bytes(id) for id in range(tokenizer.size) if len(tokenizer.token_bytes(id)) == 1]
    assert sorted(single) == [bytes([byte]) for byte in range(256)]


def test_training_shortens_what_it_was_trained_on(tokenizer):
    assert tokenizer.size == 300
    assert len(tokenizer.encode(STORIES[1])) < len(STORIES[1]) / 2
    assert tokenizer.encode(STORIES[0]) == Tokenizer.train(STORIES * 4, 300).encode(STORIES[0])


def test_specials_come_first_decode_to_nothing_and_read_as_their_name(tokenizer):
    assert (tokenizer.begin, tokenizer.end) == (0, 1) == (tokenizer.id(BEGIN), tokenizer.id(END))
    assert tokenizer.token_bytes(tokenizer.end) == b""
    assert tokenizer.piece(tokenizer.end) == END
    cat = tokenizer.encode("cat")
    assert tokenizer.decode([tokenizer.begin, *cat, tokenizer.end]) == "cat"


def test_a_piece_of_a_character_reads_as_a_replacement_character(tokenizer):
    pieces = [tokenizer.piece(id) for id in tokenizer.encode("𝄞")]
    assert "\ufffd" in pieces[0]
    assert tokenizer.piece(tokenizer.encode("a")[0]) == "a"


def test_save_and_load_change_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.size, again.specials) == (tokenizer.size, tokenizer.specials)
    for text in TEXTS + STORIES:
        assert again.encode(text) == tokenizer.encode(text)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_the_file_is_read_by_the_tokenizers_library_alone(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    engine = Engine.from_file(str(tmp_path / "tokenizer.json"))
    assert engine.encode(STORIES[0], add_special_tokens=False).ids == tokenizer.encode(STORIES[0])
    assert engine.decode(tokenizer.encode(TEXTS[4])) == TEXTS[4]


def test_unknown_special_and_too_small_vocabulary_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"no special token '<\|user\|>'; it has: <\|begin\|>, <\|end\|>"):
        tokenizer.id("<|user|>")
    with pytest.raises(ValueError, match=r"vocab_size must be at least 258 .*, not 257"):
        Tokenizer.train(STORIES, 257)


def test_a_missing_or_foreign_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="is missing"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    for foreign in ("", "{}", "not json", '{"version": "1.0", "model": {}}', "\x00\xff"):
        (tmp_path / "tokenizer.json").write_text(foreign)
        with pytest.raises(ValueError, match=r"^'.*tokenizer.json' is not a tokenizer.json: .+$"):
            Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_vocabulary_that_is_not_of_bytes_is_refused_when_it_is_loaded(tmp_path):
    """A word-level tokenizer is valid for its library, but its tokens are no bytes: say so before any work."""
    engine = Engine(models.WordLevel({"the cat": 0, "▁dog": 1}, unk_token="the cat"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="byte-level"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_ids_with_gaps_keep_their_places(tokenizer, tmp_path):
    """A tokenizer.json from elsewhere may leave ids unused; the table must still be indexed by id."""
    tokenizer.save(tmp_path / "tokenizer.json")
    about = json.loads((tmp_path / "tokenizer.json").read_text())
    about["added_tokens"].append(dict(about["added_tokens"][0], id=310, content="<|user|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    for name, id in again.specials.items():
        assert (again.piece(id), again.token_bytes(id)) == (name, b"")
    assert all(id < again.size for id in again.specials.values())


KINDS = ["gpt2", "llama2", "mistral", "llama3", "qwen"]
BEGINS = {"gpt2": None, "llama2": 1, "mistral": 1, "llama3": 0, "qwen": None}
STREAMED = [text for text in TEXTS if text] + ["<think>\ncats</think>", "It wore 1234567 sunglasses,don't you?\n\n x"]


@pytest.fixture(params=KINDS)
def published(request, vocabularies, tmp_path):
    """A vocabulary with a published one's rules, and what the library that runs it makes of it by itself."""
    engine = vocabularies[request.param]
    engine.save(str(tmp_path / "tokenizer.json"))
    return request.param, Tokenizer.load(tmp_path / "tokenizer.json"), engine


@pytest.mark.parametrize("text", [*TEXTS, *STREAMED])
def test_published_vocabularies_give_the_same_ids_and_the_same_text(published, text):
    _, tokenizer, engine = published
    engine.encode_special_tokens = False
    ids = engine.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, obey_specials=True) == ids
    assert tokenizer.decode(ids) == engine.decode(ids)


def test_what_begins_a_text_is_what_the_files_own_rules_put_there(published):
    kind, tokenizer, engine = published
    assert tokenizer.begin == BEGINS[kind]
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    assert [*begin, *tokenizer.encode("A cat")] == engine.encode("A cat").ids


@pytest.mark.parametrize("text", STREAMED)
def test_the_bytes_of_tokens_add_up_to_the_text_wherever_it_is_continued(published, text):
    """A text that is begun and one that goes on: the bytes of what comes are exactly what the whole has more."""
    _, tokenizer, engine = published
    ids = tokenizer.encode("a cat" + text, obey_specials=True)
    whole = engine.decode(ids)
    for place in range(1, len(ids)):
        ahead = b"".join(map(tokenizer.token_bytes, ids[:place])).removeprefix(b" ")
        rest = b"".join(map(tokenizer.token_bytes, ids[place:]))
        assert (ahead + rest).decode() == whole


def test_a_special_name_is_obeyed_only_where_it_is_asked_for(published):
    _, tokenizer, _ = published
    name, id = max(tokenizer.specials.items(), key=lambda item: item[1])
    assert id in tokenizer.encode(f"a {name} b", obey_specials=True)
    assert id not in tokenizer.encode(f"a {name} b")
    assert tokenizer.decode(tokenizer.encode(f"a {name} b")) == f"a {name} b"


def test_the_tokens_that_end_a_text_are_kept_beside_the_vocabulary(vocabularies, tmp_path):
    vocabularies["llama3"].save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path / "tokenizer.json").ends == frozenset()
    beside = tmp_path / "tokenizer_config.json"
    for form in ("<|eot_id|>", {"content": "<|eot_id|>", "special": True}):
        beside.write_text(json.dumps({"eos_token": form}))
        tokenizer = Tokenizer.load(tmp_path / "tokenizer.json", more_ends=[1, 2])
        assert (tokenizer.end, tokenizer.ends) == (2, {1, 2})
        (tmp_path / "again").mkdir(exist_ok=True)
        tokenizer.save(tmp_path / "again" / "tokenizer.json")
        again = Tokenizer.load(tmp_path / "again" / "tokenizer.json")
        assert (again.end, again.ends) == (2, {1, 2})
    for wrong, message in (('{"eos_token": "<|stop|>"}', "'<|stop|>', which is no token"), ("[", "not valid JSON")):
        beside.write_text(wrong)
        with pytest.raises(ValueError, match=re.escape(message)):
            Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_document_without_a_begin_stands_between_two_ends(vocabularies, tokenizer):
    assert Tokenizer(vocabularies["gpt2"], [0]).bordered([5, 6]) == [0, 5, 6, 0]
    assert tokenizer.bordered([5, 6]) == [tokenizer.begin, 5, 6, tokenizer.end]


def test_rules_that_put_several_tokens_before_a_text_are_refused(vocabularies):
    engine = Engine.from_str(vocabularies["llama3"].to_str())
    engine.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> <|eot_id|> $A", special_tokens=[("<|begin_of_text|>", 0), ("<|eot_id|>", 2)]
    )
    with pytest.raises(ValueError, match="it puts 2 tokens before a text"):
        Tokenizer(engine)
