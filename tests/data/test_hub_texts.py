import json

import datasets
import pytest

from diptych.data.corpora import origin, read
from diptych.data.hub_texts import DataSet, parse
from diptych.data.trouble import Troubles

TALES = ["one", None, "", "four", "five"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf:owner/name", ("owner/name", None, None, None, None)),
        ("hf:owner/name:small", ("owner/name", "small", None, None, None)),
        ("hf:owner/name:small:test#story", ("owner/name", "small", "test", None, "story")),
        ("hf:owner/name::train[:500]", ("owner/name", None, "train", 500, None)),
        ("hf:owner/name[:7]#a:b", ("owner/name", None, None, 7, "a:b")),
    ],
)
def test_a_name_says_what_is_wanted(name, parts):
    assert parse(name) == DataSet(*parts)


@pytest.mark.parametrize("name", ["hf:", "hf:owner/name#", "hf:a:b:c:d", "hf:owner/name[7:]"])
def test_another_form_is_refused(name):
    with pytest.raises(ValueError, match=r"must have the form hf:owner/name:config:split\[:N\]#field"):
        parse(name)


def test_a_saved_data_set_by_its_path_and_by_its_name(tmp_path):
    datasets.Dataset.from_dict({"text": TALES, "number": range(5)}).save_to_disk(tmp_path / "one")
    for name in (f"{tmp_path}/one", f"hf:{tmp_path}/one"):
        troubles = Troubles()
        assert list(read(name, troubles)) == ["one", "four", "five"]
        assert [tuple(one) for one in troubles.named] == [(f"{name}, row 2", "is null, not text")]
        assert troubles.seen == 5
    assert list(read(f"hf:{tmp_path}/one[:4]", Troubles())) == ["one", "four"]
    with pytest.raises(ValueError, match="unknown column 'tex'; did you mean 'text'"):
        list(read(f"{tmp_path}/one#tex", Troubles()))
    with pytest.raises(ValueError, match="one data set without splits; leave 'test' out"):
        list(read(f"hf:{tmp_path}/one::test", Troubles()))


def test_splits_of_a_saved_data_set(tmp_path):
    splits = {side: datasets.Dataset.from_dict({"text": [side]}) for side in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    assert list(read(f"{tmp_path}/both", Troubles())) == ["train"]
    assert list(read(f"hf:{tmp_path}/both::test", Troubles())) == ["test"]
    with pytest.raises(ValueError, match="unknown split 'tst'; did you mean 'test'"):
        list(read(f"hf:{tmp_path}/both::tst", Troubles()))


def test_a_folder_that_the_library_can_build_from_is_streamed(tmp_path):
    """One JSON list: nothing that is read here by itself, and one of many kinds that `datasets` knows."""
    (tmp_path / "tales").mkdir()
    tales = [{"number": n, "text": f"tale {n}"} for n in range(2500)]
    (tmp_path / "tales" / "train.json").write_text(json.dumps(tales))
    name = f"hf:{tmp_path}/tales"
    assert origin(name) == tmp_path / "tales"
    assert list(read(name, Troubles())) == [f"tale {n}" for n in range(2500)]
    assert list(read(f"{name}[:3]", Troubles())) == ["tale 0", "tale 1", "tale 2"]
    with pytest.raises(ValueError, match="unknown column 'txt'; did you mean 'text'"):
        list(read(f"{name}#txt", Troubles()))
    with pytest.raises(ValueError, match="row 11: is a number, not text"):
        list(read(f"{name}#number", Troubles()))


def test_what_the_library_says_becomes_one_line(tmp_path):
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "train.jsonl").write_text(json.dumps({"text": "one"}) + '\n{"text": "torn')
    (tmp_path / "empty").mkdir()
    for name in (f"hf:{tmp_path}/empty", f"hf:{tmp_path}/tales::nothing", f"hf:{tmp_path}/tales"):
        with pytest.raises(ValueError, match="cannot be read") as raised:
            list(read(name, Troubles()))
        assert "\n" not in str(raised.value)


def test_a_name_of_the_hub_is_streamed(monkeypatch):
    """What the library is asked for, with a stream in its place: this test knows no network."""
    asked = []

    def stream(*arguments, **settings):
        asked.append((arguments, settings))
        return datasets.IterableDataset.from_generator(lambda: ({"text": tale} for tale in TALES))

    monkeypatch.setattr(datasets, "load_dataset", stream)
    assert list(read("hf:owner/name:small:test[:4]", Troubles())) == ["one", "four"]
    assert list(read("hf:owner/name", Troubles())) == ["one", "four", "five"]
    assert asked == [
        (("owner/name", "small"), {"split": "test", "streaming": True}),
        (("owner/name", None), {"split": "train", "streaming": True}),
    ]
    assert origin("hf:owner/name") is None
