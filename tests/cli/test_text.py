import json
import re
import shutil

import pytest
from rich.cells import cell_len

from diptych.cli.explain_text import TextTeller, percent, quoted
from diptych.cli.odds_table import bar, row, visible
from diptych.cli.odds_table import percent as short_percent
from diptych.text.model import TextModel
from diptych.text.record import Candidate, TextStep


@pytest.fixture(scope="module")
def result(tiny_quill):
    model = TextModel.load(tiny_quill, device="cpu", dtype="float32")
    return model.generate("Once upon", seed=5, max_tokens=20).result()


def test_what_streams_is_the_prompt_and_the_result(write, result):
    assert write("--seed", 5, "--max-tokens", 20) == (0, f"Once upon{result.text}\n", "")


def test_a_fresh_seed_is_told_and_repeats(write):
    run = write("--max-tokens", 9)
    seed = run.err.removeprefix("seed ").split(";")[0]
    assert run.err == f"seed {seed}; --seed {seed} makes the same again\n"
    assert write("--max-tokens", 9, "--seed", seed).out == run.out


def test_json_is_one_object_a_line_and_holds_everything(write, result):
    *steps, last = map(json.loads, write("--seed", 5, "--max-tokens", 20, "--json").out.splitlines())
    assert [step["token"] for step in steps] == result.tokens == last["tokens"]
    assert "".join(step["text"] for step in steps) == result.text == last["text"]
    assert {"probability", "drawn_probability", "candidates", "entropy"} < set(steps[0])
    assert {"token", "text", "probability", "odds"} == set(steps[0]["candidates"][0])
    assert (last["prompt"], last["seed"], last["finish_reason"]) == ("Once upon", 5, result.finish_reason)


def test_odds_have_a_row_a_token_and_fit_80_columns(write, result):
    lines = write("--seed", 5, "--max-tokens", 20, "--odds", "--top-k", 5).out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    rows = [line for line in lines if "→" in line and line[:3].strip().isdigit()]
    assert [int(line[:3]) for line in rows] == list(range(1, len(rows) + 1))


def test_a_recorded_text_shows_the_same_odds(write, diptych):
    told = write("--seed", 5, "--max-tokens", 20, "--odds", "--trace", "a.trace").out
    shown = diptych("trace", "show", "a.trace").out
    assert shown.startswith(told)
    assert shown.endswith("steps of tiny-quill, seed 5\n")


def test_out_keeps_the_story(write, folder, result):
    run = write("--seed", 5, "--max-tokens", 20, "--out", "story.txt")
    assert (folder / "story.txt").read_text() == run.out == f"Once upon{result.text}\n"
    assert run.err == f"story.txt: {len(result.tokens)} tokens after the prompt, seed 5\n"


def test_the_cache_is_an_option_and_changes_nothing_within_the_context(write, result):
    assert write("--seed", 5, "--max-tokens", 20, "--sinks", 4).out == f"Once upon{result.text}\n"
    assert write("--cache", "int4", "--seed", 5).err == "diptych: the cache's dtype must be int8, or none, not 'int4'\n"
    assert "must fit the context of 4096" in write("--sinks", 4096, "--seed", 5).err


def test_several_texts_stand_below_each_other(write, result, tiny_quill):
    """The first is the one that comes alone; each can be kept in a file of its own."""
    run = write("--seed", 5, "--max-tokens", 20, "-n", 3, "--out", "story.txt")
    model = TextModel.load(tiny_quill, device="cpu", dtype="float32")
    texts = [one.text for one in model.generate("Once upon", seed=5, max_tokens=20, n=3).results()]
    assert texts[0] == result.text
    assert run.out == "\n".join(f"[{place} of 3]\nOnce upon{text}\n" for place, text in enumerate(texts, 1))
    assert [line.split(":")[0] for line in run.err.splitlines()] == ["story-1.txt", "story-2.txt", "story-3.txt"]


def test_json_tells_whose_a_step_is(write):
    lines = [json.loads(line) for line in write("--seed", 5, "--max-tokens", 6, "--json", "--n", 2).out.splitlines()]
    results = [line for line in lines if line["type"] == "result"]
    for sample, last in enumerate(results):
        assert last["settings"]["sample"] == sample
        own = [line["token"] for line in lines if line["type"] == "step" and line["sample"] == sample]
        assert own == last["tokens"]


@pytest.mark.parametrize("drafter", ["ngram", "model"])
def test_speculation_changes_no_text_and_says_what_it_did(write, result, tiny_quill, drafter):
    words = ["--seed", 5, "--max-tokens", 20, "--speculate", "ngram" if drafter == "ngram" else tiny_quill]
    run = write(*words)
    assert run.out == f"Once upon{result.text}\n"
    name, share = ("ngram", r"(\d+%|none)") if drafter == "ngram" else ("tiny-quill", "100%")
    assert re.fullmatch(rf"speculation \({name}\): {share} of \d+ guesses came true, \d\.\d\d tokens a call\n", run.err)
    last = json.loads(write(*words, "--json").out.splitlines()[-1])
    assert last["speculation"]["drafter"] == name
    assert last["speculation"]["tokens"] == len(last["tokens"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "temperature must be a finite number >= 0, not -1.0"),
        (["--temperature", "nan"], "temperature must be a finite number >= 0, not nan"),
        (["--max-tokens", "0"], "max_tokens must be a whole number >= 1, not 0"),
        (["--top-p", "0"], "top_p must be a number > 0 and <= 1, not 0.0"),
        (["--seed", "-1"], "seed must be a whole number from 0 to"),
        (["--n", "0"], "n must be a whole number from 1 to 256, not 0"),
        (["--n", "2", "--odds"], "--odds tells of one text, not of 2: leave out --n"),
        (["--speculate", "ngram", "--draft-tokens", "65"], "draft_tokens must be a whole number from 0 to 64, not 65"),
        (["--speculate", "quill"], "'quill' cannot draft: its tokenizer is another than that of the model"),
        (["--out", "nowhere/story.txt"], "the output folder 'nowhere' does not exist"),
        (["--trace", "nowhere/a.trace"], "the output folder 'nowhere' does not exist"),
        (["--trace", "a.json"], "'a.json' must end in .trace"),
        (["--stop", ""], "stop must be texts of at least one character"),
        (["--min-tokens", "500"], "min_tokens must be at most max_tokens (200), not 500"),
        (["--logit-bias", "7"], "--logit-bias takes a token id and a number as ID=NUMBER, not '7'"),
        (["--logit-bias", "7=x"], "logit_bias must give a number for each token id, not {'7': 'x'}"),
        (["--logit-bias", "9999=1"], "logit_bias token ids must be whole numbers from 0 to"),
        (["--regex", "[a-"], "regex cannot be used: unclosed character class"),
        (["--regex", "a", "--json-schema", "{}"], "choose one of --json-schema, --regex"),
        (["--json-schema", "{"], "json_schema is not JSON"),
        (["--grammar", "nowhere.lark"], "--grammar names a file that cannot be read: 'nowhere.lark'"),
        (["--device", "abacus"], "device 'abacus' is not on this machine"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(write, folder, words, message):
    status, out, err = write(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"diptych: {message}")
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_a_text_is_what_its_constraint_says(write, folder):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    (folder / "a.json").write_text(json.dumps(schema))
    (folder / "a.lark").write_text('start: "x" | "yy"\n')
    for option in (json.dumps(schema), "a.json"):
        assert json.loads(write("--json-schema", option).out.removeprefix("Once upon")) in ({"a": 1}, {"a": 2})
    assert write("--grammar", "a.lark").out in ("Once uponx\n", "Once uponyy\n")
    told = write("--regex", " a b", "--explain", "--seed", 1).out
    assert "nothing can follow that the constraint allows" in " ".join(told.split())


@pytest.mark.parametrize(("prompt", "message"), [("", "the prompt is empty"), ("cat " * 5000, "the prompt has ")])
def test_a_prompt_that_cannot_be_is_refused(diptych, tiny_quill, prompt, message):
    status, out, err = diptych("text", prompt, "--model", tiny_quill, "--seed", 1)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")


def test_a_truncated_checkpoint_is_named(diptych, tiny_quill, folder):
    shutil.copytree(tiny_quill, folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, out, err = diptych("text", "Once", "--model", "cut")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "cut/model.safetensors' is damaged" in err


def test_an_image_model_does_not_write(diptych, tiny_brush):
    run = diptych("text", "Once", "--model", tiny_brush)
    assert run.status == 2
    assert "paints pictures; 'diptych image" in run.err


def test_the_explanation_has_the_numbers_of_the_steps(write, result):
    told = " ".join(write("--seed", 5, "--max-tokens", 20, "--explain").out.split())
    assert "gives each of the 290 pieces that it knows a chance" in told
    assert "After 'Once upon'" in told
    assert f"Of {len(result.tokens)} pieces" in told
    assert told.endswith(" ".join(f"Once upon{result.text}".split()))


def step(chosen: int, *chances: tuple[str, float], entropy: float, index: int = 0) -> TextStep:
    """A step whose candidates have these texts and probabilities, drawn as the model says."""
    candidates = [Candidate(token, text, chance, chance) for token, (text, chance) in enumerate(chances)]
    text, chance = chances[chosen]
    return TextStep(index, chosen, text, chance, chance, candidates, entropy)


def test_a_sure_word_then_a_hard_one_is_told_so():
    teller = TextTeller("Once upon a")
    assert teller.line(step(0, (" time", 0.97), (" day", 0.03), entropy=0.13)) == [
        "After 'Once upon a' it gave 'time' 97 % and took it."
    ]
    words = [(f" word{number}", 0.07) for number in range(8)]
    assert teller.line(step(2, *words, entropy=3.0)) == [
        "After 'Once upon a time' the next one was harder: 8 words share half of the odds, as unsure as a fair die "
        "with 20 sides; 'word0' was likeliest with 7.0 %, but the draw fell on its 3rd choice, 'word2' with 7.0 %."
    ]


def test_sure_words_are_folded_until_one_is_not():
    teller = TextTeller("a")
    teller.line(step(0, (" b", 0.95), (" c", 0.05), entropy=0.2))
    assert teller.line(step(0, (" c", 0.98), (" d", 0.02), entropy=0.1)) == []
    assert teller.line(step(0, (" d", 0.99), (" e", 0.01), entropy=0.1)) == []
    folded, told = teller.line(step(0, (" e", 0.6), (" f", 0.4), entropy=0.67))
    assert folded == "  then 'c', 'd' almost by themselves (98 % to 99 %)."
    assert told == "After 'a b c d' it gave 'e' 60 % and took it."


def test_a_token_that_is_not_among_the_leading_has_no_rank():
    candidates = [Candidate(token, f" {token}", 0.1, 0.1) for token in range(8)] + [
        Candidate(99, " rare", 0.001, 0.002)
    ]
    shown = row(0, 99, 0.001, 0.002, 2.3, candidates)
    assert shown.split()[:4] == ["1", "·rare", "0.1→0.2", ">8"]


@pytest.mark.parametrize(
    ("probability", "long", "short"),
    [(1.0, "100 %", "100"), (0.97, "97 %", "97"), (0.0412, "4.1 %", "4.1"), (0.0, "less than 0.1 %", "–")],
)
def test_percentages(probability, long, short):
    assert (percent(probability), short_percent(probability)) == (long, short)


def test_what_cannot_be_seen_is_shown():
    assert visible(" a\n\x07") == "·a⏎\\x07"
    assert [quoted(piece) for piece in (" cat", "\n", " ", "<|end|>")] == [
        "'cat'",
        "a new line",
        "a space",
        "the sign for 'the end'",
    ]


def test_a_bar_is_as_long_as_its_share():
    assert (bar(0, 4), bar(0.5, 4), bar(1, 4)) == ("    ", "██  ", "████")
