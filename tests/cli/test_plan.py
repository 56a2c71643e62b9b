import json

import pytest

RECIPE = """
[run]
objective = "next-token"
steps = 2000

[model]
depth = 6

[data]
mix = { "nowhere.txt" = 1 }
"""


@pytest.fixture
def recipe(folder):
    (folder / "tale.toml").write_text(RECIPE)
    return "tale.toml"


def test_a_plan_is_told_without_any_data(diptych, recipe):
    status, out, err = diptych("plan", recipe, "--on", "2 x L4", "run.batch=64")
    assert (status, err) == (0, "")
    assert out.startswith("tale on 2 x L4 (estimated)\n")
    for word in ("parameters", "layout", "memory", "weights", "speed", "time", "energy", "disk", "tokens/s", "Wh"):
        assert word in out
    assert out.splitlines()[-1].startswith("As settings of 'diptych train': run.accumulate=")


def test_experts_are_told_by_what_a_token_uses(diptych, recipe):
    """Counted by hand: three matrices of 240 rounded up to 256 by 96, in each of 6 layers, of 8 experts 2."""
    experts = "model.overrides.experts={num_experts=8,top_k=2,hidden=96}"
    facts = json.loads(diptych("plan", recipe, "--on", "h100", "--json", experts).out)
    assert facts["parameters"] - facts["active"] == 6 * 6 * 3 * 256 * 96
    said = diptych("plan", recipe, "--on", "h100", experts).out
    assert f"parameters    {facts['parameters']:,}, of which a token uses {facts['active']:,}\n" in said


def test_json_is_one_object(diptych, recipe):
    run = diptych("plan", recipe, "--on", "h100", "--json")
    facts = json.loads(run.out)
    assert facts["total"] == sum(facts["memory"].values())
    assert facts["fits"] is True
    assert facts["layout"]["devices"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "8 x H10"], "unknown machine 'H10'; did you mean 'H100'?"),
        (["--threads", "0"], "threads must be at least 1, not 0"),
        (
            ["--dtype", "float16"],
            "dtype float16 cannot train here: small gradients become 0 in it; allowed: bfloat16, float32",
        ),
        (["run.stepps=3"], "tale.toml, [run]: unknown key 'stepps' in [run]; did you mean 'steps'?"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
    ],
)
def test_wrong_usage_is_one_line(diptych, recipe, words, message):
    status, out, err = diptych("plan", recipe, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")


def test_a_missing_recipe_is_a_failure(diptych, folder):
    assert diptych("plan", "no.toml") == (1, "", "diptych: there is no recipe at 'no.toml'\n")
