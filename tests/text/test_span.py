"""Windows, attention sinks and 8 bits: a cache that keeps less than all, against reading without one."""

from dataclasses import replace

import pytest
import torch

from diptych.core.positions import RopeScaling
from diptych.text import cache as caches
from diptych.text.cache import CacheSettings, KeyValueCache
from diptych.text.decoder import Decoder
from diptych.text.kept import Kept, KeptInBytes
from diptych.text.runner import TextRequest, TextRunner
from diptych.text.settings import Settings
from diptych.text.span import Span


def changed(decoder, **settings):
    """The same weights with other settings."""
    other = Decoder(replace(decoder.config, **settings)).eval()
    other.load_state_dict({name: weight for name, weight in decoder.state_dict().items() if name in other.state_dict()})
    return other


def read(decoder, cache, slots, rows):
    counts = [len(row) for row in rows]
    width = max(counts)
    new = cache.append(slots, counts, width)
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    logits = decoder(tokens, positions=new.positions, cache=new)
    return [logits[index, :count] for index, count in enumerate(counts)]


def tokens(config, count, seed=0):
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("span", [Span(), Span(5), Span(5, spare=3), Span(7, sinks=2)], ids=str)
def test_what_lies_at_a_place_is_the_last_token_that_was_put_there(span):
    """Against putting tokens at their places one by one."""
    lain: dict[int, int] = {}
    for length in range(1, 40):
        lain[int(span.places(torch.tensor(length - 1)))] = length - 1
        room = span.room(length)
        assert len(lain) == room
        assert span.positions(torch.tensor([length]), room).tolist() == [[lain[place] for place in range(room)]]
        padded = span.positions(torch.tensor([length]), room + 2)[0, room:] if not span.window else torch.tensor([-1])
        assert (padded == -1).all()


@torch.no_grad()
@pytest.mark.parametrize("windows", [(6, 6), (6, 0), (0, 11)])
def test_windows_keep_no_more_than_they_see_and_read_the_same(decoder, monkeypatch, windows):
    """Texts of different lengths, in prompts longer than the ring, in few and in single tokens, against all at once."""
    monkeypatch.setattr(caches, "SPARE", 3)
    decoder = changed(decoder, windows=windows, context=256)
    texts = [tokens(decoder.config, length, seed) for seed, length in enumerate((120, 33, 70))]
    cache = KeyValueCache(decoder.config, 1, 4, "cpu", torch.float32)
    slots = [cache.reserve() for _ in texts]
    seen = [[], [], []]
    at = [0, 0, 0]
    for counts in (
        (50, 1, 7),
        (20, 2, 7),
        (1, 1, 1),
        (0, 10, 20),
        (1, 0, 1),
        (4, 1, 3),
        (30, 18, 30),
        *[(1, 0, 1)] * 14,
    ):
        counts = [min(count, len(text) - start) for count, text, start in zip(counts, texts, at, strict=True)]
        active = [index for index, count in enumerate(counts) if count]
        rows = [texts[index][at[index] : at[index] + counts[index]] for index in active]
        for index, logits in zip(active, read(decoder, cache, [slots[index] for index in active], rows), strict=True):
            seen[index].append(logits)
            at[index] += counts[index]
    for text, parts in zip(texts, seen, strict=True):
        got = torch.cat(parts)
        assert len(got) >= min(len(text), 72)
        torch.testing.assert_close(got, decoder(torch.tensor([text]))[0, : len(got)], rtol=0, atol=2e-4)
    assert [kept.length for kept in cache.keys] == [window + 3 if window else cache.length for window in windows]


@torch.no_grad()
def test_a_window_takes_back_the_last_tokens_and_says_when_it_cannot(decoder, monkeypatch):
    monkeypatch.setattr(caches, "SPARE", 4)
    decoder = changed(decoder, windows=(6, 6))
    text = tokens(decoder.config, 40)
    cache = KeyValueCache(decoder.config, 1, 4, "cpu", torch.float32)
    slot = cache.reserve()
    read(decoder, cache, [slot], [text[:24]])
    read(decoder, cache, [slot], [[7, 7, 7]])
    assert cache.truncate(slot, 24) == 24
    (logits,) = read(decoder, cache, [slot], [text[24:30]])
    torch.testing.assert_close(logits, decoder(torch.tensor([text[:30]]))[0, 24:], rtol=0, atol=1e-4)
    assert cache.truncate(slot, 20) == 0
    (logits,) = read(decoder, cache, [slot], [text[:9]])
    torch.testing.assert_close(logits, decoder(torch.tensor([text[:9]]))[0], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("scaling", [None, RopeScaling("yarn", 4.0, 16)])
def test_past_the_window_the_sinks_and_the_last_tokens_are_read_as_one_short_text(decoder, scaling):
    """In a decoder of one layer, keys and values depend on their token alone; so, by Xiao et al. (2023, fig. 4), every
    token is read as the last of a text of the sinks and the window, positions without a gap."""
    sinks, window = 3, 10
    decoder = changed(decoder, num_layers=1, rope_scaling=scaling)
    text = tokens(decoder.config, 200)
    cache = KeyValueCache(decoder.config, 2, 4, "cpu", torch.float32, settings=CacheSettings("", sinks, window))
    slot, at = cache.reserve(), 0
    for count in (5, 4, 10, 1, 1, 1, 7, *[1] * 170):
        (logits,) = read(decoder, cache, [slot], [text[at : at + count]])
        at += count
        short = text[:at] if at <= sinks + window else [*text[:sinks], *text[at - window : at]]
        torch.testing.assert_close(logits[-1], decoder(torch.tensor([short]))[0, -1], rtol=0, atol=1e-4)
    assert max(kept.length for kept in cache.keys) == sinks + window
    with pytest.raises(ValueError, match="11 tokens at once do not fit the cache's window of 10"):
        cache.append([slot], [11], 11)


def test_with_sinks_a_text_goes_on_past_the_context_and_until_then_is_the_same(model):
    prompt = tokens(model.config, 30)
    plain = model.generate(prompt, temperature=0, max_tokens=30).result()
    streamed = model.generate(prompt, temperature=0, max_tokens=150, cache=CacheSettings(sinks=4)).result()
    assert len(streamed.tokens) == 150 or streamed.finish_reason == "stop"
    assert streamed.tokens[:30] == plain.tokens[:30]
    long = tokens(model.config, 3 * model.config.context)
    runner = model.runner(cache=CacheSettings(sinks=4, window=20))
    job = runner.admit(TextRequest(long, Settings(max_tokens=5)))
    runner.advance([job])
    assert len(job.tokens) == 1
    with pytest.raises(ValueError, match="a cache with sinks drops what is read ahead of a text"):
        model.runner(speculate="ngram", cache=CacheSettings(sinks=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_off_by_half_a_step_of_each_tokens_own_scale(dtype):
    new = torch.randn(2, 3, 50, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    new[0, 1, 7] = 0
    new *= torch.logspace(-3, 3, 50)[:, None].to(dtype)
    kept = KeptInBytes((2, 3, 64, 16), "cpu", dtype)
    kept.write_run(0, 5, new[0])
    slots, places = torch.ones(50, dtype=torch.int64), torch.arange(50)
    kept.write_at(slots, places, new[1].transpose(0, 1))
    read_back = torch.stack((kept.read([0], torch.tensor([0]), 64)[0, :, 5:55], kept.read([1], slots[:1], 50)[0]))
    step = new.float().abs().amax(-1, keepdim=True) / 127
    rounding = 0 if dtype == torch.float32 else 2**-8  # of the number that is read
    assert ((read_back.float() - new.float()).abs() <= step * (0.51 + 127 * rounding) + 1e-8).all()
    plain = Kept((2, 3, 64, 16), "cpu", dtype)
    assert kept.num_bytes / plain.num_bytes == (16 + dtype.itemsize) / (16 * dtype.itemsize)


@torch.no_grad()
def test_a_cache_of_eight_bits_reads_nearly_the_same(decoder):
    text = tokens(decoder.config, 60)
    cache = KeyValueCache(decoder.config, 1, 4, "cpu", torch.float32, settings=CacheSettings("int8"))
    slot, other = cache.reserve(), cache.reserve()
    parts = [read(decoder, cache, [slot], [text[start : start + 5]])[0] for start in range(0, 55, 5)]
    cache.fork(slot, other)
    parts += [read(decoder, cache, [slot, other], [text[55:], text[55:]])[1]]
    exact, packed = decoder(torch.tensor([text]))[0].log_softmax(-1), torch.cat(parts).log_softmax(-1)
    divergence = (exact.exp() * (exact - packed)).sum(-1)
    assert divergence.mean() < 1e-2 * (-(exact.exp() * exact).sum(-1)).mean()
    assert not torch.allclose(exact, packed, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "int4"}, "the cache's dtype must be int8, or none, not 'int4'"),
        ({"sinks": -1}, "the cache's sinks must be a whole number of tokens >= 0, not -1"),
        ({"sinks": True}, "the cache's sinks must be a whole number of tokens >= 0, not True"),
        ({"window": 9}, "the cache's window needs sinks"),
        ({"sinks": 4, "window": 61}, r"sinks \(4\) and window \(61\) must fit the context of 64"),
        ({"sinks": 64}, r"sinks \(64\) and window \(1\) must fit the context of 64"),
    ],
)
def test_impossible_settings_of_a_cache_are_refused(model, settings, said):
    with pytest.raises(ValueError, match=said):
        model.runner(cache=CacheSettings(**settings))


def test_learned_positions_end_with_the_context(model):
    learned = Decoder(replace(model.config, position="learned"))
    with pytest.raises(ValueError, match="sinks must be 0: the model's positions are learned"):
        TextRunner(learned, model.tokenizer, cache=CacheSettings(sinks=4))
