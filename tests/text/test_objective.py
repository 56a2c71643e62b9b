import math

import pytest
import torch
from torch import nn

from diptych.data.packing import Batch, Packed, pack, with_borders
from diptych.text import objective
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel
from diptych.text.objective import bits_per_byte, count_targets, next_token_loss, token_log_probabilities


@pytest.fixture
def packed(tokenizer) -> Packed:
    texts = ["Once upon a time.", "The cat saw a dog.", "A fox ran over the hill and said hello to the dog.", "Hello."]
    return pack(with_borders(tokenizer, texts * 4), context=40, seed=0)


def test_loss_is_the_mean_over_real_targets(decoder, tokenizer):
    """Against each document scored alone: packing and padding change nothing."""
    texts = ["Once upon a time.", "The cat saw a dog.", "Hello."]
    documents = with_borders(tokenizer, texts)
    row = pack(documents, context=60, seed=0).batch(0, 1, 0)
    nats = [-token_log_probabilities(decoder, document, 60).sum() for document in documents]
    loss, metrics = next_token_loss(decoder, row)
    count = sum(len(document) - 1 for document in documents)
    assert metrics["tokens"] == count == count_targets(row)
    assert float(loss.detach()) == pytest.approx(float(sum(nats)) / count, rel=1e-5)


def test_parts_weighted_by_their_targets_give_the_gradient_of_the_whole(config, packed):
    torch.manual_seed(0)
    decoder = Decoder(config)
    batch = packed.batch(0, 4, seed=1)
    parts = [Batch(*(tensor[index : index + 1] for tensor in batch)) for index in range(4)]
    assert len({count_targets(part) for part in parts}) > 1  # else the plain mean would do as well

    next_token_loss(decoder, batch)[0].backward()
    whole = decoder.embedding.weight.grad.clone()
    decoder.zero_grad()
    for part in parts:
        (next_token_loss(decoder, part)[0] * count_targets(part) / count_targets(batch)).backward()
    torch.testing.assert_close(decoder.embedding.weight.grad, whole, rtol=1e-4, atol=1e-7)


def test_one_batch_can_be_learned_by_heart(config, packed):
    torch.manual_seed(0)
    decoder = Decoder(config)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    batch = packed.batch(0, 2, seed=1)
    for _ in range(60):
        loss, _ = next_token_loss(decoder, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1.0 < math.log(config.vocab_size)


def test_a_model_that_knows_nothing_needs_log_v_bits_a_token(tokenizer, config):
    """All weights zero: every token has probability 1 / V, whatever the windows."""
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        nn.init.zeros_(parameter)
    texts = ["Once upon a time there was a fox. 🦊", "The cat said hello. " * 20, "é"]
    judged = bits_per_byte(decoder, tokenizer, texts, context=32)
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    expected = math.log2(config.vocab_size) * tokens / sum(len(text.encode()) for text in texts)
    assert judged.value == pytest.approx(expected, rel=1e-6)
    assert judged.count == 3
    assert judged.interval[0] < judged.value < judged.interval[1]
    assert bits_per_byte(decoder, tokenizer, texts, context=32, max_documents=1).count == 1


@torch.no_grad()
@pytest.mark.parametrize("together", [16, 48])
@pytest.mark.parametrize("length", [2, 16, 17, 18, 24, 25, 50])
@pytest.mark.parametrize(("overlap", "known"), [(0.5, 8), (0.0, 0), (0.8, 12)])
def test_windows_score_every_token_once(decoder, config, monkeypatch, together, length, overlap, known):
    """Each score against the decoder's own, given the window that the token was read in."""
    monkeypatch.setattr(objective, "TOGETHER", together)
    tokens = torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(2)).tolist()
    scores = token_log_probabilities(decoder, tokens, context=16, overlap=overlap)
    assert scores.shape == (length - 1,)
    fresh = 16 - known
    for place, score in enumerate(scores.tolist(), start=1):
        start = 0 if place <= 16 else fresh + fresh * ((place - 17) // fresh)
        logits = decoder(torch.tensor([tokens[start:place]]))[0, -1]
        assert score == pytest.approx(float(logits.log_softmax(-1)[tokens[place]]), abs=1e-4)


def test_scoring_and_writing_leave_the_mode_of_the_model_as_it_was(tokenizer):
    decoder = Decoder(DecoderConfig.from_depth(1, tokenizer.size, 16)).train()
    bits_per_byte(decoder, tokenizer, ["The cat."], context=16)
    TextModel("tiny", decoder, tokenizer).generate("The cat", max_tokens=2, seed=0).result()
    assert decoder.training
