import json
import signal
import subprocess
import sys
import tomllib

import pytest

from diptych.cli.train import duration

RECIPE = """
[run]
objective = "next-token"
steps = 4
batch = 2
average = 0.0
sample_every = 0
save_every = 2

[model]
depth = 1
context = 32
overrides = { width = 16, num_heads = 2, num_kv_heads = 2, head_dim = 8, hidden = 16 }

[data]
mix = { "tale.txt" = 1 }
vocab_size = 270

[optimizer]
warmup = 1
"""


@pytest.fixture
def recipe(folder):
    (folder / "tale.txt").write_text("Once upon a time there was a cat. It sat on a beach.\n" * 20)
    (folder / "small.toml").write_text(RECIPE)
    return folder / "small.toml"


def test_a_recipe_becomes_a_model_that_writes(diptych, recipe, folder):
    run = diptych("train", "small.toml", "--threads", 1)
    assert run.status == 0, run.err
    assert run.out.startswith("runs/small/model: 4 steps, ")
    assert "step 4/4  loss " in run.err
    assert diptych("text", "Once", "--model", "runs/small/model", "--max-tokens", 3).status == 0


def test_training_needs_no_compiler_of_torchs(diptych, recipe, folder):
    """Neither to hold a small recipe against the machine, nor to step, save and read what was saved: it would take a
    second or two of every start."""
    code = (
        "import sys; from diptych.cli import main; status = main(sys.argv[1:]); "
        "print({'torch._dynamo', 'torch.distributed.tensor', 'sympy'} & {*sys.modules}); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "train", "small.toml", "--threads", "1"]
    for steps in (2, 4):
        arguments = [*command, f"run.steps={steps}", "optimizer.name=muon"]
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "set()"
    assert "going on from step 2" in done.stderr


def test_a_short_training_compiles_nothing(diptych, recipe, folder, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(folder / "cache"))
    run = diptych("train", "small.toml", "--threads", 1)
    assert "compiling" not in run.err
    assert (folder / "cache").is_dir()
    assert not (folder / "cache/kernels").exists()


def test_the_same_command_goes_on_and_fresh_moves_the_old_run_aside(diptych, recipe, folder):
    diptych("train", "small.toml", "--threads", 1)
    more = diptych("train", "small.toml", "run.steps=6", "--threads", 1)
    assert "going on from step 4 of the run in runs/small" in more.err
    again = diptych("train", "small.toml", "--fresh", "--threads", 1)
    assert "the old run is now runs/small.old-1" in again.err
    assert (folder / "runs/small.old-1/model/config.json").is_file()
    assert (folder / "runs/small/model/config.json").is_file()


def test_show_prints_the_whole_recipe_and_stops(diptych, recipe, folder):
    run = diptych("train", "small.toml", "optimizer.learning_rate=0.5", "--seed", 9, "--show")
    shown = tomllib.loads(run.out)
    assert shown["run"]["seed"] == 9
    assert shown["optimizer"]["learning_rate"] == 0.5
    assert shown["data"]["mix"] == {"tale.txt": 1}
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("warmup", "warmpu"), "small.toml, line 20: unknown key 'warmpu' in [optimizer]; did you mean 'warmup'?"),
        (("depth", "dept"), "small.toml, line 11: unknown key 'dept' in [model]; did you mean 'depth'?"),
        (("next-token", "next-word"), "unknown objective 'next-word'; did you mean 'next-token'?"),
        (("steps = 4", "steps = 0"), "small.toml, line 4: run.steps must be at least 1, not 0"),
    ],
)
def test_a_wrong_recipe_is_one_line_with_the_place(diptych, recipe, folder, wrong, message):
    recipe.write_text(RECIPE.replace(*wrong, 1))
    status, out, err = diptych("train", "small.toml")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")
    assert not (folder / "runs").exists()


def test_a_missing_output_folder_is_refused(diptych, recipe, folder):
    status, _, err = diptych("train", "small.toml", "--out", "no/where")
    assert (status, err) == (2, "diptych: the output folder 'no' does not exist; create it or choose another\n")


def test_an_interrupted_run_is_saved_and_goes_on(diptych, recipe, folder):
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from diptych.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    settings = ["run.steps=100000", "--threads", "1"]
    command = [sys.executable, "-c", code, "train", "small.toml", *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("step 1/100000  loss ")
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 1
    assert err.startswith("diptych: interrupted; runs/small is saved at step ")
    step = int(err.split("at step ")[1].split(",")[0])
    state = json.loads((folder / f"runs/small/checkpoints/step-{step:08d}/state.json").read_text())
    assert state["step"] == step
    on = diptych("train", "small.toml", f"run.steps={step + 1}", "--threads", 1)
    assert on.status == 0
    assert f"going on from step {step} " in on.err


def test_durations():
    assert [duration(seconds) for seconds in (5, 65, 3700)] == ["5 s", "1 min 05 s", "1 h 01 min"]
