"""The benchmarks are too long for a test; that they start, and reach into what is there, is not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RECIPE = """
[run]
objective = "next-token"
steps = 8
batch = 2
average = 0
workers = 0

[model]
depth = 1
context = 32

[model.overrides]
width = 32
num_heads = 2
num_kv_heads = 2
head_dim = 16
hidden = 32

[data]
vocab_size = 258
validation_documents = 1
split = "end"
validation_share = 0.1

[data.mix]
"tale.txt" = 1
"""


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)


def test_the_loops_share_is_measured_in_the_real_loop(
    kernels: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(kernels(tmp_path / "cache")))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "tale.txt").write_text("Once upon a time there was a fox. It lived by the sea.\n" * 60)
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import peers; print(peers.loop_share('tiny.toml'))"
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.splitlines()[-1]) < 1


def test_writing_is_measured_through_the_whole_of_generate(tmp_path: Path) -> None:
    """A model of the benchmark's own making, smaller: what it writes can be opened, and each side gives a figure."""
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import decoding, decoders; from pathlib import Path\n"
        "sizes = dict(width=64, num_layers=1, num_heads=1, num_kv_heads=1, hidden=64, vocab_size=4200)\n"
        "decoding.SHAPES['tiny'] = sizes; decoding.write_model(Path('tiny'), 'tiny')\n"
        "print(*(decoders.diptych('tiny', 12, bits) > 0 for bits in (16, 8, 4)), decoders.batch('tiny', 8, 2) > 0)\n"
        "print(0 < decoders.prefill('tiny', 32) < 10, decoders.loading('tiny') > 1)"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "False" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process takes")
def test_a_narrow_painter_paints_in_less_memory(tmp_path: Path) -> None:
    """What the benchmark compares a run with: the bundled painter's architecture, with a sixteenth of its weights."""
    brush = str(BENCHMARKS / "brush.py")
    narrowed = run(brush, "narrowed", "brush", "1", "1", str(tmp_path / "narrow"), folder=tmp_path)
    assert narrowed.returncode == 0, narrowed.stderr
    least, most = (float(run(brush, "peak", name, "1", "1", folder=tmp_path).stdout) for name in ("narrow", "brush"))
    assert 20 < most - least < 48 * 1.2  # brush's weights are 48 MiB


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(("gpt", "--text", "a.txt"), "gpt needs --nanogpt"), (("unet",), "unet needs --python"), (("low",), "--text")],
)
def test_what_a_benchmark_needs_is_said(tmp_path: Path, arguments: tuple[str, ...], missing: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    done = run(str(BENCHMARKS / "training.py"), *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert missing in done.stderr


def test_long_prompts_are_timed_in_growing_order(tmp_path: Path) -> None:
    done = run(str(BENCHMARKS / "long_context.py"), "--lengths", "70", "40", "--tokens", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.startswith("quill, 9.5 M parameters")
    assert [line.split("|")[1].strip() for line in lines] == ["tokens", "---", "40", "70"]


def test_samplers_are_compared_with_a_clone_or_not_at_all(tmp_path: Path) -> None:
    """Every pair has a sampler of ours that runs, on both paths alike; what is no clone is said in one line."""
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import samplers, torch\n"
        "draws = [torch.zeros(1, 1, 1, 1, dtype=torch.float64)] * 9\n"
        "for name, _, _ in samplers.PAIRS:\n"
        "    ends = {samplers.ours(name, path, [9.0, 1.0, 0.1, 0.0], draws[0] + 9, draws).item()\n"
        "            for path in ('variance-exploding', 'ddpm-scaled-linear')}\n"
        "    assert max(ends) - min(ends) < 1e-9, name\n"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(str(BENCHMARKS / "samplers.py"), "nowhere", folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "samplers: 'nowhere' is no clone of k-diffusion\n")


@pytest.mark.skipif(os.name != "posix", reason="only there a process can be stopped for a while")
def test_of_runs_in_turns_one_works_while_the_others_are_stopped(tmp_path: Path) -> None:
    """A step of 20 ms stands for one of a training; the one that a turn cuts is not counted."""
    step = (
        "import json, pathlib, time\n"
        "log, step = pathlib.Path('metrics.jsonl').open('a', buffering=1), 0\n"
        "while True:\n"
        "    time.sleep(0.02); step += 1\n"
        "    print(json.dumps({'loss': 1.0, 'seconds': time.perf_counter(), 'tokens': 100 * step}), file=log)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import training, subprocess, time; from pathlib import Path\n"
        f"process = subprocess.Popen([sys.executable, '-c', {step!r}])\n"
        "run = training.Paused(Path(), [process])\n"
        "try:\n"
        "    run.turn(2)\n"
        "    for _ in range(3):\n"
        "        time.sleep(0.1)\n"
        "        before = len(training.steps_of(Path()))\n"
        "        time.sleep(0.3)\n"
        "        assert len(training.steps_of(Path())) == before\n"
        "        assert 1000 < run.turn(3) < 5000, 'a step takes 20 ms and what the machine adds'\n"
        "finally:\n"
        "    run.end()\n"
        "assert process.returncode\n"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_run_that_ends_before_its_turn_is_said(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import training, subprocess; from pathlib import Path\n"
        "ended = subprocess.Popen([sys.executable, '-c', '']); ended.wait()\n"
        "training.Paused(Path(), [ended]).turn(1)\n"
    )
    done = run("-c", code, folder=tmp_path)
    assert "ended before its turns did" in done.stderr.splitlines()[-1]
