import csv

import pytest

from diptych.data.casing import Casing, Openings
from diptych.data.corpora import clean, documents, is_whole, split, train_and_validation, unwrap

LONG = "The little dog ran to the park and saw a big red ball. He was happy. " * 4


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("“Hi,” she said. ‘No’ — it’s…", "\"Hi,\" she said. 'No' - it's..."),
        ("one--two – three", "one - two - three"),
        ("1990–1995", "1990-1995"),
        ("a\u00a0 b \n\n\n  c\t d\n", "a b\nc d"),
        ("cafe\u0301", "café"),
        ("â€œheyâ€\x9d itâ€™s", '"hey" it\'s'),
    ],
)
def test_one_written_style(raw, cleaned):
    assert clean(raw) == cleaned
    assert clean(cleaned) == cleaned


def test_short_and_wrongly_decoded_documents_are_dropped():
    assert is_whole(LONG)
    assert not is_whole("Too short.")
    assert not is_whole(LONG + "Ã¶ber")
    assert not is_whole(LONG + "\ufffd")
    assert is_whole(LONG + "château, âge, São")


def test_hard_line_breaks_become_paragraphs():
    assert unwrap("one\ntwo\n\nthree\n  four\n") == "one two\nthree four"


def test_a_split_does_not_depend_on_order_and_parts_no_copies():
    texts = [f"{LONG} Story {number}." for number in range(400)]
    train, validation = split(texts, seed=1, share=0.1)
    again = split(texts[::-1] + [text.upper() for text in texts], seed=1, share=0.1)
    assert set(train) | set(validation) == set(texts)
    assert 20 < len(validation) < 65
    assert set(validation) <= set(again[1])
    assert {text.upper() for text in validation} <= set(again[1])
    assert not {text.upper() for text in again[0]} & {text.upper() for text in again[1]}
    assert split(texts, seed=2, share=0.1)[1] != validation


def test_plain_files_by_path(tmp_path):
    (tmp_path / "a.txt").write_text(f"{LONG}one\n<|endoftext|>\n{LONG}two\n<|endoftext|>\nshort")
    (tmp_path / "b.txt").write_text(LONG + "three")
    assert [text[-3:] for text in documents(str(tmp_path / "a.txt"))] == ["one", "two"]
    assert [text.split(" ")[-1] for text in documents(str(tmp_path))] == ["one", "two", "three"]


def test_wrong_names_are_explained(data, tmp_path):
    with pytest.raises(ValueError, match="unknown corpus 'tinystorys'; did you mean 'tinystories'"):
        documents("tinystorys")
    with pytest.raises(ValueError, match="missing"):
        documents(str(tmp_path / "none.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        documents(str(tmp_path / "latin.txt"))


def test_a_picture_book_keeps_its_pages_and_drops_its_notices(data):
    folder = data / "african_storybook_en"
    folder.mkdir()
    page = "The goat went\nto the market.\n\nShe was glad.\n"
    book = "# The Goat\n\n" + f"##\n{page}\n" * 8 + "##\n* License: [{}]\n* Text: A. Writer\n* Language: en\n"
    (folder / "0001_goat.md").write_text(book.format("CC-BY"))
    (folder / "0002_cow.md").write_text(book.replace("goat", "cow").format("CC-BY-NC"))
    assert documents("african_storybook_en") == ["\n".join(["The goat went to the market.", "She was glad."] * 8)]


def test_fairy_tales_for_questions_are_held_out(data):
    for side, name in (("train", "frog"), ("test", "king")):
        (data / "fairytaleqa" / "questions" / side).mkdir(parents=True)
        (data / "fairytaleqa" / "questions" / side / f"{name}-questions.csv").write_text("")
        stories = data / "fairytaleqa" / "section-stories" / "all"
        stories.mkdir(parents=True, exist_ok=True)
        with (stories / f"{name}-story.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([["section", "text"], [1, f"A {name} sat.\n{LONG}"], [2, "The end."]])
    train, validation = train_and_validation("fairytaleqa", seed=0)
    assert [text.split("\n")[0] for text in train + validation] == ["A frog sat.", "A king sat."]
    assert train[0].endswith("happy.\nThe end.")


def test_books_are_cut_at_chapters(data):
    (data / "chilit").mkdir()
    body = f"\n\nTHERE was once _a_ girl--\nGrace.\n\n[Illustration: a girl]\n\n{LONG}\n\n"
    (data / "chilit" / "girl.txt").write_text(
        f"A Girl\nA. Writer\n\nPREFACE.\n\n{LONG}\n\nCHAPTER I. HOME{body}CHAPTER 2.\n\nTHE SEA{body}"
    )
    chapters = documents("chilit")
    assert len(chapters) == 1  # the two chapters are the same text
    assert chapters[0].startswith("There was once a girl - Grace.\nThe little dog")


STORIES = [
    "Once upon a time, there was a girl named Lily. She liked Tom.\n"
    'One day, Tom saw Lily. "Hi, Lily," said Tom, "can I play?"\n'
    '"Yes!" said Lily. She and Tom were glad.',
    'Once there was a dog named Max. He was big.\nMax ran to Lily. "I am Max," he said.\nThen Lily and Max played.',
] * 3


def test_capitals_come_back():
    """Names that were learned, names that a story introduces, sentences, quotes that go on, and "I"."""
    casing = Casing(STORIES)
    for story in [*STORIES, "There was a cat named Zog. The big cat, Zog, saw Lily and I."]:
        assert casing.restore(story.lower()) == story


def test_openings_are_told_from_other_paragraphs():
    openings = Openings(story.split("\n") for story in STORIES)
    assert openings.score("Once upon a time, there was a fox named Red.") > 0
    assert openings.score("Then Lily ran home.") < 0


def test_stories_without_borders_are_found(data):
    """The lower-cased file: a blank line between paragraphs, one line break between stories, capitals gone."""
    folder = data / "tinystories"
    folder.mkdir()
    stories = [
        "\n".join(
            f"{line} They ran and ran with {name} all day in the sun, and it was fun." for line in story.split("\n")
        )
        for story in STORIES[:2]
        for name in ("Lily", "Tom")
    ]
    (folder / "train_cased.txt").write_text("".join(f"{story}\n<|endoftext|>\n" for story in stories))
    new = [story.replace("girl", "woman").replace("dog", "fox") for story in stories]
    (folder / "train_lower.txt").write_text(
        "\n".join(story.lower().replace("\n", "\n\n") for story in [*stories, *new])
    )
    (folder / "valid_cased.txt").write_text("The end.\n\n" + "\n\n".join(new).replace("\n", "\n\n"))
    train = documents("tinystories", "train")
    assert train[:4] == stories
    assert train[4:] == new[:-1]  # the last one may be cut
    assert documents("tinystories", "validation") == new[:-1]
