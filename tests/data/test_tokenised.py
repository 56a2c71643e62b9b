import json
import pickle
import unicodedata

import numpy as np
import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.data import shelf, tokenised
from diptych.data.corpora import split
from diptych.data.mix import labels, read_mix
from diptych.data.packing import Mixture, MixtureSource, pack, with_borders
from diptych.data.shelf import shelved
from diptych.data.tokenised import packed, vocabulary
from diptych.data.trouble import TooManyBroken, Troubles


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([tale(number) for number in range(50)], 300)


def tale(number):
    return f"Tale {number}: once there was a fox, é, 🦊, <|end|> " + "who ran on " * (number % 40)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def test_a_shelf_holds_the_two_sides_of_the_split(tmp_path):
    texts = [tale(number) for number in range(200)]
    shelves = shelved(write(tmp_path / "a.jsonl", texts), 5, 0.2, Troubles())
    assert (list(shelves.train), list(shelves.held_out)) == split(texts, 5, 0.2)
    assert 10 < len(shelves.held_out) < 90
    assert shelves.train[-1] == list(shelves.train)[-1]
    assert shelves.train[1:3] == list(shelves.train)[1:3]
    assert shelves.train.num_characters() == sum(map(len, shelves.train))


def test_a_shelf_is_filled_once_and_anew_where_its_file_has_changed(tmp_path, cache, monkeypatch):
    name = write(tmp_path / "a.jsonl", ["one", "two", None])
    first, again = Troubles(), Troubles()
    shelved(name, 5, 0.0, first)
    with monkeypatch.context() as patch:
        patch.setattr(shelf.corpora, "read", lambda *arguments: pytest.fail("it was read again"))
        assert list(shelved(name, 5, 0.0, again).train) == ["one", "two"]
    assert str(again) == str(first) != ""  # what was broken is told again
    assert (again.seen, again.count) == (3, 1)
    with pytest.raises(TooManyBroken):
        shelved(name, 5, 0.0, Troubles(share=0, few=0))
    write(tmp_path / "a.jsonl", ["one", "two", "three"])
    assert list(shelved(name, 5, 0.0, Troubles()).train) == ["one", "two", "three"]
    assert not list(cache.glob(".*"))


def test_a_reading_that_failed_leaves_no_shelf(tmp_path, cache):
    name = write(tmp_path / "a.jsonl", [None] * 20)
    for _ in range(2):
        with pytest.raises(TooManyBroken, match="line 11: is null"):
            shelved(name, 5, 0.0, Troubles())
    assert list(cache.iterdir()) == []
    write(tmp_path / "a.jsonl", ["", None])
    with pytest.raises(ValueError, match=r"has no document that can be learned from\. skipped 1 of 2: .*line 2"):
        shelved(name, 5, 0.0, Troubles())


def test_a_document_is_kept_where_it_is_met_first(tmp_path):
    """In one file and across files, whatever its white space and its composition; another case is another document."""
    one, two = (tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    write(one, ["the café\nis here", "the  café is here ", unicodedata.normalize("NFD", "the café is here"), "x"])
    write(two, ["y", "the café is here", "The café is here", "y\n"])
    mix = read_mix([str(one), str(two)], 5, 0.0, Troubles())
    assert [list(sides.train) for sides in mix.values()] == [["the café\nis here", "x"], ["y", "The café is here"]]
    assert [sides.repeated for sides in mix.values()] == [2, 2]
    swapped = read_mix([str(two), str(one)], 5, 0.0, Troubles())
    assert [list(sides.train) for sides in swapped.values()] == [["y", "the café is here", "The café is here"], ["x"]]
    write(two, ["x"])
    with pytest.raises(ValueError, match="has nothing left to train on: of its 1 documents 0 are held out, and 1 are"):
        read_mix([str(one), str(two)], 5, 0.0, Troubles())


def test_no_document_is_trained_on_in_one_corpus_and_held_out_in_another(tmp_path):
    texts = [tale(number) for number in range(300)]
    names = [write(tmp_path / "a.jsonl", texts[:200]), write(tmp_path / "b.jsonl", texts[100:])]
    mix = read_mix(names, 5, 0.1, Troubles())
    sides = [set(side) for shelves in mix.values() for side in (shelves.train, shelves.held_out)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 300


def test_rows_from_disk_are_those_from_memory(tmp_path, tokenizer):
    """Against the tokenizer's own `encode` and against `pack` of lists, in every number of a batch."""
    shelves = shelved(write(tmp_path / "a.jsonl", map(tale, range(300))), 5, 0.1, Troubles())
    mapped = packed(tokenizer, shelves.train, 48, 7)
    inside = pack(with_borders(tokenizer, list(shelves.train)), 48, 7)
    assert (mapped.num_rows, mapped.num_targets) == (inside.num_rows, inside.num_targets)
    for here, there in zip(*(rows.rows(np.arange(rows.num_rows)) for rows in (mapped, inside)), strict=True):
        assert torch.equal(here, there)


def test_tokens_are_made_once_and_rows_for_each_context(tmp_path, tokenizer, cache, monkeypatch):
    shelves = shelved(write(tmp_path / "a.jsonl", map(tale, range(30))), 5, 0.1, Troubles())
    packed(tokenizer, shelves.train, 48, 7)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *arguments: pytest.fail("tokenised again"))
    packed(tokenizer, shelves.train, 24, 7)
    packed(tokenizer, shelves.train, 24, 8)
    assert len(list(cache.glob("tokens-*"))) == 1
    assert len(list(cache.glob("rows-*"))) == 3
    with pytest.raises(pytest.fail.Exception, match="again"):
        packed(tokenizer, shelves.held_out, 24, 8)


def test_a_very_long_document_is_tokenised_in_portions_as_it_would_be_whole(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenised, "BATCH", 20)
    messy = "don't  stop 12 34 \n\n the end .\u00a0 é e\u0301 ü 日本 語 a b  c " * 30
    shelves = shelved(write(tmp_path / "a.jsonl", ["short", messy, "x" * 100, " "]), 5, 0.0, Troubles())
    mapped = packed(tokenizer, shelves.train, 48, 7)
    ids = [id for document in with_borders(tokenizer, list(shelves.train)) for id in document]
    assert mapped.tokens.tolist() == ids
    assert len(list(tokenised._portions(messy))) > 50


def test_to_a_worker_goes_the_name_of_a_file(tmp_path, tokenizer):
    shelves = shelved(write(tmp_path / "a.jsonl", map(tale, range(300))), 5, 0.1, Troubles())
    source = MixtureSource(Mixture([packed(tokenizer, shelves.train, 48, 7)], [1.0]), 4, 1)
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert b"tokens.npy" in sent
    for here, there in zip(pickle.loads(sent).batch(3, range(4)), source.batch(3, range(4)), strict=True):
        assert torch.equal(here, there)


def test_corpora_have_labels_of_their_own():
    assert labels(["tinystories", "a/tales.jsonl.gz#story", "hf:owner/name:small:train"]) == {
        "tinystories": "tinystories",
        "a/tales.jsonl.gz#story": "tales",
        "hf:owner/name:small:train": "name",
    }
    assert labels(["a/train.txt", "b/train.txt", "c/other.txt"]) == {
        "a/train.txt": "a/train.txt",
        "b/train.txt": "b/train.txt",
        "c/other.txt": "other",
    }


def test_a_vocabulary_is_learned_once_for_its_documents(tmp_path, cache, monkeypatch):
    texts = {"tales": shelved(write(tmp_path / "a.jsonl", map(tale, range(30))), 5, 0.1, Troubles()).train}
    learned = vocabulary(texts, {"tales": 1.0}, 290)
    assert learned.to_json() == Tokenizer.train(list(texts["tales"]), 290).to_json()
    monkeypatch.setattr(Tokenizer, "train", lambda *arguments: pytest.fail("learned again"))
    assert vocabulary(texts, {"tales": 1.0}, 290).to_json() == learned.to_json()
    with pytest.raises(pytest.fail.Exception, match="again"):
        vocabulary(texts, {"tales": 1.0}, 291)


def test_the_end_of_a_corpus_is_held_out_to_the_letter(tmp_path):
    texts = [tale(n) for n in range(10)]
    whole = "".join(texts)
    for share in (0.0, 0.1, 0.25):
        shelves = shelved(write(tmp_path / "a.jsonl", texts), 5, share, Troubles(), holds_out_end=True)
        border = int(len(whole) * (1 - share))
        assert "".join(shelves.train) == whole[:border]
        assert "".join(shelves.held_out) == whole[border:]
        assert len(shelves.train) + len(shelves.held_out) in (10, 11), "one document is cut, or none"
    alone = shelved(write(tmp_path / "b.jsonl", [whole]), 5, 0.1, Troubles(), holds_out_end=True)
    assert [len(side) for side in (alone.train, alone.held_out)] == [1, 1]
    by_hash = shelved(write(tmp_path / "a.jsonl", texts), 5, 0.25, Troubles())
    assert "".join(by_hash.train) != "".join(shelves.train), "another split has a shelf of its own"


def test_a_vocabulary_of_bytes_is_not_learned(tmp_path):
    texts = {"tales": shelved(write(tmp_path / "a.jsonl", map(tale, range(3))), 5, 0.0, Troubles()).train}
    learned = vocabulary(texts, {"tales": 1.0}, 258)
    assert learned.size == 258
    assert [learned.token_bytes(id) for id in learned.encode("é a")] == [b"\xc3", b"\xa9", b" ", b"a"]
