"""The compiled kernel for processors that lack what this one may have: an instruction that LLVM cannot make ends the
whole process, so each has one of its own. Which numbers come out is what `test_few_tokens` says, here as there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

HERE = Path(__file__).parent
LACKS = {"haswell": "avx512", "cascadelake": "avx512bf16"}  # LLVM's names
TESTS = "torch_in_float32 or nearer_to_float32 or same_bits"
PROGRAM = """
import sys
import llvmlite.binding as llvm
import pytest
name, lacks, *arguments = sys.argv[1:]
features = llvm.get_host_cpu_features()
features.update((one, False) for one in features if one.startswith(lacks))
llvm.get_host_cpu_features, llvm.get_host_cpu_name = lambda: features, lambda: name
sys.exit(pytest.main(arguments))
"""


@pytest.mark.skipif(
    not binding.get_host_cpu_features().get("avx2"), reason="only a processor of that kind runs its code"
)
@pytest.mark.parametrize(("name", "lacks"), LACKS.items())
def test_what_a_processor_lacks_is_done_without(name: str, lacks: str, tmp_path: Path) -> None:
    features = binding.get_host_cpu_features()
    features.update((one, False) for one in features if one.startswith(lacks))
    about = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features.flatten(), "DIPTYCH_CACHE": str(tmp_path)}
    arguments = [name, lacks, "-q", "-p", "no:cacheprovider", "-k", TESTS, str(HERE / "test_few_tokens.py")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | about,
        cwd=HERE.parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(list((tmp_path / "kernels").iterdir())) == 1
