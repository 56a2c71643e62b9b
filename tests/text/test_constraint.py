import json
import re

import numpy as np
import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.text.constraint import Constraint
from diptych.text.decoder import Decoder
from diptych.text.model import TextModel

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "likes": {"type": "array", "items": {"enum": ["cats", "dogs", "é–🦊"]}, "minItems": 1, "maxItems": 3},
        "is_tall": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
SUM = "start: number (/[+*]/ number){0,3}\nnumber: /[1-9][0-9]{0,2}/ | /\\(/ start /\\)/\n"


def is_person(text: str) -> bool:
    """The schema by hand."""
    value = json.loads(text)
    return (
        {"name", "age", "likes"} <= value.keys() <= {"name", "age", "likes", "is_tall"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and type(value["age"]) is int
        and 0 <= value["age"] <= 130
        and 1 <= len(value["likes"]) <= 3
        and set(value["likes"]) <= {"cats", "dogs", "é–🦊"}
        and value.get("is_tall") in (True, False, None)
    )


def is_sum(text: str) -> bool:
    return re.fullmatch(r"[1-9+*()][0-9+*()]*", text) is not None and isinstance(eval(text), int)


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.fixture(scope="module")
def wide(model) -> TextModel:
    """The tiny model with room for longer texts."""
    torch.manual_seed(1)
    config = model.config.from_dict(model.config.to_dict() | {"context": 512})
    return TextModel("wide", Decoder(config).eval(), model.tokenizer)


@pytest.mark.parametrize(
    ("constraint", "is_valid"),
    [
        ({"json_schema": PERSON}, is_person),
        ({"regex": r"([0-9]{3}-){2}[0-9]{4}|[a-f]+ 🦊"}, re.compile(r"([0-9]{3}-){2}[0-9]{4}|[a-f]+ 🦊").fullmatch),
        ({"grammar": SUM}, is_sum),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_random_model_writes_is_valid_unless_it_is_cut(wide, constraint, is_valid):
    """Checked by hand-written definitions. It has learnt nothing, so only the constraint keeps it in bounds."""
    ends = 0
    for seed in range(12):
        result = wide.generate("Once", constraint=constraint, seed=seed, max_tokens=400, temperature=1.0).result()
        if result.finish_reason == "stop":
            assert is_valid(result.text), result.text
            ends += 1
        else:
            assert (result.finish_reason, len(result.tokens)) == ("length", 400)
    assert ends >= 8


def test_a_text_that_is_cut_says_so(wide):
    result = wide.generate("Once", constraint={"regex": "[ab]{50}"}, max_tokens=20).result()
    assert (result.finish_reason, len(result.tokens)) == ("length", 20)
    assert re.fullmatch("[ab]{1,50}", result.text)


def test_a_rule_that_cannot_be_fulfilled_ends_the_text_and_says_so(wide):
    """After "ab" comes a rule that always begins with itself."""
    result = wide.generate("Once", constraint={"grammar": 'start: "ab" tail\ntail: tail "c"'}).result()
    assert (result.text, result.finish_reason) == ("ab", "constraint")


def test_odds_under_a_constraint_are_the_model_s_own_among_what_is_allowed(wide):
    """Against the softmax of the network's logits over the two bytes that may come."""
    settings = {"temperature": 1.0, "min_p": 0.0, "num_candidates": 290}
    (step,) = wide.generate("Once", constraint={"regex": "a|b"}, seed=4, **settings)
    a, b = (id for letter in "ab" for id in wide.tokenizer.encode(letter))
    logits = wide.decoder(torch.tensor([wide.prompt_ids("Once")]))[0, -1].detach()
    expected = dict(zip((a, b), torch.softmax(logits[[a, b]].double(), -1).tolist(), strict=True))
    assert {one.token: one.odds for one in step.candidates if one.odds > 0} == pytest.approx(expected, rel=1e-4)


def test_a_text_that_may_end_goes_on_until_min_tokens(wide):
    end = wide.tokenizer.end
    for min_tokens, longest in ((0, 1), (5, 6)):
        settings = {"min_tokens": min_tokens, "logit_bias": {end: 1e4}}
        tokens = wide.generate("Once", constraint={"regex": "a*"}, **settings).result().tokens
        assert (len(tokens), tokens[-1]) == (longest, end)
    result = wide.generate("Once", constraint={"regex": "ab"}, min_tokens=50).result()
    assert (result.text, result.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral", "llama3", "qwen"])
def test_any_vocabulary_writes_what_is_allowed(vocabularies, name):
    """Published ones' rules, bytes as letters or as a fallback: tokens drawn evenly from what may come next."""
    end = max(Tokenizer(vocabularies[name]).specials.values())
    tokenizer = Tokenizer(vocabularies[name], [end])
    generator = np.random.default_rng(0)
    for wanted, is_valid in [
        ({"regex": " upon a time, é🦊  at"}, " upon a time, é🦊  at".__eq__),
        ({"regex": r"[a-z ]{3,9}|(🦊|é–)+!"}, re.compile(r"[a-z ]{3,9}|(🦊|é–)+!").fullmatch),
        ({"json_schema": PERSON}, is_person),
    ]:
        constraint, written = Constraint(tokenizer, wanted), []
        while not constraint.is_complete and written[-1:] != [end]:
            (allowed,) = (~constraint.forbidden(may_end=True)).nonzero()
            written.append(int(generator.choice(allowed)))
            constraint.accept(written[-1])
        text = b"".join(map(tokenizer.token_bytes, written)).decode()
        assert is_valid(text), text


def test_the_only_text_is_written_as_the_tokenizer_would(vocabularies):
    tokenizer = Tokenizer(vocabularies["llama2"], [2])
    constraint, written = Constraint(tokenizer, {"regex": "upon a time"}), []
    while not constraint.is_complete:
        (allowed,) = (~constraint.forbidden(may_end=True)).nonzero()
        written += allowed.tolist()  # there is one
        constraint.accept(written[-1])
    assert written == tokenizer.encode("\nupon a time")[len(tokenizer.encode("\n")) :]


def test_a_fork_goes_its_own_way(model):
    constraint = Constraint(model.tokenizer, {"regex": "a+|b+"})
    fork = constraint.fork()
    (a,), (b,) = (model.tokenizer.encode(letter) for letter in "ab")
    constraint.accept(a)
    fork.accept(b)
    assert (constraint.forbidden(may_end=True)[[a, b]].tolist(), fork.forbidden(may_end=True)[[a, b]].tolist()) == (
        [False, True],
        [True, False],
    )


def test_a_text_that_has_left_its_constraint_is_over(model):
    constraint = Constraint(model.tokenizer, {"regex": "a+"})
    constraint.accept(*model.tokenizer.encode("b"))
    assert (constraint.is_complete, constraint.is_met) == (True, False)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({}, "constraint must be one of json_schema, regex, grammar with what it is, not {}"),
        ({"regx": "a"}, "unknown constraint 'regx'; did you mean 'regex'?"),
        ({"regex": 3}, "regex must be a text, not 3"),
        ({"regex": "[a-"}, "regex cannot be used: unclosed character class"),
        ({"json_schema": "{"}, "json_schema is not JSON: Expecting property name"),
        ({"json_schema": "[1]"}, "json_schema must be a JSON object, not [1]"),
        ({"json_schema": {"type": "objct"}}, "json_schema cannot be used: Invalid type: objct"),
        ({"json_schema": {"if": {}}}, 'json_schema cannot be used: Unimplemented keys: ["if"]'),
        ({"grammar": "strt: a"}, "grammar cannot be used: no start rule found"),
        ({"json_schema": False}, "json_schema must be a JSON object, not False"),
        ({"json_schema": {"enum": [{1, 2}]}}, "json_schema is not JSON: Object of type set"),
        ({"json_schema": nested(20_000)}, "json_schema is not JSON: maximum recursion depth exceeded"),
        ({"json_schema": {"$ref": "#"}}, "json_schema cannot be used: nothing can be written under it"),
        ({"json_schema": {"minimum": 2, "maximum": 1, "type": "integer"}}, "json_schema cannot be used: Unsatisfiable"),
        ({"regex": r"[^\s\S]"}, "regex cannot be used: nothing can be written under it"),
        ({"regex": "(" * 3000 + "a" + ")" * 3000}, "regex cannot be used: exceed the maximum number of nested"),
        ({"grammar": 'start: start "a"'}, "grammar cannot be used: nothing can be written under it"),
    ],
)
def test_a_wrong_constraint_is_one_line_before_any_work(model, constraint, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        model.generate("Once", constraint=constraint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drafter", ["ngram", "model"])
def test_drafts_do_not_change_a_constrained_text(wide, drafter):
    """A draft model keeps to the constraint, too: drafting for itself, the model is always right."""
    settings = {"constraint": {"json_schema": PERSON}, "seed": 3, "max_tokens": 60, "temperature": 1.0}
    alone = wide.generate("Once", **settings).result()
    speculate = wide if drafter == "model" else drafter
    drafted = wide.generate("Once", speculate=speculate, draft_tokens=4, **settings).result()
    assert drafted.tokens == alone.tokens
    assert drafted.speculation.accepted > 0
    assert drafter == "ngram" or drafted.speculation.acceptance_rate == 1
