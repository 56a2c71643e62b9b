"""The compiled kernel for processors that lack what this one may have: an instruction that LLVM cannot make ends the
whole process, so each has some of its own. Which numbers come out is what `test_few_tokens` says, here as there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from llvmlite import binding

HERE = Path(__file__).parent
LACKS = {"haswell": "avx512", "cascadelake": "avx512bf16"}  # LLVM's names
TESTS = "torch_in_float32 or nearer_to_float32 or same_bits"
PRETENDING = """
import llvmlite.binding as llvm
features = llvm.get_host_cpu_features()
features.update((one, False) for one in features if one.startswith({lacks!r}))
llvm.get_host_cpu_features, llvm.get_host_cpu_name = lambda: features, lambda: {name!r}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[subprocess.Popen[str], Path]]]:
    """The tests as each of them runs them, all at once, with their folders: most of the time one core compiles."""
    found = {}
    for name, lacks in LACKS.items():
        folder, features = tmp_path_factory.mktemp(name), binding.get_host_cpu_features()
        features.update((one, False) for one in features if one.startswith(lacks))
        about = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features.flatten(), "DIPTYCH_CACHE": str(folder)}
        # Python runs a file of this name as it starts, also where it is started to compile.
        (folder / "sitecustomize.py").write_text(PRETENDING.format(name=name, lacks=lacks), encoding="utf-8")
        arguments = ["-q", "-p", "no:cacheprovider", "-k", TESTS, str(HERE / "test_few_tokens.py")]
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | about | {"PYTHONPATH": str(folder)},
            cwd=HERE.parent.parent,
        )
        found[name] = (run, folder)
    yield found
    for run, _ in found.values():
        with run:  # which closes what it says, and waits
            run.kill()


@pytest.mark.skipif(
    not binding.get_host_cpu_features().get("avx2"), reason="only a processor of that kind runs its code"
)
@pytest.mark.parametrize("name", LACKS)
def test_what_a_processor_lacks_is_done_without(name: str, runs: dict[str, tuple[subprocess.Popen[str], Path]]) -> None:
    run, folder = runs[name]
    said, _ = run.communicate()
    assert run.returncode == 0, said[-4000:]
    assert len(list((folder / "kernels").iterdir())) == 1
