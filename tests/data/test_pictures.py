"""Readers of pictures against Pillow and NumPy: each picture and caption by its number, in any order, or an error."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from diptych.data.pictures import PictureSet, hold_out, open_pictures
from diptych.data.trouble import TooManyBroken, Troubles

CAPTIONS = ["a red thing", "", "two words", "ein Kätzchen", "the last one"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIPTYCH_CACHE", str(folder))
    return folder


def picture(index: int) -> np.ndarray:
    """Noise, so that no two are alike; every one has a size of its own."""
    return np.random.default_rng(index).integers(0, 256, (6 + index, 9 - index, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def beside(folder: Path) -> Path:
    for index, caption in enumerate(CAPTIONS):
        place = folder / ("b/c" if index % 2 else "a")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.PNG").write_bytes(encoded(picture(index)))
        if caption:
            (place / f"{index}{'.txt' if index else '.caption'}").write_text(f"\ufeff{caption}\n", encoding="utf-8")
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def listed(folder: Path) -> Path:
    lines = []
    (folder / "x").mkdir()
    for index, caption in enumerate(CAPTIONS):
        (folder / "x" / f"{index}.png").write_bytes(encoded(picture(index)))
        lines.append(json.dumps({"file_name": f"x/{index}.png", **({"text": caption} if caption else {})}))
    (folder / "x" / "not-named.png").write_bytes(encoded(picture(0)))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def shards(folder: Path) -> Path:
    for shard, indices in (("s-0.tar", (0, 1, 2)), ("s-1.tar", (3, 4))):
        members = []
        for index in indices:
            members.append((f"part/{index:04d}.png", encoded(picture(index))))
            if index == 3:
                members.append((f"part/{index:04d}.json", json.dumps({"caption": CAPTIONS[3], "n": 1}).encode()))
            elif CAPTIONS[index]:
                members.append((f"part/{index:04d}.txt", CAPTIONS[index].encode()))
        tar(folder / shard, members)
    return folder


def table(folder: Path) -> Path:
    """Two files, row groups of two; one column is a struct as Hugging Face writes it, the other is plain bytes."""
    for name, indices, is_struct in (("t-0.parquet", (0, 1, 2), True), ("t-1.parquet", (3, 4), False)):
        data = [encoded(picture(index)) for index in indices]
        cells = [{"bytes": one, "path": None} for one in data] if is_struct else data
        texts = [CAPTIONS[index] or None for index in indices]
        pyarrow.parquet.write_table(pyarrow.table({"image": cells, "text": texts}), folder / name, row_group_size=2)
    return folder


@pytest.mark.parametrize("make", [beside, listed, shards, table])
def test_every_reader_gives_each_picture_and_caption_by_its_number(make, tmp_path: Path) -> None:
    """Against the arrays they were made of; in reverse, and in another process's copy."""
    opened = pickle.loads(pickle.dumps(open_pictures(make(tmp_path))))
    order = [0, 2, 4, 1, 3] if make is beside else range(5)  # a/ comes before b/
    assert len(opened) == 5
    for place, index in reversed(list(enumerate(order))):
        expected = picture(index)
        assert np.array_equal(opened.read(place), expected)
        assert opened.read(place).dtype == np.uint8
        assert opened.size(place) == (expected.shape[1], expected.shape[0])
        assert opened.caption(place) == CAPTIONS[index]
        assert str(tmp_path) in opened.name(place)


@pytest.mark.parametrize("make", [beside, listed, shards, table])
def test_the_key_changes_when_a_picture_does(make, tmp_path: Path) -> None:
    make(tmp_path)
    before = open_pictures(tmp_path).key
    assert open_pictures(tmp_path).key == before
    file = next(path for path in sorted(tmp_path.rglob("[!.]*")) if path.suffix in (".PNG", ".png", ".tar", ".parquet"))
    file.write_bytes(file.read_bytes() + b"\0")
    assert open_pictures(tmp_path).key != before


def idx(path: Path, array: np.ndarray) -> None:
    data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_is_grey_pictures_named_by_their_class(end: str, tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (4, 5, 7), dtype=np.uint8)
    idx(tmp_path / f"train-images-idx3-ubyte{end}", grey)
    idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([7, 1, 9, 0], np.uint8))
    opened = pickle.loads(pickle.dumps(open_pictures(tmp_path)))
    for index in (3, 0, 2, 1):
        assert np.array_equal(opened.read(index), np.stack([grey[index]] * 3, axis=-1))
    assert (len(opened), opened.size(0)) == (4, (7, 5))
    assert [opened.caption(index) for index in range(4)] == [
        "a picture of a sneaker",
        "a picture of a pair of trousers",
        "a picture of an ankle boot",
        "a picture of a t-shirt",
    ]
    assert open_pictures(tmp_path, wording="this is {name}").caption(0) == "this is a sneaker"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\x08\x01" + bytes(12), "does not begin as one of unsigned bytes along 3 axes"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 3, 4) + bytes(23), "ends 1 bytes too early"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "bytes too early"),
    ],
)
def test_a_damaged_idx_file_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_pictures(tmp_path)


def test_labels_must_fit_the_pictures(tmp_path: Path) -> None:
    idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 2, 2), np.uint8))
    idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="has 2 pictures, and its file of labels 3"):
        open_pictures(tmp_path)
    idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 10], np.uint8))
    with pytest.raises(ValueError, match="of class 10, and only 10 classes have names"):
        open_pictures(tmp_path)


def test_several_captions_come_in_turn(tmp_path: Path) -> None:
    """Each once before one comes again; so many sights of a picture show it under all its names."""
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    opened = open_pictures(tmp_path)
    seen = [opened.caption(0, sight) for sight in range(6)]
    assert set(seen[:3]) == {"one", "two", "three"}
    assert seen[3:] == seen[:3]


def test_the_key_of_captions_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "cat", "deutsch": ["Katze"]}')
    assert open_pictures(tmp_path).caption(0) == "cat"
    assert open_pictures(tmp_path / "metadata.jsonl", caption="deutsch").caption(0) == "Katze"
    with pytest.raises(ValueError, match=r"no line of .* has the key 'english'"):
        open_pictures(tmp_path, caption="english")


def test_columns_are_named_when_one_is_not_there(tmp_path: Path) -> None:
    table(tmp_path)
    with pytest.raises(ValueError, match=r"unknown column .* 'texts'; did you mean 'text'\? Known: image, text"):
        open_pictures(tmp_path, caption="texts")


# ---- what is broken --------------------------------------------------------------------------------------------


def test_broken_lines_are_skipped_counted_and_named(tmp_path: Path) -> None:
    listed(tmp_path)
    path = tmp_path / "metadata.jsonl"
    broken = [b"{", b"[1]", b'{"text": "x"}', b'{"file_name": "../y.png"}', b'{"file_name": "none.png"}', b"\xff"]
    path.write_bytes(path.read_bytes() + b"\n".join([*broken, b'{"file_name": "x/0.png", "text": 7}']))
    troubles = Troubles()
    assert len(open_pictures(tmp_path, troubles=troubles)) == 5
    assert (troubles.count, troubles.seen) == (7, 12)
    assert [trouble.where.rpartition(", ")[2] for trouble in troubles.named] == [f"line {n}" for n in range(6, 13)]
    reasons = ["not JSON", "not a JSON object", "no file_name", "below the folder", "no picture", "not JSON", "a text"]
    assert all(word in trouble.why for word, trouble in zip(reasons, troubles.named, strict=True))
    with pytest.raises(TooManyBroken, match="line 9"):
        open_pictures(tmp_path, troubles=Troubles(share=0.01, few=3))


def test_a_shard_that_is_cut_off_keeps_what_came_before(tmp_path: Path, cache: Path) -> None:
    shards(tmp_path)
    path = tmp_path / "s-0.tar"
    with tarfile.open(path) as opened:
        (last,) = (info for info in opened if info.name == "part/0002.png")
    path.write_bytes(path.read_bytes()[: last.offset_data + 10])
    for _ in range(2):  # read now, and from the index that was kept
        troubles = Troubles()
        found = open_pictures(tmp_path, troubles=troubles)
        assert len(found) == 4
        assert [str(path) in trouble.where for trouble in troubles.named] == [True]
        assert np.array_equal(found.read(3), picture(4))
    assert len(list(cache.glob("webdataset-*.json"))) == 2


def test_a_damaged_head_in_a_shard_is_noticed(tmp_path: Path) -> None:
    """tarfile takes it for the end of the file; what follows would be lost in silence."""
    shards(tmp_path)
    path = tmp_path / "s-0.tar"
    with tarfile.open(path) as opened:
        (last,) = (info for info in opened if info.name == "part/0002.png")
    data = bytearray(path.read_bytes())
    data[last.offset : last.offset + 100] = b"?" * 100
    path.write_bytes(data)
    troubles = Troubles()
    assert len(open_pictures(tmp_path, troubles=troubles)) == 4
    assert f"damaged from byte {last.offset} on" in troubles.named[0].why


def test_samples_without_a_picture_and_names_that_come_twice_are_named(tmp_path: Path) -> None:
    image = encoded(picture(0))
    tar(tmp_path / "s.tar", [("0.txt", b"words"), ("1.png", image), ("1.png", image), ("._1.png", b"of a Mac")])
    troubles = Troubles()
    assert len(open_pictures(tmp_path / "s.tar", troubles=troubles)) == 1
    assert [trouble.why for trouble in troubles.named] == ["its name comes twice", "it has no picture"]


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match="is compressed"):
        open_pictures(tmp_path)


def test_a_picture_without_bytes_in_a_table_is_broken_alone(tmp_path: Path) -> None:
    cells = [{"bytes": encoded(picture(0)), "path": "0.png"}, {"bytes": None, "path": "1.png"}, None]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "t.parquet")
    (tmp_path / "u.parquet").write_bytes(b"PAR1 no more")
    troubles = Troubles()
    opened = open_pictures(tmp_path, troubles=troubles)
    assert "u.parquet" in troubles.named[0].where
    assert np.array_equal(opened.read(0), picture(0))
    assert opened.caption(0) == ""
    for index in (1, 2):
        with pytest.raises(ValueError, match="holds no bytes"):
            opened.read(index)


def test_a_caption_that_is_no_text_is_an_error_of_its_picture(tmp_path: Path) -> None:
    beside(tmp_path)
    (tmp_path / "a" / "0.caption").write_bytes(b"\xff\xfe\xff")
    opened = open_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"0\.caption is not UTF-8"):
        opened.caption(0)
    assert opened.caption(1) == CAPTIONS[2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no pictures"),
        (["a.tar", "b.parquet"], r"more than one kind of pictures \(parquet, tar\)"),
        (["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"], "one IDX file of images, not 2"),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        open_pictures(tmp_path)


def test_patterns_and_the_data_folder_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    shards(tmp_path / "shards")
    monkeypatch.setenv("DIPTYCH_DATA", str(tmp_path))
    assert len(open_pictures("shards/s-*.tar")) == len(open_pictures(f"{tmp_path}/shards/*.tar")) == 5
    assert len(open_pictures("shards/s-1.tar")) == 2
    with pytest.raises(ValueError, match="there are no pictures at 'nowhere'"):
        open_pictures("nowhere")


def test_what_is_held_out_is_the_rest_of_what_is_not(tmp_path: Path) -> None:
    whole: PictureSet = open_pictures(beside(tmp_path))
    kept, apart = hold_out(whole, 2, seed=3)
    names = [part.name(index) for part in (kept, apart) for index in range(len(part))]
    assert sorted(names) == sorted(whole.name(index) for index in range(5))
    assert (len(kept), len(apart)) == (3, 2)
    assert len({whole.key, kept.key, apart.key, hold_out(whole, 2, seed=4)[1].key}) == 4
    assert np.array_equal(apart.read(1), whole.read(int(apart.indices[1])))
    with pytest.raises(ValueError, match="held_out must be from 0 to below the number of pictures"):
        hold_out(whole, 5, seed=3)
