"""Buckets: what sizes there are, which a picture goes to, how it is cut, and whose turn it is at a step."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.bucket_order import BucketOrder
from diptych.data.buckets import bucket_sizes, fill_buckets, fit, nearest
from diptych.data.pictures import open_pictures
from diptych.data.trouble import Troubles


@pytest.mark.parametrize(("pixels", "multiple", "widest"), [(128**2, 16, 2.0), (1024**2, 64, 3.0), (5000, 24, 1.5)])
def test_sizes_are_all_that_the_rules_allow(pixels: int, multiple: int, widest: float) -> None:
    """Against every pair of multiples, asked one by one whether the rules hold for it."""
    sides = range(multiple, pixels // multiple + 1, multiple)

    def fits(width: int, height: int) -> bool:
        return width * height <= pixels

    square = max(side for side in sides if fits(side, side))
    expected = {(square, square)} | {
        (w, h)
        for w in sides
        for h in sides
        if fits(w, h) and not fits(w + multiple, h) and not fits(w, h + multiple) and max(w, h) <= widest * min(w, h)
    }
    found = bucket_sizes(pixels, multiple, widest)
    assert set(found) == expected
    assert [(h, w) for w, h in found][::-1] == found, "tall and wide alike"


def test_known_sizes() -> None:
    assert bucket_sizes(128**2, 16) == [(96, 160), (112, 144), (128, 128), (144, 112), (160, 96)]
    with pytest.raises(ValueError, match="must hold a square of its multiple, 16"):
        bucket_sizes(255, 16)


def test_the_nearest_aspect_is_nearest_for_wide_and_tall_alike() -> None:
    sizes = bucket_sizes(128**2, 16)
    wanted = np.random.default_rng(0).integers(10, 1000, (200, 2))
    chosen = nearest(sizes, wanted)
    assert np.array_equal(nearest(sizes, wanted[:, ::-1]), len(sizes) - 1 - chosen)
    for (width, height), bucket in zip(wanted, chosen, strict=True):
        stretch = [max(width / height / (w / h), (w / h) / (width / height)) for w, h in sizes]
        assert stretch[bucket] == min(stretch)


def folder_of(path: Path, sizes: list[tuple[int, int]]) -> Path:
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(path / f"{number:03d}.png")
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_each_picture_is_in_one_bucket_and_broken_ones_in_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [(10, 10), (20, 10), (10, 20), (11, 10), (30, 10)])
    (folder / "005.png").write_bytes(b"no picture")
    for _ in range(2):  # sizes read now, and sizes kept
        troubles = Troubles()
        buckets = fill_buckets(open_pictures(folder), bucket_sizes(128**2, 16), troubles=troubles)
        found = {size: members.tolist() for size, members in zip(buckets.sizes, buckets.members, strict=True)}
        assert found == {(96, 160): [2], (128, 128): [0, 3], (160, 96): [1, 4]}
        assert (troubles.seen, troubles.count) == (6, 1)
        assert "005.png" in troubles.named[0].where


def test_buckets_that_are_too_small_give_their_pictures_to_a_neighbour(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [(10, 10)] * 4 + [(12, 10)] + [(17, 10)] * 3)
    pictures, sizes = open_pictures(folder), bucket_sizes(128**2, 16)
    few = fill_buckets(pictures, sizes, least=2)
    assert dict(zip(few.sizes, map(list, few.members), strict=True)) == {
        (128, 128): [0, 1, 2, 3, 4],
        (160, 96): [5, 6, 7],
    }
    one = fill_buckets(pictures, sizes, least=9)
    assert [len(members) for members in one.members] == [8], "one is left, however small"


def test_a_picture_is_scaled_to_cover_and_cut_in_the_middle() -> None:
    """Three stripes: the middle one, as wide as the bucket, is all that is left of a picture thrice as wide."""
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32] = 200
    assert np.array_equal(fit(stripes, (16, 16)), np.full((16, 16, 3), 200, np.uint8))
    assert not fit(stripes, (16, 16), (0.0, 0.5)).any()
    inner = fit(stripes, (8, 8))[:, 2:-2].astype(int)
    assert (abs(inner - 200) <= 1).all(), "made smaller, and the filter reaches past the cut as it does inside"
    assert fit(stripes, (40, 24)).shape == (24, 40, 3)


def test_a_cut_picture_is_what_pillow_makes_of_the_same_box() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 57, 3), dtype=np.uint8)
    box = ((57 - 31 * 1.5) / 2, 0, (57 + 31 * 1.5) / 2, 31)
    expected = np.asarray(Image.fromarray(pixels).resize((24, 16), Image.Resampling.LANCZOS, box=box))
    assert np.array_equal(fit(pixels, (24, 16)), expected)
    assert np.array_equal(fit(pixels, (57, 31)), pixels), "of the right size already"


@pytest.mark.parametrize("width", [1, 7, 333, 1023])
@pytest.mark.parametrize("height", [1, 13, 511])
def test_any_picture_fits_any_bucket(width: int, height: int) -> None:
    """Rounding never asks for a point outside the picture."""
    for size in bucket_sizes(64**2, 16):
        for place in ((0.0, 0.0), (1.0, 1.0), (0.3, 0.9)):
            assert fit(np.zeros((height, width, 3), np.uint8), size, place).shape == (size[1], size[0], 3)


# ---- order -----------------------------------------------------------------------------------------------------


def seen(order: BucketOrder, steps: range) -> list[tuple[int, int]]:
    """(bucket, member) of every row of these steps."""
    rows = []
    for step in steps:
        bucket, first = order.at(step)
        rows += [(bucket, order.member(bucket, first + row)[0]) for row in range(order.batch)]
    return rows


def test_an_epoch_has_every_picture_once_where_batches_come_out_even() -> None:
    order = BucketOrder((12, 4, 8), batch=4, seed=5)
    everything = [(bucket, member) for bucket, count in enumerate(order.counts) for member in range(count)]
    assert order.steps(1) == 6
    epochs = [seen(order, range(6 * epoch, 6 * epoch + 6)) for epoch in range(3)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]
    turns = [[bucket for bucket, _ in epoch[::4]] for epoch in epochs]
    assert len({tuple(one) for one in turns}) > 1, "the buckets take turns in an order of each epoch's own"


@pytest.mark.parametrize("counts", [(13, 5, 3), (7,), (3, 100), (1, 2)])
def test_after_some_epochs_no_picture_was_seen_too_often_or_forgotten(counts: tuple[int, ...]) -> None:
    """Never more than E times; fewer than a batch of each bucket wait at E - 1 for what fills their batch."""
    order = BucketOrder(counts, batch=4, seed=1)
    for epochs in (1, 2, 5, 9):
        rows = seen(order, range(order.steps(epochs)))
        for bucket, count in enumerate(counts):
            times = np.bincount([member for where, member in rows if where == bucket], minlength=count)
            assert times.max() <= epochs
            waiting = int((epochs - times).sum())
            assert 0 <= waiting < 4
            if count >= 4:
                assert times.min() >= epochs - 1


def test_a_step_is_found_without_the_steps_before_it() -> None:
    """Against walking: the same steps from the front, and from fresh objects in any order."""
    counts, batch = (13, 5, 3), 4
    walked = seen(BucketOrder(counts, batch, seed=2), range(60))
    for step in (59, 0, 31, 7):
        assert seen(BucketOrder(counts, batch, seed=2), range(step, step + 1)) == walked[step * 4 : step * 4 + 4]
    assert seen(BucketOrder(counts, batch, seed=3), range(60)) != walked
    assert BucketOrder(counts, batch, seed=2).at(10**12)[0] in range(3), "far away is as near as the first"


def test_one_bucket_is_one_row_of_permutations() -> None:
    """What recipes over composed scenes have always read: batches run on over the end of an epoch."""
    from diptych.core.randomness import generator

    order = BucketOrder((10,), batch=4, seed=7)
    expected = [int(m) for epoch in range(3) for m in generator(seed=7, step=epoch, stream=1).permutation(10)]
    assert [member for _, member in seen(order, range(7))] == expected[:28]
