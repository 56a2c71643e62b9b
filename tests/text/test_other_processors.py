"""The compiled kernel for processors that lack what this one may have: an instruction that LLVM cannot make ends the
whole process, so each has some of its own. Which numbers come out is what `test_few_tokens` says, here as there."""

import os
import subprocess
import sys
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


@pytest.mark.skipif(
    not binding.get_host_cpu_features().get("avx2"), reason="only a processor of that kind runs its code"
)
@pytest.mark.parametrize(("name", "lacks"), LACKS.items())
def test_what_a_processor_lacks_is_done_without(name: str, lacks: str, tmp_path: Path) -> None:
    features = binding.get_host_cpu_features()
    features.update((one, False) for one in features if one.startswith(lacks))
    about = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features.flatten(), "DIPTYCH_CACHE": str(tmp_path)}
    # Python runs a file of this name as it starts, also where it is started to compile.
    (tmp_path / "sitecustomize.py").write_text(PRETENDING.format(name=name, lacks=lacks), encoding="utf-8")
    arguments = ["-q", "-p", "no:cacheprovider", "-k", TESTS, str(HERE / "test_few_tokens.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | about | {"PYTHONPATH": str(tmp_path)},
        cwd=HERE.parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(list((tmp_path / "kernels").iterdir())) == 1
