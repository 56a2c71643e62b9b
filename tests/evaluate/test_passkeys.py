"""Passkeys found by length and depth: readers whose memory is known are found to have that memory."""

import re
from types import SimpleNamespace

import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.data.passkeys import documents
from diptych.evaluate.passkeys import evaluate_passkeys
from diptych.text.cache import CacheSettings
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel


class Reader(TextModel):
    """Answers with the number, if it stands in the last `memory` tokens of the prompt."""

    memory = 10**9
    longest = 0

    def stretched(self, context, kind=None):
        return self

    def runner(self, slots=1, cache=None):
        return self

    def admit(self, request):
        type(self).longest = max(self.longest, len(request.prompt_ids) + request.settings.max_tokens + 1)
        return SimpleNamespace(ids=request.prompt_ids, is_done=False)

    def advance(self, jobs):
        for job in jobs:
            job.is_done = True

    def finish(self, job):
        found = re.search(r"The pass key is((?: \d){5})", self.tokenizer.decode(job.ids[-self.memory :]))
        return SimpleNamespace(text=found.group(1) if found else " 7 7 7 7 7")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for text, _ in zip(documents("passkey:128"), range(200), strict=False)], 352)


@pytest.fixture(scope="module")
def decoder(tokenizer):
    torch.manual_seed(2)
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden": 24}
    return Decoder(DecoderConfig(vocab_size=tokenizer.size, context=128, **sizes)).eval()


def test_a_reader_that_remembers_all_finds_all_and_no_text_is_longer_than_asked(decoder, tokenizer):
    report = evaluate_passkeys(Reader("all", decoder, tokenizer), [64, 300], texts=40)
    assert {length: report.total(length).value for length in report.found} == {64: 1.0, 300: 1.0}
    assert [band.asked for band in report.found[64]] == [8] * 5
    assert 280 < Reader.longest <= 300


def test_a_reader_that_remembers_half_finds_what_stands_in_the_second_half(decoder, tokenizer):
    reader = Reader("half", decoder, tokenizer)
    reader.memory = 500
    shares = [band.value for band in evaluate_passkeys(reader, [1000], texts=200).found[1000]]
    assert shares[:2] == [0, 0]
    assert 0.2 < shares[2] < 0.8
    assert shares[3:] == [1, 1]


def test_a_model_of_random_weights_finds_nothing_at_any_length(decoder, tokenizer):
    model = TextModel("random", decoder, tokenizer)
    report = evaluate_passkeys(model, [64, 300], texts=10, rope_scaling="yarn", cache=CacheSettings("int8"))
    assert {length: report.total(length).found for length in report.found} == {64: 0, 300: 0}
    facts = report.to_dict()
    assert facts["lengths"]["300"]["asked"] == 10
    assert len(facts["lengths"]["300"]["by_depth"]) == 5


def test_what_cannot_be_asked_is_refused(decoder, tokenizer):
    model = TextModel("random", decoder, tokenizer)
    for lengths, texts, scaling, said in (
        ([], 10, None, "lengths must be 64 tokens or more, not none"),
        ([12], 10, None, "lengths must be 64 tokens or more, not 12"),
        ([64], 3, None, "number of texts must be at least 5, one for each band of depth, not 3"),
        ([300], 10, "yarm", "unknown rope_scaling kind 'yarm'; did you mean 'yarn'?"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            evaluate_passkeys(model, lengths, texts=texts, rope_scaling=scaling)


def test_a_stretched_model_shares_its_weights_and_reads_longer_texts(decoder, tokenizer):
    model = TextModel("random", decoder, tokenizer)
    longer = model.stretched(512)
    assert longer.decoder.embedding.weight is decoder.embedding.weight
    assert (longer.config.context, longer.config.rope_scaling.factor) == (512, 4.0)
    assert (model.config.context, longer.stretched(1024).config.rope_scaling.factor) == (128, 8.0)
    assert len(longer.generate([5] * 500, max_tokens=3, seed=1).result().tokens) <= 3
    with pytest.raises(ValueError, match="the context of 'random' cannot go from 128 to 64: that would be shorter"):
        model.stretched(64)
