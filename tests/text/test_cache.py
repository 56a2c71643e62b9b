from dataclasses import replace

import pytest
import torch

from diptych.text.cache import KeyValueCache
from diptych.text.decoder import Decoder


def read(decoder, cache, slots, rows):
    """One call with ragged rows; the logits of each row's own tokens."""
    counts = [len(row) for row in rows]
    width = max(counts)
    new = cache.append(slots, counts, width)
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    logits = decoder(tokens, positions=new.positions, cache=new)
    return [logits[index, :count] for index, count in enumerate(counts)]


@torch.no_grad()
def test_cached_reading_equals_reading_at_once(decoder, config):
    """Three sequences of different lengths, read in ragged pieces, against the decoder without a cache."""
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(config.vocab_size, (length,), generator=generator).tolist() for length in (40, 7, 23)]
    cache = KeyValueCache(config, slots=1, length=4, device="cpu", dtype=torch.float32)  # it has to grow both ways
    slots = [cache.reserve() for _ in sequences]
    seen: list[list[torch.Tensor]] = [[], [], []]
    calls = [  # what each call reads of each sequence
        ((0, 5), (0, 1), (0, 9)),
        ((5, 20), (1, 6), (9, 10)),
        ((20, 21), (6, 7), (10, 10)),
        ((21, 40), (7, 7), (10, 23)),
    ]
    for ranges in calls:
        active = [index for index, (start, end) in enumerate(ranges) if end > start]
        rows = [sequences[index][slice(*ranges[index])] for index in active]
        for index, logits in zip(active, read(decoder, cache, [slots[index] for index in active], rows), strict=True):
            seen[index].append(logits)
    for sequence, parts in zip(sequences, seen, strict=True):
        torch.testing.assert_close(torch.cat(parts), decoder(torch.tensor([sequence]))[0], rtol=0, atol=1e-4)


def test_a_token_is_turned_for_its_prompt_and_place_however_the_text_is_read(config):
    """All of a prompt by its whole length, though it comes in pieces; what follows by the length that it makes, though
    several are tried at a time."""
    cache = KeyValueCache(config, 2, 4, "cpu", torch.float32)
    slots = [cache.reserve(prompt) for prompt in (20, 3)]
    for counts in ((12, 3), (8, 4), (1, 6)):
        call = cache.append(slots, counts, max(counts))
        for row, prompt in enumerate((20, 3)):
            places = call.positions[row, : counts[row]].tolist()
            assert call.lengths[row, : counts[row]].tolist() == [max(prompt, place + 1) for place in places]


@torch.no_grad()
def test_a_long_text_reads_on_equally_in_any_company(config):
    """Past the steps that the cache grows by; beside a short text, whose row reads what lies past its own end; alone in
    a cache that has become much too large for it; in slots that are not a row."""
    torch.manual_seed(5)
    wide = replace(config, context=1200)
    decoder = Decoder(wide).eval()
    texts = [torch.randint(wide.vocab_size, (length,)).tolist() for length in (700, 3, 40)]
    cache = KeyValueCache(wide, slots=3, length=8, device="cpu", dtype=torch.float32)
    slots = [cache.reserve() for _ in texts]
    for slot, text in zip(slots, texts, strict=True):
        read(decoder, cache, [slot], [text])
    for token, which in enumerate(([0, 1], [2, 0], [1], [0, 1, 2], [2])):
        for index in which:
            texts[index].append(token)
        found = read(decoder, cache, [slots[index] for index in which], [[token]] * len(which))
        for index, logits in zip(which, found, strict=True):
            torch.testing.assert_close(logits, decoder(torch.tensor([texts[index]]))[0, -1:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_reused_slot_remembers_nothing(decoder, config):
    cache = KeyValueCache(config, slots=1, length=16, device="cpu", dtype=torch.float32)
    slot = cache.reserve()
    read(decoder, cache, [slot], [[5, 6, 7, 8, 9]])
    cache.release(slot)
    again = cache.reserve()
    assert again == slot
    (logits,) = read(decoder, cache, [again], [[3, 4]])
    torch.testing.assert_close(logits, decoder(torch.tensor([[3, 4]]))[0], rtol=0, atol=1e-5)


def test_the_cache_ends_with_the_context(config):
    cache = KeyValueCache(config, slots=1, length=8, device="cpu", dtype=torch.float32)
    slot = cache.reserve()
    cache.append([slot], [config.context], config.context)
    assert cache.length == config.context
    with pytest.raises(ValueError, match="65 tokens does not fit the context of 64"):
        cache.append([slot], [1], 1)


@torch.no_grad()
def test_a_fork_reads_on_as_if_it_had_read_everything_itself(decoder, config):
    cache = KeyValueCache(config, slots=2, length=4, device="cpu", dtype=torch.float32)
    trunk, branch = cache.reserve(), cache.reserve()
    read(decoder, cache, [trunk], [[5, 6, 7, 8, 9]])
    cache.fork(trunk, branch)
    endings = [[10, 11], [20, 21, 22]]
    for ending, logits in zip(endings, read(decoder, cache, [trunk, branch], endings), strict=True):
        whole = decoder(torch.tensor([[5, 6, 7, 8, 9, *ending]]))[0, 5:]
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-4)


@torch.no_grad()
def test_tokens_that_were_taken_back_leave_no_trace(decoder, config):
    """As when drafted tokens are rejected: cut back, read other ones, against a text that never had them."""
    cache = KeyValueCache(config, slots=1, length=4, device="cpu", dtype=torch.float32)
    slot = cache.reserve()
    read(decoder, cache, [slot], [[5, 6, 7, 30, 31, 32, 33]])
    cache.truncate(slot, 3)
    (logits,) = read(decoder, cache, [slot], [[8, 9]])
    torch.testing.assert_close(logits, decoder(torch.tensor([[5, 6, 7, 8, 9]]))[0, 3:], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="a sequence of 5 tokens cannot be cut to 6"):
        cache.truncate(slot, 6)
