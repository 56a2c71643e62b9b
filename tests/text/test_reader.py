import pytest
import torch

from diptych.core.few_queries import FEW
from diptych.text.reader import Part, Reader, together


class Counting(Reader):
    """Notes the shape of each call; all go through torch, where they are seen."""

    def __init__(self, decoder):
        super().__init__(decoder)
        self._few_tokens = None
        self.shapes = []
        decoder = self.decoder

        def counted(tokens, **settings):
            self.shapes.append(tuple(tokens.shape))
            return decoder(tokens, **settings)

        counted.embedding, counted.training = decoder.embedding, False
        self.decoder = counted


def test_each_part_gets_the_logits_that_it_wants(decoder):
    """Ragged parts in two calls, of one to three places each, against reading everything at once."""
    reader = Reader(decoder)
    texts = [list(range(5, 11)), [40, 41, 42], [7]]
    slots = [reader.cache.reserve() for _ in texts]
    reader.read([Part(slot, text) for slot, text in zip(slots, texts, strict=True)])
    more = [[20], [21, 22, 23, 24], [25, 26]]
    parts = [Part(slot, new, wanted) for slot, new, wanted in zip(slots, more, (1, 3, 2), strict=True)]
    for text, part, logits in zip(texts, parts, reader.read(parts), strict=True):
        whole = decoder(torch.tensor([[*text, *part.tokens]]))[0, -part.wanted :]
        torch.testing.assert_close(logits, whole.detach(), rtol=0, atol=1e-4)


def test_texts_that_begin_the_same_read_it_once(decoder):
    reader, prompt = Counting(decoder), [5, 6, 7, 8]
    slots = [reader.cache.reserve() for _ in range(4)]
    logits = reader.read([Part(slot, prompt if slot < 3 else [9, 9]) for slot in slots])
    assert reader.shapes == [(2, 4)]
    assert torch.equal(logits[0], logits[1])
    assert [reader.cache.lengths[slot] for slot in slots] == [4, 4, 4, 2]
    endings = [[10], [11], [10], [12]]
    for slot, ending, row in zip(
        slots,
        endings,
        reader.read([Part(slot, ending) for slot, ending in zip(slots, endings, strict=True)]),
        strict=True,
    ):
        whole = decoder(torch.tensor([(prompt if slot < 3 else [9, 9]) + ending]))[0, -1:]
        torch.testing.assert_close(row, whole.detach(), rtol=0, atol=1e-4)
    assert reader.shapes == [(2, 4), (4, 1)]  # the same token after different texts is not the same


def test_a_long_prompt_is_not_read_beside_texts_that_read_a_token(decoder):
    reader = Counting(decoder)
    slots = [reader.cache.reserve() for _ in range(3)]
    reader.read([Part(slot, tokens) for slot, tokens in zip(slots, ([5], list(range(10, 60)), [6, 7]), strict=True)])
    assert reader.shapes == [(1, 50), (2, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_padding_is_bounded(seed):
    """Every part is in one call, and none is padded to more than twice its length, or to what is short anyway."""
    counts = (2 ** (9 * torch.rand(12, generator=torch.Generator().manual_seed(seed)))).int().tolist()
    groups = together(dict(enumerate(counts)))
    assert sorted(index for group in groups for index in group) == list(range(12))
    for group in groups:
        width = max(counts[index] for index in group)
        assert all(width <= max(FEW, 2 * counts[index]) for index in group)
    assert len(groups) <= 6
