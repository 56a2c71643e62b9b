"""A model is written with what its authors say, unless its user says otherwise; both survive import and export."""

import json
import shutil

import pytest

import diptych
from diptych.interop.folder import bring_in, write_folder

ASKED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
OURS = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.fixture
def asking(published, tmp_path):
    """`asking(temperature=0.6)`: a model whose generation_config.json says so."""

    def write(**settings):
        directory = tmp_path / "llama"
        shutil.copytree(published("llama-3"), directory, dirs_exist_ok=True)
        (directory / "generation_config.json").write_text(json.dumps(settings))
        return directory

    return write


def settings_of(model, **given):
    found = model.generate("A cat", max_tokens=1, seed=1, **given).result().settings
    return {name: found[name] for name in OURS}


def test_the_authors_settings_are_used_where_the_user_gives_none(asking):
    model = diptych.load(str(asking(**ASKED)), "cpu", "float32")
    assert settings_of(model) == OURS
    assert settings_of(model, temperature=1.5, min_p=0.1) == OURS | {"temperature": 1.5, "min_p": 0.1}


def test_greedy_is_asked_for_as_do_sample_false_and_nothing_leaves_the_houses_settings(asking, published):
    assert diptych.load(str(asking(do_sample=False, temperature=0.6))).defaults == {"temperature": 0}
    assert diptych.load(str(published("llama-3"))).defaults == {}


def test_all_tokens_that_end_a_text_end_it(asking):
    model = diptych.load(str(asking(eos_token_id=[1, 2])), "cpu", "float32")
    assert (model.tokenizer.end, model.tokenizer.ends) == (1, {1, 2})
    bias = {"2": 1000.0}
    result = model.generate("A cat", max_tokens=9, logit_bias=bias, temperature=0).result()
    assert (result.tokens, result.finish_reason, result.text) == ([2], "stop", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": "warm"}, "'temperature' must be a number, not 'warm'"), ({"top_p": 2}, "top_p must be")],
)
def test_a_setting_that_cannot_be_is_refused(asking, settings, message):
    with pytest.raises(ValueError, match=message):
        diptych.load(str(asking(**settings)))


def test_import_and_export_keep_settings_and_ends(asking, tmp_path):
    bring_in(asking(**ASKED, eos_token_id=[1, 2]), tmp_path / "ours")
    ours = diptych.load(str(tmp_path / "ours"), "cpu", "float32")
    assert (ours.name, ours.defaults, ours.tokenizer.ends) == ("ours", OURS, {1, 2})
    write_folder(ours, tmp_path / "theirs")
    theirs = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())
    assert theirs | ASKED == theirs
    assert (theirs["bos_token_id"], theirs["eos_token_id"]) == (0, [1, 2])
    again = diptych.load(str(tmp_path / "theirs"), "cpu", "float32")
    assert (again.defaults, again.tokenizer.ends) == (ours.defaults, ours.tokenizer.ends)
