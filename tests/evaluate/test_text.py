"""Bits per byte of a file: against the model's own log-probabilities, summed by hand."""

import math
from pathlib import Path

import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.evaluate.text import evaluate_text, evaluation_documents
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel

STORIES = ("A cat sat by the sea and looked at the sun. " * 6, "The fox ran up the hill to see the moon rise. " * 5)


@pytest.fixture(scope="module")
def model() -> TextModel:
    torch.manual_seed(2)
    tokenizer = Tokenizer.train(list(STORIES), 280, ["<|begin|>", "<|end|>"])
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden": 24}
    decoder = Decoder(DecoderConfig(vocab_size=tokenizer.size, context=32, **sizes))
    return TextModel("tiny", decoder.eval(), tokenizer)


@pytest.fixture
def stories(tmp_path: Path) -> str:
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>".join(STORIES))
    return str(path)


def test_bits_per_byte_are_the_log_probabilities_over_the_bytes(model: TextModel, stories: str) -> None:
    report = evaluate_text(model, stories)
    documents = [story.strip() for story in STORIES]
    tokenizer = model.tokenizer
    ids = [[tokenizer.begin, *tokenizer.encode(text), tokenizer.end] for text in documents]
    bits = -sum(float(model.score(tokens).sum()) for tokens in ids) / math.log(2)
    assert report.score.value == pytest.approx(bits / sum(len(text.encode()) for text in documents), rel=1e-5)
    assert report.score.count == report.num_available == 2
    assert not report.held_out
    assert report.on == "stories.txt"


def test_the_number_of_documents_is_bounded_and_named(model: TextModel, stories: str) -> None:
    facts = evaluate_text(model, stories, max_documents=1).to_dict()
    assert (facts["documents"], facts["documents_available"], facts["interval"]) == (1, 2, None)
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        evaluate_text(model, stories, max_documents=0)


@pytest.mark.parametrize(
    ("on", "message"), [("nowhere.txt", "is missing"), ("tinystory", "did you mean 'tinystories'")]
)
def test_what_cannot_be_scored_is_named(on: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation_documents(on)
