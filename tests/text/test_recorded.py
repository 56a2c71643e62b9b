"""A step on tensors alone, as a GPU replays it, against the same texts read by the cache's usual way."""

import pytest
import torch

from diptych.text import recorded
from diptych.text.cache import STEP, CacheSettings
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.reader import Part, Reader
from diptych.text.recorded import RecordedTokens

CONFIG = DecoderConfig(
    vocab_size=97, width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, hidden=96, context=600
)


@pytest.fixture(autouse=True)
def _recorded(recordings, monkeypatch):
    monkeypatch.setattr(recorded, "Graphs", recordings)


def readers(kind="", config=CONFIG):
    """Two of one decoder; the first records."""
    torch.manual_seed(3)
    decoder = Decoder(config).eval().requires_grad_(False)
    both = [Reader(decoder, 2, settings=CacheSettings(dtype=kind)) for _ in range(2)]
    both[0]._few_tokens, both[1]._few_tokens = RecordedTokens(decoder, both[0].cache), None
    return both


@pytest.mark.parametrize("kind", ["", "int8"])
@pytest.mark.parametrize("count", [1, 3])
def test_texts_go_on_as_they_do_without(kind, count):
    """Three texts of different lengths, past the room that the first recording looks over and past a growth of the
    cache; then two of them that are not neighbours, and one alone."""
    both = readers(kind)
    prompts = [list(range(5, 11)), [place % 97 for place in range(STEP - 9)], [7, 8]]
    for reader in both:
        slots = [reader.cache.reserve(len(prompt)) for prompt in prompts]
        reader.read([Part(slot, prompt) for slot, prompt in zip(slots, prompts, strict=True)])
    for step in range(14):
        going = (slots, [slots[0], slots[2]], slots[1:2])[step % 3] if step > 8 else slots
        new = [[(7 * step + 3 * slot + place) % 97 for place in range(count)] for slot in going]
        found = [
            reader.read([Part(slot, tokens, count) for slot, tokens in zip(going, new, strict=True)]) for reader in both
        ]
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert both[0].cache.lengths == both[1].cache.lengths


def test_what_was_guessed_ahead_is_taken_back():
    both = readers()
    for reader in both:
        reader.read([Part(reader.cache.reserve(4), [5, 6, 7, 8])])
    for tokens, kept in (([9, 10, 11], 5), ([12, 13, 14], 8), ([15, 16, 17], 9)):
        ours, theirs = (reader.read([Part(0, tokens, 3)])[0] for reader in both)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        for reader in both:
            reader.cache.truncate(0, kept)


def test_a_decoder_that_was_changed_is_read_the_usual_way():
    reader = readers()[0]
    reader.read([Part(reader.cache.reserve(2), [5, 6])])
    assert reader._few_tokens.takes([1])
    assert not reader._few_tokens.takes([1, 2])
    hook = reader.decoder.blocks[0].attention.query.register_forward_hook(lambda *_: None)
    assert not reader._few_tokens.takes([1])
    hook.remove()
    assert reader._few_tokens.takes([1])
    reader.decoder.norm.weight = torch.nn.Parameter(torch.ones(64), requires_grad=False)
    assert not reader._few_tokens.takes([1])


def test_only_a_gpu_and_what_is_kept_whole_are_recorded():
    reader = readers()[0]
    assert not recorded.suits(reader.decoder, reader.cache)
