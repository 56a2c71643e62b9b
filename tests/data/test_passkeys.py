"""Passkeys: what is hidden can be found, in texts of the length that was asked for."""

import pytest

from diptych.core.tokenizer import Tokenizer
from diptych.data import corpora
from diptych.data.passkeys import FILLER, OPENING, hidden, num_words
from diptych.data.trouble import Troubles


def test_a_document_is_as_long_as_its_name_says_in_a_vocabulary_of_its_own():
    """Begin and end included, to within a sentence of filler; the number is told twice and answered once."""
    texts = [text for text, _ in zip(corpora.read("passkey:200", Troubles()), range(300), strict=False)]
    tokenizer = Tokenizer.train(texts, 400)
    assert {len(tokenizer.encode(text)) for text in texts} == {num_words(text) for text in texts}
    assert all(200 - 7 <= num_words(text) + 2 <= 200 for text in texts)
    for text in texts:
        key = text.removesuffix(".")[-10:]
        assert key.replace(" ", "").isdigit()
        assert text.count(key) == 3
    assert len({text[-11:] for text in texts}) > 290
    assert len({text.index("The pass key is") for text in texts}) > 20
    again = [text for text, _ in zip(corpora.read("passkey:200", Troubles()), range(300), strict=False)]
    assert texts == again


@pytest.mark.parametrize("length", [64, 100, 1000])
def test_depth_is_the_share_of_filler_before_the_number(length):
    for depth in (0.0, 0.3, 1.0):
        one = hidden(length, depth, 3, 4, num_words)
        before, after = (part.count(".") for part in one.prompt.removeprefix(OPENING).split("The pass key is", 1))
        filler = before + after - 3  # the number is told in three sentences
        assert before == round(depth * filler)
        assert before == 0 or FILLER[(before - 1) % len(FILLER)] in one.prompt
    one, other = (hidden(length, 0.5, seed, 4, num_words) for seed in (3, 5))
    assert one.key != other.key


@pytest.mark.parametrize("name", ["passkey:", "passkey:12", "passkey:5.5", "passkey:-80"])
def test_an_impossible_length_is_refused(name):
    with pytest.raises(ValueError, match="must end in tokens of a document, passkey:64 or more"):
        next(corpora.read(name, Troubles()))


def test_a_length_in_which_the_number_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a pass key needs a length of at least 177 tokens, not 64"):
        hidden(64, 0.5, 1, 1, len)
