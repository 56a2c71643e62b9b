import pytest

from diptych.data.kept import kept


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    return tmp_path


def test_of_two_that_build_at_once_the_first_to_finish_stays(cache):
    """The other finishes while this one still builds: nothing that it has mapped may be moved or replaced."""

    def slow(folder):
        (folder / "file").write_text("mine")
        kept("thing", lambda other: (other / "file").write_text("theirs"))

    assert (kept("thing", slow) / "file").read_text() == "theirs"
    assert [path.name for path in cache.iterdir()] == ["thing"]


def test_what_was_not_built_to_its_end_is_not_there(cache):
    with pytest.raises(KeyError):
        kept("thing", lambda folder: {}[(folder / "file").write_text("half")])
    assert list(cache.iterdir()) == []
