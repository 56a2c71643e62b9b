import itertools
import pickle

import numpy as np
import pytest
import torch

from diptych.core.randomness import generator
from diptych.data.packing import IGNORED, LAYOUT, PERIOD, Mixture, MixtureSource, pack
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.objective import document_mask, next_token_loss


def documents(count, seed=0, longest=60, first=0, shortest=2):
    """Documents whose tokens all differ, so that each token can be followed; lengths below `longest`."""
    lengths = np.random.default_rng(seed).integers(shortest, longest, count)
    numbers = itertools.count(first)
    return [[next(numbers) for _ in range(length)] for length in lengths]


def test_every_token_but_a_first_is_a_target_once():
    """Also in documents of several rows: chunks share a token, so none is lost and none is asked twice."""
    chosen = documents(40, longest=90)
    packed = pack(chosen, context=24, seed=0)
    targets = [int(target) for target in packed.rows(np.arange(packed.num_rows)).targets.flatten() if target != IGNORED]
    assert sorted(targets) == sorted(token for document in chosen for token in document[1:])
    assert packed.num_targets == len(targets)


def test_a_target_follows_its_token_in_the_same_document():
    packed = pack(documents(60), context=64, seed=3)
    batch = packed.rows(np.arange(packed.num_rows))
    follows = batch.targets == batch.tokens + 1  # tokens of one document are consecutive numbers
    assert torch.equal(batch.targets != IGNORED, follows & (batch.targets != IGNORED))
    for row in range(packed.num_rows):
        for number in batch.segments[row].unique():
            inside = batch.segments[row] == number
            if number > 0:
                assert torch.equal(batch.positions[row][inside], torch.arange(int(inside.sum())))
                assert (batch.tokens[row][inside].diff() == 1).all()
    assert (batch.targets[batch.segments == 0] == IGNORED).all()


def test_rows_are_nearly_full():
    packed = pack(documents(2000, longest=80), context=128, seed=0)
    assert packed.num_targets / (packed.num_rows * 128) > 0.95


def best_fit(token_documents, context, seed):
    """Packing as one would say it: each chunk looks through all spaces for the least one that holds it."""
    width = context + 1
    chunks = [document[at : at + width] for document in token_documents for at in range(0, len(document) - 1, context)]
    generator(seed=seed, stream=LAYOUT).shuffle(chunks)
    rows, by_space = [], [[] for _ in range(width + 1)]
    for chunk in sorted(chunks, key=len, reverse=True):
        space = next((space for space in range(len(chunk), width) if by_space[space]), width)
        if space == width:
            rows.append([])
            by_space[width].append(len(rows) - 1)
        row = by_space[space].pop()
        rows[row].append(chunk)
        by_space[space - len(chunk)].append(row)
    return rows


@pytest.mark.parametrize(("count", "longest", "context"), [(1, 9, 1), (300, 5, 2), (500, 60, 64), (200, 300, 40)])
def test_the_quick_packing_is_the_plain_one(count, longest, context):
    """Row by row, place by place: recipes that were run before read the same batches."""
    chosen = [*documents(count, seed=4, longest=longest), [7], []]
    packed = pack(chosen, context, seed=6)
    batch = packed.rows(np.arange(packed.num_rows))
    expected = best_fit(chosen, context, seed=6)
    assert packed.num_rows == len(expected)
    for index, row in enumerate(expected):
        tokens = [token for chunk in row for token in chunk]
        numbers = [number for number, chunk in enumerate(row, 1) for _ in chunk]
        places = [place for chunk in row for place in range(len(chunk))]
        for part, wanted in zip(
            (batch.tokens, batch.segments, batch.positions), (tokens, numbers, places), strict=True
        ):
            assert part[index].tolist() == (wanted + [0] * (context + 1 - len(wanted)))[:context]


@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 2, 3, 4, 5, 6), (0, 4, 6), (0, 0, 5, 6)])
def test_any_split_of_a_steps_rows_gives_the_same_rows(cuts):
    corpora = [pack(documents(50, seed=seed), 32, 0) for seed in (1, 2)]
    source = pickle.loads(pickle.dumps(MixtureSource(Mixture(corpora, [3, 1]), 6, 9)))
    for step in (0, 200):
        parts = [source.batch(step, range(*cut)) for cut in itertools.pairwise(cuts)]
        parts = [part._replace(segments=part.segments.expand_as(part.tokens)) for part in parts]
        whole = Mixture(corpora, [3, 1]).batch(step, 6, 9)
        assert all(torch.equal(torch.cat(part), all) for *part, all in zip(*parts, whole, strict=True))
    assert not source.troubles()


def test_rows_of_one_document_each_need_no_numbers():
    """And their loss is the one that they have with a mask."""
    torch.manual_seed(0)
    long, short = [pack(documents(6, shortest=size, longest=size + 1), 32, 0) for size in (33, 9)]
    alone, mixed = (MixtureSource(Mixture([rows], [1]), 2, 9).batch(0, range(2)) for rows in (long, short))
    assert alone.segments.tolist() == [[1]]
    assert mixed.segments.shape == mixed.tokens.shape
    decoder = Decoder(DecoderConfig.from_depth(1, vocab_size=400, context=32)).double()
    masked = alone._replace(segments=torch.ones_like(alone.tokens))
    losses = [next_token_loss(decoder, batch)[0].item() for batch in (alone, masked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_document_changes_no_other_documents_logits():
    """Through a real decoder: only the row and the segment of the changed document may differ."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig.from_depth(1, vocab_size=400, context=40)).eval()
    chosen = documents(12, longest=20)
    batch = pack(chosen, context=40, seed=0).batch(0, 3, seed=0)
    changed = batch.tokens.clone()
    changed[0][batch.segments[0] == 2] = 399

    def logits(tokens):
        return decoder(tokens, positions=batch.positions, mask=document_mask(batch.segments))

    before, after = logits(batch.tokens), logits(changed)
    untouched = torch.ones_like(batch.tokens, dtype=torch.bool)
    untouched[0] = batch.segments[0] != 2
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[~untouched], after[~untouched])


def test_an_epoch_reads_each_row_once_and_the_next_in_another_order():
    packed = pack(documents(100, longest=33), context=32, seed=0)  # none is so long that it would be cut
    first, second = (
        packed.at(np.arange(packed.num_rows) + epoch * packed.num_rows, seed=5).tokens.tolist() for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == sorted(packed.rows(np.arange(packed.num_rows)).tokens.tolist())
    assert first != second


def test_a_batch_depends_on_its_step_alone():
    corpora = [pack(documents(50, seed=seed), 32, 0) for seed in (1, 2)]
    for source in (corpora[0], Mixture(corpora, [3, 1])):
        forward = [source.batch(step, 4, seed=9) for step in range(6)]
        for step in (4, 1, 5):
            assert all(
                torch.equal(here, there) for here, there in zip(source.batch(step, 4, 9), forward[step], strict=True)
            )
        large = source.batch(0, 8, seed=9)
        assert torch.equal(large.tokens, torch.cat((forward[0].tokens, forward[1].tokens)))
        assert not torch.equal(source.batch(0, 4, seed=10).tokens, forward[0].tokens)


def test_a_mixture_keeps_the_shares_of_targets_and_reads_each_corpus_in_turn():
    """The second corpus has half-empty rows: its share of rows must be larger than its share of targets."""
    full = pack([list(range(33))] * 200, 32, 0)
    sparse = pack([[1000 + index] * 18 for index in range(300)], 32, 0)
    mixture = Mixture([full, sparse], [3, 1])
    batch = mixture.batch(0, PERIOD, seed=2)
    real = batch.targets != IGNORED
    from_sparse = int((real & (batch.tokens >= 1000)).sum())
    assert from_sparse / int(real.sum()) == pytest.approx(0.25, abs=0.005)
    rows = batch.tokens[batch.tokens[:, 0] >= 1000][:, 0].tolist()
    assert len(set(rows[:300])) == 300  # an epoch without repetition
    assert sum(mixture.quotas) == PERIOD
    window = (batch.tokens[:100, 0] >= 1000).sum()
    assert 25 < int(window) < 50  # evenly spread: about 100 * quota / PERIOD


def test_nothing_to_pack_is_said():
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([[1]], 8, 0)
    with pytest.raises(ValueError, match="weights must be finite numbers > 0"):
        Mixture([pack([[1, 2, 3]], 8, 0)], [0.0])


def test_each_epoch_cuts_a_long_document_elsewhere_and_loses_only_what_is_before_the_first_cut():
    context, long = 24, list(range(1000, 1500))
    packed = pack([long, *documents(10, longest=20)], context, 0)
    is_long = packed.layout.lengths[packed.layout.rows[:-1]] == context + 1
    starts = []
    for epoch in range(6):
        rows = packed.at(np.arange(epoch * packed.num_rows, (epoch + 1) * packed.num_rows), 3)
        targets = [token for token in rows.targets.flatten().tolist() if token >= 1000]
        first = min(targets) - 1
        assert set(targets) == set(range(first + 1, 1500)), "no token between is left out"
        assert first - 1000 < context
        starts.append(first)
        for tokens, following in zip(rows.tokens.tolist(), rows.targets.tolist(), strict=True):
            assert all(target in (token + 1, IGNORED) for token, target in zip(tokens, following, strict=True))
    assert is_long.sum() == len(long) // context
    assert starts[0] == 1000, "the first epoch reads everything"
    assert len(set(starts)) > 3
