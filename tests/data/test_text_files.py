import gzip
import json
import sys

import pyarrow
import pytest

from diptych.data.corpora import documents, read
from diptych.data.text_files import _pieces, path_and_field
from diptych.data.trouble import TooManyBroken, Troubles

LONG = "The little dog ran to the park and saw a big red ball. He was happy. " * 4


def lines(path, *records, end="\n"):
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in records) + end.encode())
    return str(path)


def parquet(path, row_group_size=3, **columns):
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return str(path)


def test_lines_are_kept_as_they_are_and_broken_ones_are_named(tmp_path):
    """Every way in which a line can be broken, each told by its number; the last one is torn, as by a full disk."""
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    name = lines(
        tmp_path / "tales.jsonl",
        b"\xef\xbb\xbf" + json.dumps({"text": " “kept”\r\n as  it is "}).encode() + b"\r",  # a BOM, and CRLF
        b"",
        {"text": ""},
        {"text": None},
        {"text": 7},
        {"txt": "one"},
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud83e"}',
        b'["text"]',
        deep,
        {"text": "a line separator \u2028 ends no line"},
        b'{"text": "torn',
        end="",
    )
    troubles = Troubles()
    texts = list(read(name, troubles))
    assert texts == [" “kept”\r\n as  it is ", "a line separator \u2028 ends no line"]
    told = [f"{one.where.removeprefix(str(tmp_path))}: {one.why}" for one in troubles.named]
    assert told[:6] == [
        "/tales.jsonl, line 4: is null, not text",
        "/tales.jsonl, line 5: is a number, not text",
        "/tales.jsonl, line 6: has no field 'text'; did you mean 'txt'?",
        "/tales.jsonl, line 7: is not UTF-8 text: invalid continuation byte at byte 13",
        "/tales.jsonl, line 8: holds half of a character: surrogates not allowed at 0",
        "/tales.jsonl, line 9: is JSON but no object with fields",
    ]
    assert told[6].startswith("/tales.jsonl, line 10: is not JSON")
    assert told[7].startswith("/tales.jsonl, line 12: is not JSON: Unterminated string")
    assert (troubles.seen, troubles.count) == (11, 8)  # the blank line is nothing


def test_too_many_broken_lines_stop_the_reading(tmp_path):
    name = lines(tmp_path / "tales.jsonl", *[{"story": "one"}] * 20)
    with pytest.raises(TooManyBroken, match="line 11: has no field 'text'"):
        list(read(name, Troubles()))
    assert list(read(f"{name}#story", Troubles())) == ["one"] * 20


def test_where_nobody_counts_nothing_may_be_broken(tmp_path):
    with pytest.raises(ValueError, match="line 2: is null"):
        documents(lines(tmp_path / "tales.jsonl", {"text": "one"}, {"text": None}))


def test_packed_lines_and_a_packed_file_that_ends_early(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({"text": f"tale {n} {n * n}"}).encode() + b"\n" for n in range(2000)))
    (tmp_path / "whole.jsonl.gz").write_bytes(whole)
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[:-2000])
    (tmp_path / "none.jsonl.gz").write_bytes(b"no gzip")
    assert len(list(read(str(tmp_path / "whole.jsonl.gz"), Troubles()))) == 2000
    troubles = Troubles()
    texts = list(read(str(tmp_path / "torn.jsonl.gz"), troubles))
    assert texts == [f"tale {n} {n * n}" for n in range(len(texts))]
    assert 0 < len(texts) < 2000
    assert troubles.named[-1].where.endswith(f"torn.jsonl.gz, after line {troubles.seen - 1}")
    with pytest.raises(ValueError, match=r"none\.jsonl\.gz' cannot be read"):
        list(read(str(tmp_path / "none.jsonl.gz"), Troubles()))


def test_columns_of_parquet(tmp_path):
    """Strings, strings by number, and bytes that nobody marked as text; null and what is not UTF-8 are named."""
    texts = ["one", "", None, "four", "one", "six", "seven"]
    plain = parquet(tmp_path / "plain.parquet", text=texts, number=list(range(7)))
    encoded = pyarrow.array(texts).dictionary_encode()
    by_number = parquet(tmp_path / "numbers.parquet", text=encoded)
    raw = parquet(tmp_path / "raw.parquet", text=pyarrow.array([b"one", b"caf\xe9", "drei ß".encode()]))
    for name in (plain, by_number):
        troubles = Troubles()
        assert list(read(name, troubles)) == ["one", "four", "one", "six", "seven"]
        assert [one.where for one in troubles.named] == [f"{name}, row 3"]
        assert troubles.seen == 7
    troubles = Troubles()
    assert list(read(raw, troubles)) == ["one", "drei ß"]
    assert "row 2: is not UTF-8" in str(troubles)
    with pytest.raises(ValueError, match="unknown column 'txt'; did you mean 'text'"):
        list(read(f"{plain}#txt", Troubles()))
    with pytest.raises(ValueError, match="column 'number' holds int64, not text"):
        list(read(f"{plain}#number", Troubles()))


def test_parquet_is_read_as_far_as_it_is_asked(tmp_path):
    """Bytes of the last row group are destroyed: the first documents come all the same, so it was not read yet."""
    import pyarrow.parquet

    name = parquet(tmp_path / "long.parquet", row_group_size=1000, text=[f"tale {n} {n**9}" for n in range(3000)])
    place = pyarrow.parquet.ParquetFile(name).metadata.row_group(2).column(0)
    data = bytearray((tmp_path / "long.parquet").read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    data[start : start + place.total_compressed_size] = b"\xff" * place.total_compressed_size
    (tmp_path / "long.parquet").write_bytes(data)
    reading = read(name, Troubles())
    assert [next(reading) for _ in range(2000)][-1] == f"tale 1999 {1999**9}"
    with pytest.raises(ValueError, match="cannot be read after row 2000"):
        next(reading)
    (tmp_path / "torn.parquet").write_bytes(data[:5000])
    with pytest.raises(ValueError, match=r"torn\.parquet' cannot be read after row 0") as raised:
        next(read(str(tmp_path / "torn.parquet"), Troubles()))
    assert "\n" not in str(raised.value)


def test_a_folder_is_read_by_name_whatever_its_files_are(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "b.txt").write_bytes(f"“{LONG}”\r\n<|endoftext|>short".encode())
    lines(tmp_path / "a.jsonl", {"text": "“short”"})
    parquet(tmp_path / "below" / "c.parquet", text=["three"])
    (tmp_path / "notes.csv").write_text("left alone")
    (tmp_path / ".hidden.txt").write_text(LONG)
    assert list(read(str(tmp_path), Troubles())) == ["“short”", f'"{LONG.strip()} "', "three"]


def test_broken_plain_text_is_skipped_by_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(f"{LONG}one<|endoftext|>caf\xe9<|endoftext|>{LONG}two".encode("latin-1"))
    troubles = Troubles()
    assert [text[-3:] for text in read(str(tmp_path / "a.txt"), troubles)] == ["one", "two"]
    assert [one.where for one in troubles.named] == [f"{tmp_path / 'a.txt'}, document 2"]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
def test_a_file_in_blocks_falls_into_the_pieces_of_the_whole(tmp_path, monkeypatch, block):
    """Against bytes.split, with separators that lie across blocks, follow each other, and are begun but not ended."""
    monkeypatch.setattr(sys.modules[_pieces.__module__], "BLOCK", block)
    for whole in (b"", b"ab", b"<sep>", b"a<sep>b<sep><sep>cc<se<sep>d<sep", b"long " * 9 + b"<sep>" + b"x" * 30):
        (tmp_path / "whole").write_bytes(whole)
        with (tmp_path / "whole").open("rb") as opened:
            assert list(_pieces(opened, b"<sep>")) == whole.split(b"<sep>")


def test_names_are_taken_apart_and_wrong_ones_are_explained(tmp_path):
    (tmp_path / "odd#name.jsonl").write_text('{"text": "one"}')
    (tmp_path / "table.csv").write_text("text\none\n")
    (tmp_path / "a.txt").write_text(LONG)
    assert path_and_field(f"{tmp_path}/odd#name.jsonl")[1] is None
    assert path_and_field(f"{tmp_path}/odd#name.jsonl#text")[1] == "text"
    for name, why in {
        "none.jsonl": r"corpus file 'none\.jsonl' is missing",
        f"{tmp_path}/table.csv": r"must be one of \.txt, \.jsonl, \.jsonl\.gz, \.parquet, or a folder",
        f"{tmp_path}/a.txt#story": "is plain text and has no field 'story'",
        "tales.jsonl#": "must be a path, '#' and the name of a field",
    }.items():
        with pytest.raises(ValueError, match=why):
            list(read(name, Troubles()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.txt, \.jsonl"):
        list(read(str(tmp_path / "empty"), Troubles()))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no document"):
        documents(str(tmp_path / "empty.jsonl"))
