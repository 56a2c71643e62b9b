"""A run that is killed wherever it stands goes on and comes to the same end."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_runs_that_are_killed_again_and_again_end_as_one_that_was_not() -> None:
    """Killed at random operations on files, a checkpoint's among them; `benchmarks/kills.py` does it 200 times."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "12", "--seed", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "all came to the same end" in done.stdout
