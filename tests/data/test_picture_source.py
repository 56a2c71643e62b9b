"""Sources of pictures and of their latents: a row is a function of seed, step and row, over whatever is broken."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.tokenizer import Tokenizer
from diptych.core.weights import digest
from diptych.data import latents as latents_module
from diptych.data.buckets import Buckets, bucket_sizes, fill_buckets, fit
from diptych.data.embeddings import embeddings_of
from diptych.data.latents import BucketLatents, LatentSource, bucket_latents, encoder_digest, latents_of
from diptych.data.picture_source import PictureSource
from diptych.data.pictures import PictureSet, open_pictures
from diptych.data.trouble import TooManyBroken, Troubles
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.encoders import EncoderConfig, TextEncoder, encode_prompts

SIZES = [(24, 16)] * 9 + [(16, 24)] * 7 + [(16, 16)] * 8


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIPTYCH_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 pictures of noise of three shapes; each caption is its number."""
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number:03d}.png")
        (tmp_path / f"{number:03d}.txt").write_text(f"number {number}")
    return tmp_path


def in_buckets(pictures: PictureSet) -> Buckets:
    return fill_buckets(pictures, bucket_sizes(16 * 24, 8), least=4)


def source_of(folder: Path, **settings: object) -> PictureSource:
    pictures = open_pictures(folder)
    return PictureSource(pictures, in_buckets(pictures), **({"batch": 4, "seed": 3} | settings))  # type: ignore[arg-type]


def same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(here, there) for here, there in zip(one, other, strict=True))


def tokens_of(length: int = 24) -> partial[tuple[torch.Tensor, torch.Tensor]]:
    return partial(encode_prompts, Tokenizer.train(["number one"], 258), length=length, cuts=True)


def tiny_autoencoder(seed: int = 0) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Autoencoder(AutoencoderConfig(latent_channels=4, fold=4, widths=(8, 8), decoder_blocks=1))
    return model.requires_grad_(False).eval()


def test_rows_are_pictures_cut_to_their_bucket_with_their_captions(folder: Path) -> None:
    """Against Pillow: each row is the file that `indices` names, in -1..1."""
    source = source_of(folder, tokenize=tokens_of())
    for step in range(8):
        batch = source.batch(step, range(4))
        size = (batch.pictures.shape[3], batch.pictures.shape[2])
        captions = source.captions(step, range(4))
        for row, index in enumerate(batch.indices.tolist()):
            pixels = np.asarray(Image.open(folder / f"{index:03d}.png"))
            expected = torch.from_numpy(fit(pixels, size).copy()).permute(2, 0, 1).float() / 127.5 - 1
            assert torch.equal(batch.pictures[row], expected)
            assert captions[row] == f"number {index}"
        assert same((batch.tokens, batch.mask), tokens_of()(captions))


def test_an_epoch_is_all_pictures(folder: Path) -> None:
    """With batches of one, so that nothing waits for a batch; the next epoch is another order."""
    source = source_of(folder, batch=1)
    epochs = [[int(source.batch(24 * n + step, range(1)).indices) for step in range(24)] for n in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]


def test_every_split_of_a_step_gives_the_same_rows(folder: Path) -> None:
    """With everything that is drawn: cuts, mirrors, captions left out."""
    settings = {
        "mirrors": True,
        "cuts": "anywhere",
        "tokenize": tokens_of(),
        "caption_dropout": 0.4,
    }
    whole = source_of(folder, **settings)
    for step in (0, 5, 17):
        batch = whole.batch(step, range(4))
        for parts in ([range(1), range(1, 4)], [range(2), range(2, 4)], [range(n, n + 1) for n in range(4)]):
            copy = pickle.loads(pickle.dumps(source_of(folder, **settings)))  # and in another process, from any step
            split = [copy.batch(step, part) for part in parts]
            assert same(batch, tuple(torch.cat(columns) for columns in zip(*split, strict=True)))
    assert not same(batch, source_of(folder, **settings, seed=4).batch(17, range(4)))
    assert whole.batch(0, range(0)).pictures.shape[0] == 0
    with pytest.raises(ValueError, match="a batch of 4 rows has no rows 3 to 4"):
        whole.batch(0, range(3, 5))


def test_captions_are_left_out_at_the_rate_asked_for(folder: Path) -> None:
    source = source_of(folder, caption_dropout=0.3)
    empty = [caption == "" for step in range(100) for caption in source.captions(step, range(4))]
    assert np.mean(empty) == pytest.approx(0.3, abs=0.07)  # three standard deviations of 400 draws


def test_a_broken_picture_is_replaced_by_the_next_one_and_told_once(folder: Path) -> None:
    """Against the same run with nothing broken: only its rows differ, and they hold the next whole row's picture."""
    before = source_of(folder)
    pictures = before.rows.pictures
    (folder / "010.png").write_bytes((folder / "010.png").read_bytes()[:200])
    after = PictureSource(pictures, before.rows.buckets, batch=4, seed=3)
    copy = pickle.loads(pickle.dumps(after))
    replaced, order = 0, before.rows.order
    for step in range(30):
        bucket, first = order.at(step)
        due = [int(before.rows.buckets.members[bucket][order.member(bucket, first + row)[0]]) for row in range(6)]
        expected = [next(index for index in due[row:] if index != 10) for row in range(4)]
        assert after.batch(step, range(4)).indices.tolist() == expected
        assert copy.batch(step, range(2, 4)).indices.tolist() == expected[2:]
        replaced += due[:4].count(10)
    assert replaced > 3
    (trouble,) = after.troubles()
    assert "010.png" in trouble.where
    assert "not a picture that can be read" in trouble.why
    assert not after.troubles()


def test_a_bucket_of_broken_pictures_stops(folder: Path) -> None:
    source = source_of(folder)
    for number in range(24):
        (folder / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="pictures in a row are broken, the last of them"):
        source.batch(0, range(1))
    assert source.troubles()


# ---- latents ---------------------------------------------------------------------------------------------------


def encoded(autoencoder: Autoencoder, folder: Path, index: int, size: tuple[int, int], *, flip: bool) -> torch.Tensor:
    pixels = fit(np.asarray(Image.open(folder / f"{index:03d}.png")), size)
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return autoencoder.encode(picture.flip(-1) if flip else picture)[0]


def test_latents_come_in_the_order_of_the_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against encoding each picture alone, float16 apart; the mirrored ones are encoded mirrored."""
    monkeypatch.setattr(latents_module, "CHUNK", 3)
    monkeypatch.setattr(latents_module, "AT_ONCE", 2)
    pictures, autoencoder = open_pictures(folder), tiny_autoencoder()
    buckets = in_buckets(pictures)
    latents = bucket_latents(autoencoder, pictures, buckets, torch.float32, has_mirrored=True)
    source = LatentSource(pictures, buckets, latents, batch=4, seed=3, mirrors=True, tokenize=tokens_of())
    of_pictures = source_of(folder, mirrors=True, tokenize=tokens_of())
    for step in range(12):
        batch, shown = source.batch(step, range(4)), of_pictures.batch(step, range(4))
        assert same(batch[1:], shown[1:])
        assert same(tuple(part[1:3] for part in batch), source.batch(step, range(1, 3)))
        expected = autoencoder.encode(shown.pictures)
        assert (batch.latents - expected).abs().max() < 2e-3 * expected.abs().max()


def test_mirrored_latents_must_be_there(folder: Path) -> None:
    pictures = open_pictures(folder)
    buckets = in_buckets(pictures)
    with pytest.raises(ValueError, match="needs latents of the mirrored pictures"):
        LatentSource(pictures, buckets, BucketLatents((), ()), batch=1, seed=0, mirrors=True)


def test_latents_are_encoded_anew_when_the_encoder_changes_and_only_then(folder: Path, cache: Path) -> None:
    pictures, autoencoder = open_pictures(folder), tiny_autoencoder()

    def name() -> str:
        return latents_of(autoencoder, pictures, (16, 16), torch.float32).values.path.name

    first = name()
    autoencoder.decoder.layers[0].weight[0, 0, 0, 0] += 1
    assert name() == first, "the decoder has no part in latents"
    for weight in (autoencoder.encoder.layers[1].weight, autoencoder.shift, autoencoder.scale):
        before = name()
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
        assert name() != before, "the smallest change of one number"
    before = name()
    (folder / "005.png").write_bytes((folder / "006.png").read_bytes())
    pictures = open_pictures(folder)
    assert name() != before
    assert len({name(), latents_of(autoencoder, pictures, (24, 16), torch.float32).values.path.name}) == 2


def test_broken_pictures_have_no_latents_and_are_counted_again_from_the_cache(folder: Path) -> None:
    (folder / "020.png").write_bytes((folder / "020.png").read_bytes()[:200])
    pictures, autoencoder = open_pictures(folder), tiny_autoencoder()
    buckets = Buckets(((16, 16),), (np.arange(24),))
    for _ in range(2):
        troubles = Troubles()
        latents = bucket_latents(autoencoder, pictures, buckets, torch.float32, troubles=troubles)
        assert (troubles.seen, troubles.count) == (24, 1)
        assert "020.png" in troubles.named[0].where
    source = LatentSource(pictures, buckets, latents, batch=4, seed=0)
    seen = [index for step in range(6) for index in source.batch(step, range(4)).indices.tolist()]
    assert set(seen) == set(range(24)) - {20}
    assert ["020.png" in trouble.where for trouble in source.troubles()] == [True]


def test_too_many_broken_pictures_stop_the_encoding_on_the_way(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents_module, "CHUNK", 4)
    monkeypatch.setattr(latents_module, "AT_ONCE", 4)
    pictures = open_pictures(folder)
    for number in range(6, 11):
        (folder / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(TooManyBroken, match=r"3 of 9 were broken, the last of them .*008\.png"):
        latents_of(tiny_autoencoder(), pictures, (16, 16), torch.float32, troubles=Troubles(few=2))
    assert not list(cache.glob("*.npy"))


def test_the_digest_of_weights_sees_names_shapes_dtypes_and_bits() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3), "c": torch.ones(4)},
        {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)},
        {"a": -torch.zeros(2, 3), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3)},
    ]
    assert len({digest(one) for one in [weights, *others]}) == 6
    same_numbers = {"b": torch.ones(8)[::2], "a": torch.zeros(3, 2).T}
    assert digest(same_numbers) == digest(weights), "how they lie in memory does not count"
    assert digest({"x": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(3), "none": torch.empty(0)})
    assert encoder_digest(tiny_autoencoder(0)) != encoder_digest(tiny_autoencoder(1))


# ---- text embeddings -------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_encoder(cache: Path) -> None:
    """Against the encoder itself, float16 apart; padding is zero; the empty caption is always there."""
    torch.manual_seed(0)
    encoder = TextEncoder(EncoderConfig(vocab_size=258, width=16, num_layers=1, num_heads=2, length=24)).eval()
    tokenize = tokens_of()

    def encode(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, mask = tokenize(captions)
        return encoder(tokens, mask), mask

    captions = [f"number {n}" * (1 + n % 3) for n in range(150)]
    embeddings = pickle.loads(pickle.dumps(embeddings_of(encode, digest(encoder.state_dict()), captions * 2)))
    wanted = [captions[77], "", captions[3], captions[3]]
    context, mask = embeddings(wanted)
    with torch.no_grad():
        expected, expected_mask = encode(wanted)
    assert torch.equal(mask, expected_mask)
    assert torch.allclose(context[mask], expected[mask], atol=2e-3)
    assert not context[~mask].any()
    with pytest.raises(ValueError, match="there is no embedding of the caption 'else'"):
        embeddings(["else"])
    files = len(list(cache.iterdir()))
    embeddings_of(encode, digest(encoder.state_dict()), captions)
    assert len(list(cache.iterdir())) == files, "made once"
    with torch.no_grad():
        encoder.embedding.weight[0, 0] += 1
    embeddings_of(encode, digest(encoder.state_dict()), captions)
    assert len(list(cache.iterdir())) == 2 * files, "a changed weight makes them anew"


def test_captions_that_are_too_long_are_cut_when_asked() -> None:
    tokenizer = Tokenizer.train(["number one"], 258)
    long, short = "number " * 9, "one"
    tokens, mask = encode_prompts(tokenizer, [long, short], 12, cuts=True)
    whole, _ = encode_prompts(tokenizer, [long], 80)
    assert tokens[0].tolist() == [*whole[0, :11].tolist(), tokenizer.end]
    assert mask.sum(1).tolist() == [12, 5]
    with pytest.raises(ValueError, match="the prompt is too long"):
        encode_prompts(tokenizer, [long], 12)
