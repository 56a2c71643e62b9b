import io
import json

import pytest
from rich.cells import cell_len

from diptych.text.model import TextModel

TEXT = "The cat saw a dog."


@pytest.fixture
def score(diptych, tiny_quill):
    return lambda text, *words: diptych("score", text, "--model", tiny_quill, "--dtype", "float32", *words)


def test_the_tokens_add_up_to_what_the_model_gives_the_text(score, tiny_quill):
    model = TextModel.load(tiny_quill, device="cpu", dtype="float32")
    *tokens, last = map(json.loads, score(TEXT, "--json", "--num-candidates", 3).out.splitlines())
    expected = model.score(TEXT)
    assert [token["log_probability"] for token in tokens] == pytest.approx(expected.tolist(), abs=1e-5)
    assert last["log_probability"] == pytest.approx(float(expected.sum()), abs=1e-4)
    assert last["bits_per_byte"] == pytest.approx(-float(expected.sum()) / 0.6931472 / len(TEXT), rel=1e-4)
    assert "".join(token["text"] for token in tokens) == TEXT
    assert {len(token["candidates"]) for token in tokens} <= {3, 4}


def test_the_table_has_a_row_a_token_and_fits_80_columns(score, monkeypatch):
    lines = score(TEXT).out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert lines[-1].endswith("sides")
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert score("-").out.splitlines() == lines


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("", [], "the prompt is empty"),
        ("cat " * 5000, [], "the text has "),
        ("cat", ["--num-candidates", 0], "num_candidates must be a whole number >= 1 and <= 1000, not 0"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(score, text, words, message):
    status, out, err = score(text, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")
